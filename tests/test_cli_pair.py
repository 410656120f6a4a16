"""The verb `pair`: its text, its JSON, and the class and exit code of every refusal."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.pair import check_pair
from shadowft_core.weights import INDEX, open_checkpoint, write_checkpoint
from tests.fixtures.cli import Ended, Shadowft
from tests.fixtures.models import Pair, save_tokenizer, write_model

Tensors = dict[str, np.ndarray]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def pair_verb(shadowft: Shadowft) -> Callable[..., Ended]:
    """`pair_verb(pair, "--full")` runs `shadowft pair` on a pair."""
    return lambda pair, *options: shadowft("pair", "--base", pair.base, "--instruct", pair.instruct, *options)


@pytest.fixture
def pair(tiny_llama_pair: Pair, tmp_path: Path) -> Pair:
    """A copy that a test may change."""
    copy = Pair(tmp_path / "base", tmp_path / "instruct")
    shutil.copytree(tiny_llama_pair.base, copy.base)
    shutil.copytree(tiny_llama_pair.instruct, copy.instruct)
    return copy


def test_the_output_states_that_sigma_is_from_a_sample(pair_verb: Any, tmp_path: Path) -> None:
    pair = Pair(tmp_path / "base", tmp_path / "instruct")
    noise = np.random.default_rng(0)
    base = (0.02 * noise.standard_normal((900, 500))).astype(np.float32)
    for folder, array in ((pair.base, base), (pair.instruct, base + np.float32(0.0002))):
        write_model(folder, {Q: array.astype(ml_dtypes.bfloat16)})
        save_tokenizer(folder, template=folder == pair.instruct)
    code, out, _ = pair_verb(pair)
    assert code == 0
    assert "sampled, 32,768 of 450,000 weights" in out
    assert "overall, sum|B - I| / (sum|B| + sum|I|)" in out
    assert "sha256:" not in out
    assert "llama, 1 tensors, 450,000 weights in BF16, head tied, no chat template" in out
    code, out, _ = pair_verb(pair, "--full")
    assert code == 0
    assert "all 450,000 weights read" in out
    assert open_checkpoint(pair.base).digest() in out
    found = json.loads(pair_verb(pair, "--json")[1])
    assert found["sampled"] is True
    assert found["sigma"]["weights"] == {"read": 32768, "of": 450_000}
    assert "digest" not in found["base"]


def test_each_aggregation_names_its_source(pair_verb: Any, pair: Pair) -> None:
    code, out, _ = pair_verb(pair, "--aggregations", "--full")
    assert code == 0
    lines = [line for line in out.splitlines() if " as " in line]
    assert len(lines) == 3
    for line, source in zip(lines, ("sigma_v2.py", "merge.py", "replication on gemma-3-4b"), strict=True):
        assert source in line
    found = json.loads(pair_verb(pair, "--aggregations", "--json")[1])["sigma"]["aggregations"]
    assert set(found) == {"mean_over_layer_tensors", "ratio_over_all_tensors", "ratio_over_language_model"}
    assert f"sigma {found['mean_over_layer_tensors']['value']:.5f} as unweighted mean" in lines[0]


def change_weights(folder: Path, change: Callable[[Tensors], None]) -> None:
    model = open_checkpoint(folder)
    tensors = {name: model.read(name) for name in model.names}
    change(tensors)
    (folder / "model.safetensors").unlink()
    write_checkpoint(folder, tensors.items())


def swap(pair: Pair) -> None:
    pair.base.rename(pair.base.with_name("kept"))
    pair.instruct.rename(pair.base)
    pair.base.with_name("kept").rename(pair.instruct)


def copy_instruct(pair: Pair) -> None:
    shutil.rmtree(pair.base)
    shutil.copytree(pair.instruct, pair.base)


def unrelate(pair: Pair) -> None:
    change_weights(
        pair.instruct, lambda tensors: tensors.update({n: a[::-1, ::-1] for n, a in tensors.items() if a.ndim == 2})
    )


def poison(pair: Pair) -> None:
    change_weights(pair.instruct, lambda tensors: tensors[Q].__setitem__((0, 0), np.inf))


def to_fp8(pair: Pair) -> None:
    change_weights(pair.base, lambda tensors: tensors.update({Q: tensors[Q].astype(ml_dtypes.float8_e4m3fn)}))


def to_int8(pair: Pair) -> None:
    change_weights(pair.base, lambda tensors: tensors.update({Q: tensors[Q].astype(np.int8)}))


def quantise(pair: Pair) -> None:
    config = json.loads((pair.base / "config.json").read_text())
    (pair.base / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))


def rename(pair: Pair) -> None:
    change_weights(pair.base, lambda tensors: tensors.update({"renamed": tensors.pop(Q)}))


def truncate(pair: Pair) -> None:
    file = pair.base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def point_outside(pair: Pair) -> None:
    names = open_checkpoint(pair.base).names
    (pair.base / "model.safetensors").rename(pair.base.parent / "stolen.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../stolen.safetensors")}
    (pair.base / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("options", [(), ("--full",)], ids=["sampled", "full"])
@pytest.mark.parametrize(
    ("damage", "kind", "code", "part"),
    [
        (swap, "SwappedError", 4, "are Base and Instruct swapped?"),
        (copy_instruct, "SameModelError", 4, "are the same model"),
        (unrelate, "UnrelatedError", 4, "above 0.5"),
        (rename, "PairError", 4, "the first is renamed"),
        (poison, "NotFiniteError", 5, "holds NaN or infinity"),
        (to_fp8, "QuantisedError", 3, "as F8_E4M3"),
        (to_int8, "QuantisedError", 3, "as I8"),
        (quantise, "QuantisedError", 3, "the Base is quantised"),
        (truncate, "CheckpointError", 3, "its header describes"),
        (point_outside, "CheckpointError", 3, "expected a plain *.safetensors file name"),
    ],
)
def test_every_refusal_has_its_class_and_its_code(
    pair_verb: Any,
    pair: Pair,
    options: tuple[str, ...],
    damage: Callable[[Pair], None],
    kind: str,
    code: int,
    part: str,
) -> None:
    damage(pair)
    message = pair_verb(pair, "--json", *options).refused_as_json(code, kind, part)
    pair_verb(pair, *options).refused(code, message)


def test_vision_has_its_own_sigma(pair_verb: Any, tmp_path: Path) -> None:
    pair = Pair(tmp_path / "base", tmp_path / "instruct")
    noise = np.random.default_rng(0)
    base = {name: noise.standard_normal((20, 20)).astype(np.float32) for name in (Q, "visual.blocks.0.qkv.weight")}
    write_model(pair.base, base)
    write_model(pair.instruct, {name: array + np.float32(0.02) for name, array in base.items()})
    save_tokenizer(pair.instruct)
    sigma = check_pair(pair.base, pair.instruct)["sigma"]
    code, out, _ = pair_verb(pair)
    assert code == 0
    expected = f"sigma {sigma['language']:.5f} language model, {sigma['vision']['overall']:.5f} vision"
    assert expected in out
    assert "qkv" not in out


def test_a_good_pair_passes_and_nothing_is_written(
    tiny_llama_pair: Pair, pair_verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = check_pair(tiny_llama_pair.base, tiny_llama_pair.instruct)
    code, out, _ = pair_verb(tiny_llama_pair, "--full", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["sigma"] == expected["sigma"]
    assert found["verdict"] == "ok"
    base = {"ref": str(tiny_llama_pair.base), "label": "", "digest": expected["base"]["digest"]}
    assert found["base"] == base
    code, out, _ = pair_verb(tiny_llama_pair, "--full")
    assert code == 0
    for text in ("verdict: ok", f"sigma {expected['sigma']['overall']:.5f}", "layer 1", "q_proj"):
        assert text in out
    assert not list(tmp_path.iterdir()), "the verb writes nothing"


def test_a_warning_names_its_reason_and_passes(tiny_llama_pair: Pair, pair_verb: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama_pair.base, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").unlink()
    code, out, _ = pair_verb(Pair(tmp_path / "base", tiny_llama_pair.instruct), "--full")
    assert code == 0
    assert "verdict: warn\n  the vocabularies were not compared" in out


def test_a_reference_to_nothing_is_refused(tiny_llama_pair: Pair, shadowft: Shadowft) -> None:
    words = ("pair", "--base", "absent", "--instruct", tiny_llama_pair.instruct)
    shadowft(*words).refused(3, "absent", "no such folder")
    shadowft(*words, "--json").refused_as_json(3, "InputError", "absent", "no such folder")
