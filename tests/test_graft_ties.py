"""Tied heads: whichever side stores the head, transformers uses the embedding as head after loading."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta, open_difference
from shadowft_core.errors import CheckpointError, TensorMissingError
from shadowft_core.grafting import graft
from shadowft_core.pair.layout import match
from shadowft_core.pair.tokens import Vocabularies
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import IMAGE_TOKENS, load_model, write_model, write_weights
from tests.test_graft import BF16, F32, Tensors, refused, tensors_of

TEXT: dict[str, Any] = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
}
PLAIN = {key: value for key, value in TEXT.items() if key not in ("num_key_value_heads", "head_dim")}
VISION: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 16, "patch_size": 4},
}
TIED = {"tie_word_embeddings": True}


class Case(NamedTuple):
    settings: dict[str, Any]
    embedding: str
    head: str
    silent: bool = False
    """config.json has no tie field, neither at the top nor in text_config"""
    auto: str = "AutoModelForCausalLM"


VLM = "AutoModelForImageTextToText"
CASES = {
    "llama": Case(TEXT | TIED, "model.embed_tokens.weight", "lm_head.weight"),
    "gemma2": Case(TEXT, "model.embed_tokens.weight", "lm_head.weight", True),
    "gpt2": Case(
        {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
        | {"bos_token_id": 2, "eos_token_id": 3},
        *("transformer.wte.weight", "lm_head.weight", True),
    ),
    "bloom": Case(
        {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 4},
        *("transformer.word_embeddings.weight", "lm_head.weight", True),
    ),
    "gpt_neox": Case(PLAIN | TIED, "gpt_neox.embed_in.weight", "embed_out.weight"),
    "phi": Case(PLAIN | TIED, "model.embed_tokens.weight", "lm_head.weight"),
    "gemma3": Case(
        {"text_config": TEXT, "vision_config": VISION, **IMAGE_TOKENS},
        *("language_model.model.embed_tokens.weight", "language_model.lm_head.weight", True, VLM),
    ),
    "llava": Case(
        {
            "text_config": TEXT | TIED | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
            **{"image_token_index": 5, "vision_feature_layer": -1},
        },
        *("language_model.model.embed_tokens.weight", "language_model.lm_head.weight", False, VLM),
    ),
    "qwen2_5_vl": Case(
        {
            "text_config": TEXT | TIED,
            "vision_config": {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4}
            | {"intermediate_size": 24, "fullatt_block_indexes": [0]},
        },
        *("model.embed_tokens.weight", "lm_head.weight", False, VLM),
    ),
    "t5": Case(
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "pad_token_id": 1}
        | {"decoder_start_token_id": 1},
        *("shared.weight", "lm_head.weight", True, "AutoModelForSeq2SeqLM"),
    ),
}
SIDES = ("base", "tuned", "instruct")
WAYS = [dict.fromkeys(SIDES, "embedding"), dict.fromkeys(SIDES, "both"), dict.fromkeys(SIDES, "head")]
WAYS += [dict.fromkeys(SIDES, "embedding") | {side: way} for side in SIDES for way in ("both", "head")]


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Case]:
    """A folder with base, tuned and instruct of a family, saved by its class."""
    import torch
    import transformers

    case, folder = CASES[request.param], tmp_path_factory.mktemp(request.param)
    config = transformers.AutoConfig.for_model(request.param, **case.settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, case.auto).from_config(config)
        for weights in model.parameters():
            if not weights.any():  # a trained model has no all-zero matrix
                torch.nn.init.normal_(weights, std=0.02)
    model.save_pretrained(folder / "base")
    if case.silent:
        file = folder / "base" / "config.json"
        written = json.loads(file.read_text())
        for part in (written, *(value for value in written.values() if isinstance(value, dict))):
            part.pop("tie_word_embeddings", None)
        file.write_text(json.dumps(written))
    rng = np.random.default_rng(3)
    tensors = tensors_of(folder / "base")
    assert case.embedding in tensors
    assert case.head not in tensors, "transformers stores it once"
    for side, size in (("tuned", 0.001), ("instruct", 0.002)):
        shutil.copytree(folder / "base", folder / side)
        moved = {n: a + size * rng.standard_normal(a.shape).astype(a.dtype) for n, a in tensors.items()}
        write_weights(folder / side, moved)
    return folder, case


def stored(source: Path, out: Path, case: Case, way: str) -> Path:
    """A copy that stores the tied tensor as the embedding, as both, or as the head only."""
    shutil.copytree(source, out)
    tensors = tensors_of(source)
    if way != "embedding":
        tensors[case.head] = tensors[case.embedding]
    if way == "head":
        del tensors[case.embedding]
    write_weights(out, tensors)
    return out


@pytest.mark.parametrize("ways", WAYS, ids=lambda ways: "-".join(ways.values()))
def test_head_and_embedding_change_together_whichever_is_stored(
    tmp_path: Path, family: tuple[Path, Case], ways: dict[str, str]
) -> None:
    folder, case = family
    base, tuned, instruct = (stored(folder / side, tmp_path / side, case, ways[side]) for side in SIDES)
    extract(base, tuned, tmp_path / "delta")
    assert open_delta(tmp_path / "delta").base_tied
    made = graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    once = graft(instruct, [(open_difference(base, tuned), 1.0)], tmp_path / "once")
    assert made["digest"] == once["digest"]
    assert set(tensors_of(tmp_path / "out")) == set(tensors_of(instruct))
    b, t, i = (tensors_of(folder / side)[case.embedding] for side in SIDES)
    model, said = load_model(tmp_path / "out")
    assert not said
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        np.testing.assert_array_equal(module.weight.detach().numpy(), i + (t - b))
    ours, theirs = open_checkpoint(base), open_checkpoint(instruct)
    matches, refusals, _ = match(ours, theirs, Vocabularies(ours, theirs))
    assert not refusals
    spans = {(span.base, span.instruct) for one in matches for span in one.spans}
    assert (ours.home(case.embedding), theirs.home(case.embedding)) in spans


EMBEDDING, HEAD, Q = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"


def bare(seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        name: (0.02 * rng.standard_normal(shape)).astype(BF16) for name, shape in ((EMBEDDING, (40, 8)), (Q, (300, 8)))
    }


def near(tensors: Tensors, seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {n: (a.astype(F32) + 1e-3 * rng.standard_normal(a.shape)).astype(BF16) for n, a in tensors.items()}


@pytest.mark.parametrize("head", ["absent", "stored"])
def test_the_head_of_an_untied_instruct_gets_the_delta_of_a_tied_base(tmp_path: Path, head: str) -> None:
    base, tuned = bare(), near(bare(), 1)
    for folder, tensors in (("base", base), ("tuned", tuned)):
        more = {HEAD: tensors[EMBEDDING]} if head == "stored" else {}
        write_model(tmp_path / folder, tensors | more, tie_word_embeddings=True)
    own = near(base, 2) | {HEAD: near(base, 3)[EMBEDDING]}
    instruct = write_model(tmp_path / "instruct", own)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    moved = tuned[EMBEDDING].astype(F32) - base[EMBEDDING].astype(F32)
    for name in (EMBEDDING, HEAD):
        expected = (own[name].astype(F32) + moved).astype(BF16)
        np.testing.assert_array_equal(tensors_of(tmp_path / "out")[name], expected)


def test_training_that_unties_is_refused_with_a_remedy(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", bare(), tie_word_embeddings=True)
    moved = near(bare(), 1)
    equal = write_model(tmp_path / "equal", moved | {HEAD: moved[EMBEDDING]})
    apart = write_model(tmp_path / "apart", moved | {HEAD: near(bare(), 5)[EMBEDDING]})
    own = write_model(tmp_path / "own", bare() | {HEAD: near(bare(), 6)[EMBEDDING]})
    tied = write_model(tmp_path / "tied", moved, tie_word_embeddings=True)
    for before, after, message in (
        (base, equal, "has lm_head.weight .*ties lm_head.weight to .*two are equal; set tie_word_embeddings to true"),
        (base, apart, "has lm_head.weight .*a separate head, which the delta cannot store; untie the Base"),
        (own, tied, "only .*own has lm_head.weight .*tied ties lm_head.weight to .*untied"),
    ):
        with pytest.raises(TensorMissingError, match=message) as caught:
            extract(before, after, tmp_path / "delta")
        assert "--ignore" not in str(caught.value), "what was trained is not waived"
        with pytest.raises(TensorMissingError, match=message):
            open_difference(before, after)


@pytest.mark.parametrize(
    ("tied", "head", "outcome", "embedding"),
    [
        (tied, head, outcome, embedding)
        for tied, head, outcome in (
            (True, "equal", "tied"),
            (True, "differs", "config.json says tie_word_embeddings=true, yet lm_head.weight and .* differ"),
            (True, "absent", "tied"),
            (False, "equal", "config.json says tie_word_embeddings=false, yet lm_head.weight and .* are equal"),
            (False, "differs", "apart"),
            (False, "absent", "apart"),
            (None, "equal", "tied"),
            (None, "differs", "apart"),
            (None, "absent", "tied"),
        )
        # without a head, the tensor that it would be tied to is unknown
        for embedding in (EMBEDDING, *(["tok.emb.weight"] if head != "absent" else []))
    ],
)
@pytest.mark.parametrize("sized", [True, False], ids=["vocab_size", "no vocab_size"])
def test_an_unknown_family_is_judged_by_config_and_equal_weights(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    tied: bool | None,
    head: str,
    outcome: str,
    embedding: str,
    sized: bool,
) -> None:
    config: dict[str, Any] = {"model_type": "nobody"} | ({"vocab_size": 40} if sized else {})

    def model(place: str, seed: int) -> Path:
        tensors = near(bare(), seed)
        tensors[embedding] = tensors.pop(EMBEDDING)
        if head != "absent":
            tensors[HEAD] = tensors[embedding] if head == "equal" else near(bare(), seed + 10)[EMBEDDING]
        folder = write_model(tmp_path / place, tensors)
        (folder / "config.json").write_text(
            json.dumps(config | ({} if tied is None else {"tie_word_embeddings": tied}))
        )
        return folder

    base, tuned, instruct = (model(place, seed) for seed, place in enumerate(SIDES))
    if outcome not in ("tied", "apart"):
        with pytest.raises(CheckpointError, match=f"nobody is not a known model family; {outcome}; correct the one"):
            extract(base, tuned, tmp_path / "delta")
        sound = write_model(tmp_path / "sound", near(bare(), 0), model_type="llama")
        pair = extract(sound, write_model(tmp_path / "sound2", near(bare(), 1)), tmp_path / "delta")
        assert pair["kind"] == "dense"
        refused(CheckpointError, outcome, instruct, [(tmp_path / "delta", 1.0)])
        return
    extract(base, tuned, tmp_path / "delta")
    assert open_delta(tmp_path / "delta").base_tied is (outcome == "tied")
    graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    out = tensors_of(tmp_path / "out")
    if head != "absent":
        assert np.array_equal(out[HEAD], out[embedding]) is (outcome == "tied")
    assert not np.array_equal(out[embedding], tensors_of(instruct)[embedding])
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert sorted(line.split(": ")[1] for line in notes) == sorted(map(str, (base, tuned, instruct))), "once each"
    assert all("nobody is not a known model family" in line for line in notes)


def test_a_tie_that_no_config_undoes_is_undone_by_two_different_tensors(tmp_path: Path) -> None:
    """T5 1.1: the class ties, but transformers does not when both tensors are stored and differ."""
    names = {"shared.weight": (40, 8), HEAD: (40, 8), "decoder.final_layer_norm.weight": (8,)}

    def model(place: str, seed: int) -> Path:
        rng = np.random.default_rng(seed)
        start = np.random.default_rng(9)
        tensors = {n: start.standard_normal(s) + 1e-3 * rng.standard_normal(s) for n, s in names.items()}
        return write_model(tmp_path / place, {n: a.astype(F32) for n, a in tensors.items()}, model_type="t5")

    base, tuned, instruct = (model(place, seed) for seed, place in enumerate(SIDES))
    extract(base, tuned, tmp_path / "delta")
    assert not open_delta(tmp_path / "delta").base_tied
    graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    for name in names:
        b, t, i, out = (tensors_of(tmp_path / place)[name] for place in (*SIDES, "out"))
        np.testing.assert_array_equal(out, i + (t - b))
