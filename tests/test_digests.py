"""Digests, recipes, receipts and store keys are frozen: whoever changes one of these constants breaks stored deltas.

tests/fixtures/digests.json was recorded at commit 96cb5bd. The inputs are computed from integers alone, so that they do
not depend on a random number generator.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta, open_difference
from shadowft_core.grafting import Merge, Options, graft
from shadowft_core.kernels.bf16 import library
from shadowft_core.params import Store
from shadowft_core.promotion.ledger import Entry
from shadowft_core.store import probe, publish
from shadowft_core.weights import build_header, open_checkpoint

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures/digests.json").read_bytes())
BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"BF16": BF16, "F32": np.dtype(np.float32)}
ROWS, WIDTH, INNER = 48, 256, 520  # matrices of the MLP are longer than one part (delta.step)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "torch_dtype": "bfloat16",
}
LAYER = "model.layers.0"
SHAPES = {
    "model.embed_tokens.weight": (ROWS, WIDTH),
    f"{LAYER}.self_attn.q_proj.weight": (WIDTH, WIDTH),
    f"{LAYER}.self_attn.k_proj.weight": (WIDTH // 2, WIDTH),
    f"{LAYER}.self_attn.v_proj.weight": (WIDTH // 2, WIDTH),
    f"{LAYER}.self_attn.o_proj.weight": (WIDTH, WIDTH),
    f"{LAYER}.mlp.gate_proj.weight": (INNER, WIDTH),
    f"{LAYER}.mlp.up_proj.weight": (INNER, WIDTH),
    f"{LAYER}.mlp.down_proj.weight": (WIDTH, INNER),
    f"{LAYER}.input_layernorm.weight": (WIDTH,),
    f"{LAYER}.post_attention_layernorm.weight": (WIDTH,),
    "model.norm.weight": (WIDTH,),
    "lm_head.weight": (ROWS, WIDTH),
}
TARGETS = ("self_attn.q_proj", "mlp.down_proj")
RANK = 2
Tensors = Mapping[str, np.ndarray]


def numbers(seed: int, shape: tuple[int, ...], unit: float) -> np.ndarray:
    """float32 multiples of `unit` between -2048 and 2047 units: Knuth's multiplicative hash of the position."""
    words = (np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(7919 * seed)) * np.uint64(2654435761)
    return (((words & np.uint64(0xFFFFFFFF)) >> np.uint64(20)).astype(np.float32) - 2048).reshape(shape) * unit


def save_tensors(file: Path, tensors: Tensors, dtype: str) -> None:
    """Write a safetensors file by hand, so that the inputs do not depend on the code under test."""
    header: dict[str, Any] = {}
    end, body = 0, b""
    for name, array in tensors.items():
        data = array.astype(DTYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + len(data)]}
        end, body = end + len(data), body + data
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def save_model(folder: Path, tensors: Tensors, tied: bool) -> Path:
    folder.mkdir(parents=True)
    stored = {name: array for name, array in tensors.items() if not (tied and name == "lm_head.weight")}
    save_tensors(folder / "model.safetensors", stored, "BF16")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": tied}))
    vocabulary = {f"word{number}": number for number in range(ROWS)}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": vocabulary}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def save_models(folder: Path, tied: bool) -> dict[str, Path]:
    """Base, Instruct and the tuned Base, whose change is nearly of rank one."""
    base = {name: numbers(n, shape, 2**-16) for n, (name, shape) in enumerate(SHAPES.items(), 1)}
    instruct = {name: array + numbers(n, array.shape, 2**-21) for n, (name, array) in enumerate(base.items(), 101)}
    tuned = {}
    for n, (name, array) in enumerate(base.items(), 201):
        change = numbers(n, array.shape, 2**-24)
        if array.ndim == 2:
            change = change + np.outer(numbers(n, (len(array),), 2**-14), numbers(n + 1, array.shape[1:], 2**-18))
        tuned[name] = array + change
    models = {"base": base, "instruct": instruct, "tuned": tuned}
    return {role: save_model(folder / role, tensors, tied) for role, tensors in models.items()}


def save_adapter(folder: Path) -> Path:
    """A PEFT LoRA adapter, written by hand."""
    folder.mkdir()
    factors = {}
    for n, module in enumerate(TARGETS, 301):
        rows, columns = SHAPES[f"{LAYER}.{module}.weight"]
        for side, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            factors[f"base_model.model.{LAYER}.{module}.lora_{side}.weight"] = numbers(n, shape, 2**-17)
    save_tensors(folder / "adapter_model.safetensors", factors, "F32")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": [m.split(".")[1] for m in TARGETS]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def digest_of(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


@pytest.fixture(autouse=True)
def same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """delta.json names the version of this package: a release shall not change the constants."""
    monkeypatch.setattr("shadowft_core.delta.stage.version", lambda package: "0")


DELTAS: dict[str, dict[str, Any]] = {
    "compressed": {},
    "bfloat16": {"storage": "bfloat16"},
    "float32": {"storage": "float32"},
    "lowrank": {"lowrank": 0.3},
}


def record(folder: Path, tied: bool) -> dict[str, str]:
    """Every digest by what it is of."""
    models = save_models(folder, tied)
    adapter = save_adapter(folder / "adapter")
    found = {f"model {role}": open_checkpoint(path).digest() for role, path in models.items()}
    found["tokenizer"] = str(open_checkpoint(models["base"]).tokenizer_digest())
    for form, options in DELTAS.items():
        extract(models["base"], models["tuned"], folder / form, **options)
    extract(models["base"], adapter, folder / "lora")
    for form in (*DELTAS, "lora"):
        found[f"delta {form}"] = open_delta(folder / form).digest
    (folder / "grafted").mkdir()
    instruct, one, two = models["instruct"], folder / "compressed", folder / "lora"
    difference = open_difference(models["base"], models["tuned"])
    grafts: dict[str, tuple[list[tuple[Any, float]], dict[str, Any]]] = {
        "whole": ([(one, 1.0)], {}),
        "scaled": ([(one, 0.7)], {}),
        "in one pass": ([(difference, 0.7)], {}),
        "nothing": ([(one, 0.0)], {}),
        "lora": ([(two, 0.75)], {}),
        "lowrank": ([(folder / "lowrank", 0.7)], {}),
        "linear float32": ([(one, 0.7)], {"scope": "linear", "dtype": "float32", "scale_for": (("*mlp*", 0.5),)}),
        "sum": ([(one, 0.6), (two, 0.4)], {}),
        "ties": ([(one, 0.6), (two, 0.4)], {"merge": Merge("ties", 0.2)}),
        "dare": ([(one, 0.6), (two, 0.4)], {"merge": Merge("dare", 0.5, 7)}),
    }
    for name, (deltas, options) in grafts.items():
        out = folder / "grafted" / name
        found[f"graft {name}"] = graft(instruct, deltas, out, Options(**options))["digest"]
        found[f"recipe {name}"] = digest_of(out / "recipe.json")
        found[f"receipt {name}"] = digest_of(out / "receipt.json")
        found[f"file {name}"] = digest_of(out / "model.safetensors")
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_digests_equal_those_recorded(tmp_path: Path, tied: bool) -> None:
    assert frozen(record(tmp_path, tied)) == frozen(RECORDED["tied" if tied else "untied"])


def frozen(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without the compiled kernel, numpy adds the sums of a receipt in another order; all other bits are the same."""
    return {name: value for name, value in found.items() if library is not None or not name.startswith("receipt")}


def test_header_bytes_equal_those_recorded() -> None:
    header = build_header({"b": ("BF16", (2, 3)), "a": ("F32", (5,)), "c": ("U8", ())})
    assert header.hex() == RECORDED["header"]


def test_store_keys_equal_those_recorded(tmp_path: Path) -> None:
    models = save_models(tmp_path, False)
    extract(models["base"], models["tuned"], tmp_path / "delta")
    store = Store(uri=str(tmp_path / "store"))
    probe(store)
    digest = publish(tmp_path / "delta", store)
    claim = (tmp_path / "store" / "deltas" / digest.removeprefix("sha256:")).read_text()
    assert claim == RECORDED["claim"]
    assert digest == RECORDED["untied"]["delta compressed"]
    keys = [
        f.relative_to(tmp_path / "store").as_posix() for f in (tmp_path / "store/objects").rglob("*") if f.is_file()
    ]
    assert sorted(keys) == RECORDED["objects"]


def test_ledger_entry_digest_equals_that_recorded() -> None:
    entry = Entry(
        format=1,
        name="shadowft",
        number=2,
        id="0" * 32,
        action="promote",
        version=3,
        model="sha256:" + "1" * 64,
        recipe="sha256:" + "2" * 64,
        verdict="sha256:" + "3" * 64,
        decision="promote",
        override=False,
        reason="a better domain score",
        who="somebody@somewhere",
        when="2026-01-02T03:04:05+00:00",
        run_id="f" * 32,
        source="models:/m-1",
        previous="sha256:" + "4" * 64,
        undo=None,
    )
    assert entry.digest == RECORDED["ledger entry"]
