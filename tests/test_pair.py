"""Pairing: every refusal by name, sigma by its definition, and a fetch that is complete or absent."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.errors import (
    CheckpointError,
    InputError,
    NotFiniteError,
    PairError,
    QuantisedError,
    SameModelError,
    ShadowError,
    SwappedError,
    UnrelatedError,
)
from shadowft_core.pair import check_pair, fetch, resolve
from shadowft_core.params import Fetch
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import FAMILIES, Pair, shifted, write_model

BF16 = np.dtype(ml_dtypes.bfloat16)
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def pair(tiny_llama_pair: Pair, tmp_path: Path) -> Pair:
    """A copy that a test may change."""
    copy = Pair(tmp_path / "base", tmp_path / "instruct")
    shutil.copytree(tiny_llama_pair.base, copy.base)
    shutil.copytree(tiny_llama_pair.instruct, copy.instruct)
    return copy


def edit(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    from shadowft_core.weights import write_checkpoint

    model = open_checkpoint(folder)
    tensors = {name: model.read(name) for name in model.names}
    change(tensors)
    (folder / "model.safetensors").unlink()
    write_checkpoint(folder, tensors.items())


def test_sigma_is_the_ratio_of_sums(pair: Pair) -> None:
    result = check_pair(pair.base, pair.instruct)
    base, instruct = open_checkpoint(pair.base), open_checkpoint(pair.instruct)
    wide = {n: (base.read(n).astype(np.float64), instruct.read(n).astype(np.float64)) for n in base.names}

    def sigma(*names: str) -> float:
        apart = sum(np.abs(wide[n][0] - wide[n][1]).sum() for n in names)
        return float(apart / sum(np.abs(wide[n][0]).sum() + np.abs(wide[n][1]).sum() for n in names))

    assert result["sigma"]["overall"] == pytest.approx(sigma(*wide), rel=1e-6)
    assert result["sigma"]["layers"]["1"] == pytest.approx(sigma(*[n for n in wide if "layers.1." in n]), rel=1e-6)
    assert result["sigma"]["modules"]["q_proj"] == pytest.approx(sigma(*[n for n in wide if "q_proj" in n]), rel=1e-6)
    assert set(result["sigma"]["layers"]) == {"0", "1"}
    assert result["verdict"] == "ok"
    assert result["reasons"] == []
    assert result["base"]["digest"] == base.digest()
    assert result["tokenizer_digest"] == instruct.tokenizer_digest()


@pytest.mark.parametrize(("size", "reason"), [(0.02, "above 0.1"), (1e-6, "below 0.001")])
def test_an_unusual_sigma_is_a_warning(pair: Pair, size: float, reason: str) -> None:
    shutil.rmtree(pair.instruct)
    shifted(pair.base, pair.instruct, size, seed=5, dtype=np.dtype(np.float32))
    (pair.instruct / "chat_template.jinja").write_text("x")
    result = check_pair(pair.base, pair.instruct)
    assert result["verdict"] == "warn"
    assert len(result["reasons"]) == 1
    assert reason in result["reasons"][0]


@pytest.mark.parametrize(
    ("sigma", "verdict"), [(0.00098, "warn"), (0.00102, "ok"), (0.099, "ok"), (0.101, "warn"), (0.49, "warn")]
)
def test_the_verdict_changes_at_the_thresholds_of_sigma(pair: Pair, sigma: float, verdict: str) -> None:
    scale_to(pair, sigma)
    result = check_pair(pair.base, pair.instruct)
    assert (result["verdict"], result["sigma"]["overall"]) == (verdict, pytest.approx(sigma, rel=1e-3))


def test_a_sigma_just_above_the_limit_is_refused(pair: Pair) -> None:
    scale_to(pair, 0.51)
    with pytest.raises(UnrelatedError, match=r"sigma 0\.51\d* is above 0\.5|above 0\.5"):
        check_pair(pair.base, pair.instruct)


def scale_to(pair: Pair, sigma: float) -> None:
    """Make every weight of the Instruct the Base's times one factor, which gives exactly this sigma."""
    base, factor = open_checkpoint(pair.base), np.float32((1 + sigma) / (1 - sigma))
    scaled = {name: base.read(name).astype(np.float32) * factor for name in base.names}
    rewrite(pair.instruct, lambda tensors: tensors.update(scaled))


def refused(pair: Pair, message: str, kind: type[ShadowError] = PairError) -> str:
    """Require that check and stage refuse in one line and write nothing."""
    with pytest.raises(kind, match=message) as caught:
        check_pair(pair.base, pair.instruct)
    out = pair.base.parent / "out"
    with pytest.raises(kind, match=message):
        fetch(Fetch(base=str(pair.base), instruct=str(pair.instruct)), out)
    assert not out.exists()
    assert not list(out.parent.glob("*.partial"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_swapped_pair_is_refused(pair: Pair) -> None:
    refused(Pair(pair.instruct, pair.base), "no chat template; are Base and Instruct swapped?", SwappedError)


def test_a_model_and_itself_are_refused(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair.instruct, tmp_path / "copy")
    refused(Pair(tmp_path / "copy", pair.instruct), "are the same model, sha256:", SameModelError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="qwen2"), "model_type is 'qwen2' in the Base, 'llama' in the Instruct"),
        (lambda c: c.update(num_attention_heads=8), "num_attention_heads is 8 in the Base, 4 in the Instruct"),
        (lambda c: c.update(hidden_act="gelu"), "hidden_act is 'gelu' in the Base, 'silu'"),
    ],
)
def test_another_architecture_is_refused(pair: Pair, change: Callable[[Any], None], message: str) -> None:
    edit(pair.base / "config.json", change)
    refused(pair, message)


def test_a_quantised_model_is_refused(pair: Pair) -> None:
    edit(pair.base / "config.json", lambda c: c.update(quantization_config={"bits": 4}))
    refused(pair, "the Base is quantised", QuantisedError)


def test_all_reasons_are_in_one_line(pair: Pair) -> None:
    edit(pair.base / "config.json", lambda c: c.update(model_type="qwen2", hidden_act="gelu"))
    (pair.instruct / "chat_template.jinja").unlink()
    line = refused(pair, "may not be paired")
    assert all(word in line for word in ("model_type", "hidden_act", "chat template"))


def test_tensors_that_cannot_be_paired_are_refused(pair: Pair) -> None:
    def rename(tensors: dict[str, np.ndarray]) -> None:
        tensors["renamed.weight"] = tensors.pop(Q)

    def transpose(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].T

    def poison(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q][1, 1] = np.nan

    def quantise(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q] = tensors[Q].astype(ml_dtypes.float8_e4m3fn)

    original = {f.name: f.read_bytes() for f in pair.instruct.iterdir()}

    def widen(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q] = tensors[Q].astype(np.float64)

    def transpose_square(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q] = tensors[Q].T

    cases: list[tuple[Any, str, type[ShadowError]]] = [
        (rename, "1 tensors are only in the Base, the first is .*q_proj.*only in the Instruct.*renamed", PairError),
        (transpose, r"up_proj.weight: \(48, 32\) in the Base, \(32, 48\) in the Instruct", PairError),
        (
            transpose_square,
            r"sigma of .*layers.0.*q_proj.weight is 0\.\d+, above 0.5, .* 1 tensors are",
            UnrelatedError,
        ),
        (poison, "q_proj.weight of .* holds NaN or infinity", NotFiniteError),
        (quantise, "has .*q_proj.weight as F8_E4M3", QuantisedError),
        (widen, "the Instruct has .*q_proj.weight as F64; expected F32, BF16, F16", PairError),
    ]
    for change, message, kind in cases:
        rewrite(pair.instruct, change)
        refused(pair, message, kind)
        (pair.instruct / "model.safetensors").write_bytes(original["model.safetensors"])


def test_tokens_that_only_one_side_has_are_warnings(pair: Pair) -> None:
    def rename_special(tokenizer: Any) -> None:
        tokenizer["added_tokens"][3]["content"] = "<|reserved|>"
        tokenizer["model"]["vocab"].pop("<|bot|>")
        tokenizer["model"]["vocab"]["only_base"] = 60
        tokenizer["model"]["vocab"].pop("word47")

    edit(pair.base / "tokenizer.json", rename_special)
    result = check_pair(pair.base, pair.instruct)
    assert result["verdict"] == "warn"
    text = " ".join(result["reasons"])
    assert "3 is '<|reserved|>' in the Base, '<|bot|>' in the Instruct" in text
    assert "1 token ids are only in the Base, the first is 60 'only_base'" in text
    assert "1 token ids are only in the Instruct, the first is 52 'word47'" in text


def test_a_base_may_lack_a_tokenizer_and_an_instruct_may_not(pair: Pair) -> None:
    (pair.base / "tokenizer.json").unlink()
    assert check_pair(pair.base, pair.instruct)["reasons"] == [
        "the vocabularies were not compared: both need a tokenizer.json"
    ]
    (pair.instruct / "tokenizer.json").unlink()
    refused(pair, "the Instruct has no tokenizer")


def test_another_epsilon_is_a_warning(pair: Pair) -> None:
    edit(pair.base / "config.json", lambda c: c.update(rms_norm_eps=1e-5))
    edit(pair.instruct / "config.json", lambda c: c.update(rms_norm_eps=1e-6))
    assert check_pair(pair.base, pair.instruct)["reasons"] == ["rms_norm_eps is 1e-05 and 1e-06"]


def test_another_rope_is_a_warning_in_either_form(pair: Pair) -> None:
    def older(config: Any) -> None:
        rope = config.pop("rope_parameters", {"rope_theta": 10000.0})
        config["rope_theta"] = rope["rope_theta"]

    edit(pair.base / "config.json", older)
    assert check_pair(pair.base, pair.instruct)["reasons"] == [], "the same rope in an older spelling"
    edit(pair.base / "config.json", lambda c: c.update(rope_theta=5e5))
    assert "500000.0" in check_pair(pair.base, pair.instruct)["reasons"][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_pairs(family_pair: Callable[..., Pair], family: str) -> None:
    made = family_pair(family)
    assert check_pair(made.base, made.instruct)["verdict"] == "ok"


def test_fetch_links_checks_and_pins(pair: Pair, tmp_path: Path) -> None:
    for folder in (pair.base, pair.instruct):
        for name in ("pytorch_model.bin", "modeling.py"):
            (folder / name).write_text("x")
    out = tmp_path / "work" / "pair"
    references = {"base": str(pair.base), "instruct": str(pair.instruct)}
    fetch(Fetch(**references), out)
    record = json.loads((out / "pair.json").read_bytes())
    for role, source in (("base", pair.base), ("instruct", pair.instruct)):
        fetched = open_checkpoint(out / role)
        assert record[role] == {"ref": references[role], "digest": fetched.digest(), "label": ""}
        assert fetched.other_files() == open_checkpoint(source).other_files()
        assert {f.suffix for f in (out / role).iterdir()} <= {".json", ".safetensors", ".jinja"}
        assert os.path.samefile(out / role / "model.safetensors", source / "model.safetensors")
    assert record["format"] == 1
    assert record["verdict"] == "ok"


def test_fetch_again_replaces_an_earlier_result(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "work" / "pair"
    params = Fetch(base=str(pair.base), instruct=str(pair.instruct))
    fetch(params, out)
    first = (out / "pair.json").read_bytes()
    shutil.rmtree(out / "base")
    (out / "pair.json").unlink()
    (out / "stale").write_text("x")
    fetch(params, out)
    assert (out / "pair.json").read_bytes() == first
    assert sorted(f.name for f in out.iterdir()) == ["base", "instruct", "pair.json"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "hf:owner/name",
            r"not pinned; use hf:OWNER/NAME@REVISION with the 40 hex digits .* under Files and versions, History$",
        ),
        ("hf:owner/name@main", "not pinned"),
        ("hf:../name@" + "0" * 40 + "x", "not pinned"),
        ("pico:other", "use pico:base or pico:instruct"),
        ("nowhere/at/all", "no such folder"),
        (__file__, "no such folder"),
    ],
)
def test_an_unknown_reference_is_refused(reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(reference)


def test_an_unsafe_folder_is_refused(pair: Pair, tmp_path: Path) -> None:
    bare = write_model(tmp_path / "bare", {"w": np.zeros(2, BF16)})
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    refused(Pair(bare, pair.instruct), "expected safetensors", CheckpointError)
