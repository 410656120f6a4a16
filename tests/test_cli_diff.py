"""The verb `diff`: its numbers against a small oracle, its JSON, its exit codes."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.weights import open_checkpoint
from shadowft_core.weights.diff import diff
from tests.fixtures.cli import Shadowft
from tests.fixtures.models import write_model

BF16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
Q, DOWN, NORM = (f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"))
Tensors = dict[str, np.ndarray]


def weights(seed: int = 0, dtype: np.dtype[Any] = BF16) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes = {Q: (600, 500), DOWN: (48, 32), NORM: (32,)}  # the first is larger than a chunk
    return {name: (0.02 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def test_the_same_tensors_are_equal_however_they_are_sharded(tmp_path: Path, shadowft: Shadowft) -> None:
    tensors = weights()
    tensors[NORM][3] = np.nan  # the same bits, though NaN != NaN
    one, three = write_model(tmp_path / "one", tensors), write_model(tmp_path / "three", tensors, shards=3)
    code, out, _ = shadowft("diff", one, three, "--json")
    found = json.loads(out)
    assert (code, found["equal"]) == (0, True)
    assert found["first"]["digest"] == found["second"]["digest"] == open_checkpoint(one).digest()
    assert found["tensors"] == {name: {"status": "equal"} for name in tensors}
    code, out, _ = shadowft("diff", one, three)
    assert code == 0
    assert "the models are equal" in out


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_the_numbers_match_the_oracle(tmp_path: Path, shadowft: Shadowft, dtype: np.dtype[Any]) -> None:
    before, after = weights(dtype=dtype), weights(dtype=dtype)
    after[Q] = (after[Q].astype(F32) + weights(1, F32)[Q] / 100).astype(dtype)
    after[Q][-1, -1] = 7  # the largest is in the last chunk
    after[DOWN][5, 6] += dtype.type(0.5)
    code, out, _ = shadowft("diff", write_model(tmp_path / "a", before), write_model(tmp_path / "b", after), "--json")
    found = json.loads(out)
    assert (code, found["equal"]) == (1, False)
    assert found["counts"] == {"equal": 1, "bits": 2, "dtype": 0, "shape": 0, "only first": 0, "only second": 0}
    for name in (Q, DOWN):
        x, y = before[name].astype(np.float64), after[name].astype(np.float64)
        entry = found["tensors"][name]
        assert entry["status"] == "bits"
        assert entry["changed"] == np.count_nonzero(x != y)
        assert entry["max_abs"] == np.abs(y - x).max()
        assert entry["relative"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-12)
    assert found["second"]["digest"] == open_checkpoint(tmp_path / "b").digest()


def test_every_difference_of_layout_has_its_status(tmp_path: Path, shadowft: Shadowft) -> None:
    before, after = weights(), weights()
    before["only.first"] = after["only.second"] = np.ones(3, F32)
    after[Q] = after[Q].astype(F32)
    after[DOWN] = after[DOWN].T
    a, b = write_model(tmp_path / "a", before), write_model(tmp_path / "b", after)
    found = diff(a, b)
    assert {n: e["status"] for n, e in found["tensors"].items()} == {
        "only.first": "only first",
        "only.second": "only second",
        Q: "dtype",
        DOWN: "shape",
        NORM: "equal",
    }
    assert found["tensors"]["only.second"] == {"status": "only second", "first": None, "second": ["F32", [3]]}
    assert found["tensors"][DOWN] == {"status": "shape", "first": ["BF16", [48, 32]], "second": ["BF16", [32, 48]]}
    wider = {"status": "dtype", "first": ["BF16", [600, 500]], "second": ["F32", [600, 500]]}
    assert found["tensors"][Q] == {**wider, "changed": 0, "max_abs": 0.0, "relative": 0.0}
    code, out, _ = shadowft("diff", a, b)
    assert code == 1
    assert all(text in out for text in ("only.first", "only second", "BF16 [48, 32]", "F32 [600, 500]"))


def test_a_number_that_is_not_finite_is_null(tmp_path: Path, shadowft: Shadowft) -> None:
    before, after = weights(), weights()
    before[DOWN][:] = after[DOWN][:] = 0
    after[DOWN][0, 0] = 1  # relative to a zero tensor
    after[NORM][0] = np.nan
    before[Q][0, 0] = after[Q][0, 0] = np.inf  # equal bits, but the norm is infinite
    after[Q][1, 1] = 3
    a, b = write_model(tmp_path / "a", before), write_model(tmp_path / "b", after)
    code, out, _ = shadowft("diff", a, b, "--json")
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["tensors"]
    assert code == 1
    assert found[DOWN] == {"status": "bits", "changed": 1, "max_abs": 1.0, "relative": None}
    assert found[NORM] == {"status": "bits", "changed": 1, "max_abs": None, "relative": None}
    assert found[Q] == {
        "status": "bits",
        "changed": 1,
        "max_abs": abs(3 - float(before[Q][1, 1])),
        "relative": None,
    }
    assert "not finite" in shadowft("diff", a, b)[1]


def test_the_sign_of_a_zero_counts_as_changed(tmp_path: Path) -> None:
    before, after = weights(), weights()
    before[NORM][0], after[NORM][0] = 0.0, -0.0
    found = diff(write_model(tmp_path / "a", before), write_model(tmp_path / "b", after))
    assert not found["equal"]
    assert found["tensors"][NORM] == {"status": "bits", "changed": 1, "max_abs": 0.0, "relative": 0.0}


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    large = np.zeros(12_000_000, F32)
    a, b = write_model(tmp_path / "a", {"w": large}), write_model(tmp_path / "b", {"w": large + F32.type(1)})
    del large
    tracemalloc.start()
    try:
        found = diff(a, b)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["tensors"]["w"]["changed"] == 12_000_000
    assert peak < 12_000_000, f"{peak} bytes for two tensors of 48 MB"


def test_an_unreadable_folder_is_an_error_not_a_difference(tmp_path: Path, shadowft: Shadowft) -> None:
    whole, cut = write_model(tmp_path / "whole", weights()), write_model(tmp_path / "cut", weights())
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    shadowft("diff", whole, cut).refused(3, "cut/model.safetensors", "header describes")
    shadowft("diff", whole, tmp_path / "absent").refused(3, "absent", "no such folder")
    (tmp_path / "empty").mkdir()
    shadowft("diff", tmp_path / "empty", whole, "--json").refused_as_json(3, "CheckpointError", "no weights")


def test_a_disk_error_has_another_exit_code_than_a_difference(
    tmp_path: Path, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = write_model(tmp_path / "a", weights()), write_model(tmp_path / "b", weights())

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error", "a/model.safetensors")

    monkeypatch.setattr("shadowft_core.weights.checkpoint.os.preadv", fail)
    shadowft("diff", a, b).refused(3, "a/model.safetensors", "Input/output error")
