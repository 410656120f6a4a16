"""Matching a tuned model's tensors to the Base's: names, rows of a resized vocabulary, refusals by cause."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta, open_difference
from shadowft_core.errors import (
    QuantisedError,
    ShadowError,
    ShapeMismatchError,
    TensorMissingError,
    TokenMismatchError,
)
from shadowft_core.grafting import graft
from shadowft_core.grafting.receipt import read_receipt
from tests.fixtures.models import WORDS, save_tokenizer, write_model
from tests.test_graft import BF16, F32, Tensors, bits, tensors_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
TOKENS = ("<unk>", "<pad>", "<|end|>", *WORDS[:37])
ADDED = (*TOKENS, "<|a|>", "<|b|>")


def tensors(seed: int, rows: int = 40, width: int = 5000) -> Tensors:
    """Tensors that are similar for all seeds, row by row; vocabularies of several parts."""
    start, noise = np.random.default_rng(0), np.random.default_rng(seed + 1)
    shapes = {EMBEDDING: (60, width), HEAD: (60, width), Q: (8, 16), NORM: (16,)}
    found = {n: start.standard_normal(s) + 1e-2 * noise.standard_normal(s) for n, s in shapes.items()}
    return {n: (0.02 * (a[:rows] if len(a) == 60 else a)).astype(BF16) for n, a in found.items()}


def model(folder: Path, found: Tensors, tokens: tuple[str, ...] | None = None, **config: Any) -> Path:
    write_model(folder, found, **config)
    if tokens:
        save_tokenizer(folder, template=False, tokens=tokens)
    return folder


def refused(tmp_path: Path, base: Path, tuned: Path, kind: type[ShadowError], *words: str) -> str:
    """Require that extraction and the one-pass graft raise one line that contains all of these words."""
    said = []
    for attempt in (lambda: extract(base, tuned, tmp_path / "refused"), lambda: open_difference(base, tuned)):
        with pytest.raises(kind) as caught:
            attempt()
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    assert all(word in said[0] for word in words), said[0]
    assert not (tmp_path / "refused").exists()
    return said[0]


def by_token(base: Tensors, tuned: Tensors, before: tuple[str, ...], after: tuple[str, ...]) -> Tensors:
    """By definition, a row of the Base gets the change of its token; padding and lost tokens get none."""
    found = {n: tuned[n].astype(F32) - base[n].astype(F32) for n in (Q, NORM)}
    for name in (EMBEDDING, HEAD):
        found[name] = np.zeros(base[name].shape, F32)
        for row, token in enumerate(before):
            if token in after and after.index(token) < len(tuned[name]):
                there = tuned[name][after.index(token)].astype(F32)
                found[name][row] = there - base[name][row].astype(F32)
    return found


MOVED = ("<|a|>", *TOKENS[:20], "<|b|>", *TOKENS[20:])
RESIZED = {  # tokens and rows of the tuned model, of a Base with 40 of each
    "two tokens added": (ADDED, 42),
    "padded to eight": (ADDED, 48),
    "padding alone": (TOKENS, 48),
    "tokens moved": (MOVED, 42),
    "fewer": (TOKENS[:36], 36),
}


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("case", RESIZED)
def test_rows_of_a_resized_vocabulary_are_matched_by_token(tmp_path: Path, case: str, dtype: np.dtype[Any]) -> None:
    tokens, rows = RESIZED[case]
    before, moved = tensors(0), {n: a.astype(dtype) for n, a in tensors(1, rows).items()}
    if case == "tokens moved":
        at = [ADDED.index(token) for token in MOVED]
        moved |= {n: moved[n][at] for n in (EMBEDDING, HEAD)}
    base, tuned = model(tmp_path / "base", before, TOKENS), model(tmp_path / "tuned", moved, tokens)
    facts = extract(base, tuned, tmp_path / "delta")
    delta = open_delta(tmp_path / "delta")
    expected = by_token(before, moved, TOKENS, tokens)
    assert bits({n: delta.read(n) for n in delta.names}) == bits({n: expected[n] for n in delta.names})
    assert set(delta.names) == set(before)
    account = delta.certificate["tokens"]
    assert facts["tokens"] == account
    assert set(account) == {EMBEDDING, HEAD}
    for said in account.values():
        assert said["matched"] == len(set(TOKENS) & set(tokens))
        assert said["tuned_only"]["rows"] == len(set(tokens) - set(TOKENS))
        assert said["base_only"]["rows"] == len(set(TOKENS) - set(tokens))
    instruct = model(tmp_path / "instruct", tensors(2), TOKENS)
    made = graft(instruct, [(tmp_path / "delta", 0.7)], tmp_path / "out")
    once = graft(instruct, [(open_difference(base, tuned), 0.7)], tmp_path / "once")
    assert made["digest"] == once["digest"]
    for name, weights in tensors_of(instruct).items():
        exact = weights.astype(F32) + F32.type(0.7) * expected[name]
        np.testing.assert_array_equal(tensors_of(tmp_path / "out")[name], exact.astype(BF16))
    assert read_receipt(tmp_path / "out")["travel"] is None
    parts = delta.parts(EMBEDDING), open_difference(base, tuned).parts(EMBEDDING)
    assert bits({"": parts[0](1)}) == bits({"": parts[1](1)})


def test_resized_rows_without_a_tokenizer_are_refused_with_a_remedy(tmp_path: Path) -> None:
    """Also if the Base's rows equal the first rows of the tuned model: they may belong to other tokens."""
    longer = tensors(1, 44)
    longer[EMBEDDING][:40] = tensors(0)[EMBEDDING]
    for number, (ours, theirs, side) in enumerate(
        [(None, None, "base"), (TOKENS, None, "tuned"), (None, ADDED, "base")]
    ):
        base = model(tmp_path / f"{number}" / "base", tensors(0), ours)
        tuned = model(tmp_path / f"{number}" / "tuned", longer, theirs)
        refused(
            *(
                tmp_path,
                base,
                tuned,
                TokenMismatchError,
                "has 40 rows",
                "44",
                f"/{number}/{side} has no tokenizer.json",
            ),
            "put the tokenizer it was trained with into that folder",
        )
    twice = ("first", *TOKENS, TOKENS[5])
    base = model(tmp_path / "base", tensors(0), TOKENS)
    other = model(tmp_path / "other", longer, tuple(f"other{n}" for n in range(44)))
    refused(tmp_path, base, other, TokenMismatchError, "tuned model and Base have no token in common")
    unsure = model(tmp_path / "unsure", longer)
    unigram = {"model": {"vocab": [[token, -1.0] for token in twice]}}
    (unsure / "tokenizer.json").write_text(json.dumps(unigram))
    assert "are the same token" in refused(tmp_path, base, unsure, TokenMismatchError, "ids [6, 41] of the tuned model")
    narrow = {n: a[:, :-1] if n in (EMBEDDING, HEAD) else a for n, a in longer.items()}
    refused(tmp_path, base, model(tmp_path / "narrow", narrow, ADDED), ShapeMismatchError, "(40, 5000)", "(44, 4999)")


def test_both_ways_of_naming_gpt2_tensors_match(tmp_path: Path) -> None:
    inner = {
        "wte.weight": (40, 8),
        "h.0.attn.c_attn.weight": (8, 24),
        "h.0.attn.c_attn.bias": (24,),
        "ln_f.weight": (8,),
    }
    start = {n: 0.02 * np.random.default_rng(0).standard_normal(s) for n, s in inner.items()}

    def gpt2(place: str, seed: int, prefix: str) -> Path:
        noise = np.random.default_rng(seed)
        found = {prefix + n: (a + 1e-4 * noise.standard_normal(a.shape)).astype(F32) for n, a in start.items()}
        if not prefix:
            found["h.0.attn.bias"] = np.ones((1, 1, 4, 4), F32)  # the mask that the hub's files hold
        folder = write_model(tmp_path / place, found, model_type="gpt2", architectures=["GPT2LMHeadModel"])
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
        return folder

    for number, prefixes in enumerate((("", "t"), ("t", ""), ("", ""), ("t", "t"))):
        base, tuned = (gpt2(f"{number}-{k}", k, "transformer." * bool(p)) for k, p in enumerate(prefixes))
        extract(base, tuned, tmp_path / f"delta{number}")
        ours, theirs = tensors_of(base), tensors_of(tuned)
        delta = open_delta(tmp_path / f"delta{number}")
        assert {n.removeprefix("transformer.") for n in delta.names} == set(inner)
        for name in delta.names:
            there = name if name in theirs else next(n for n in theirs if n.endswith(name) or name.endswith(n))
            np.testing.assert_array_equal(delta.read(name), theirs[there] - ours[name])
        for prefix in ("", "transformer."):
            instruct = gpt2(f"{number}-instruct-{bool(prefix)}", 5, prefix)
            graft(instruct, [(delta.path, 1.0)], tmp_path / "out")
            once = graft(instruct, [(open_difference(base, tuned), 1.0)], tmp_path / "once")
            assert once["deltas"][0].keys() == {"base", "tuned", "scale"}
            out, own = tensors_of(tmp_path / "out"), tensors_of(instruct)
            assert bits(out) == bits(tensors_of(tmp_path / "once"))
            for name in inner:
                moved = delta.read(next(n for n in delta.names if n.endswith(name)))
                np.testing.assert_array_equal(out[prefix + name], own[prefix + name] + moved)


def renamed(found: Tensors, before: str, after: str) -> Tensors:
    return {n.replace(before, after, 1) if before else after + n: a for n, a in found.items()}


CODES = {
    "fp8": {"model.layers.0.self_attn.q_proj.weight_scale_inv": np.ones((1, 1), F32)},
    "mxfp4": {
        "model.layers.0.mlp.experts.down_proj_blocks": np.ones((2, 8, 1, 16), np.uint8),
        "model.layers.0.mlp.experts.down_proj_scales": np.ones((2, 8, 1), np.uint8),
    },
}


def test_each_wrong_way_to_save_is_named_with_its_remedy(tmp_path: Path) -> None:
    found, moved = tensors(0, width=16), tensors(1, width=16)
    base = model(tmp_path / "base", found)
    cases: dict[str, tuple[Tensors, type[ShadowError], tuple[str, ...]]] = {
        "compiled": (renamed(moved, "", "_orig_mod."), TensorMissingError, ("torch.compile", "model._orig_mod")),
        "compiled in part": (
            renamed(moved, "layers.0.", "layers.0._orig_mod."),
            *(TensorMissingError, ("torch.compile", "_orig_mod")),
        ),
        "parallel": (renamed(moved, "", "module."), TensorMissingError, ("parallel wrapper", "model.module")),
        "wrapped": (renamed(moved, "", "base_model.model."), TensorMissingError, ("begin with base_model.model.",)),
        "zero": (moved | {Q: np.zeros(0, BF16)}, ShapeMismatchError, (Q, "(8, 16)", "(0,)", "ZeRO-3", "zero_to_fp32")),
        "zero embedding": (moved | {EMBEDDING: np.zeros((0, 16), BF16)}, ShapeMismatchError, (EMBEDDING, "ZeRO-3")),
        "float64": (moved | {Q: moved[Q].astype(np.float64)}, QuantisedError, (Q, "F64", "float64 is not", "BF16")),
        "fp8 with scales": (moved | CODES["fp8"], QuantisedError, ("weight_scale_inv", "dequantised")),
        "mxfp4": (
            moved | CODES["mxfp4"],
            QuantisedError,
            ("down_proj_blocks", "dequantised", "no quantization_config"),
        ),
        "fp8 without": (
            moved | {Q: moved[Q].astype(ml_dtypes.float8_e4m3fn)},
            QuantisedError,
            (Q, "F8_E4M3", "dequantise"),
        ),
        "int8": (moved | {Q: np.ones((8, 16), np.int8)}, QuantisedError, (Q, "I8", "dequantise both")),
        "transposed": (
            moved | {Q: moved[Q].T},
            ShapeMismatchError,
            (Q, "(8, 16)", "(16, 8)", "the model that was tuned"),
        ),
    }
    for case, (tuned, kind, words) in cases.items():
        said = refused(tmp_path, base, model(tmp_path / case, tuned), kind, *words)
        assert "--ignore" not in said, case
    extract(base, model(tmp_path / "tuned", moved), tmp_path / "delta")
    for case in ("fp8 with scales", "mxfp4"):  # a quantised Instruct too
        with pytest.raises(QuantisedError, match=rf"{case}: has .*no quantization_config"):
            graft(tmp_path / case, [(tmp_path / "delta", 1.0)], tmp_path / "no")
    for number, (name, old, new) in enumerate(
        [("steps", np.array([3]), np.array([4])), ("seen", np.array([True]), np.array([False]))]
    ):
        before = model(tmp_path / f"before{number}", found | {name: old})
        after = model(tmp_path / f"after{number}", moved | {name: new})
        said = refused(
            tmp_path, before, after, QuantisedError, name, "a counter or mask", "copy the Base's into the tuned model"
        )
        assert "dequantise" not in said
        extract(before, model(tmp_path / f"same{number}", moved | {name: old}), tmp_path / f"delta{number}")
    extra = {"h.weight": np.zeros((0, 4), BF16)}
    extract(model(tmp_path / "empty", found | extra), model(tmp_path / "empty2", moved | extra), tmp_path / "delta")


def test_the_text_part_of_a_multimodal_model_is_named_as_a_part(tmp_path: Path) -> None:
    inner = {EMBEDDING: (40, 8), Q: (8, 8), NORM: (8,)}
    found = {n: np.ones(s, F32) for n, s in inner.items()}
    whole = renamed(found, "model.", "language_model.model.") | {"vision_tower.x.weight": np.ones((4, 4), F32)}
    both = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    text = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    base = model(tmp_path / "base", whole, **both)
    tuned = model(tmp_path / "tuned", {n: a * 2 for n, a in found.items()}, **text)
    said = refused(
        tmp_path, base, tuned, TensorMissingError, "Gemma3ForConditionalGeneration", "Gemma3ForCausalLM", "part"
    )
    assert "--ignore" not in said
    refused(tmp_path, tuned, base, TensorMissingError, "Gemma3ForConditionalGeneration", "Gemma3ForCausalLM")
