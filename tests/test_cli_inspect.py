"""The looks: the right numbers against a small oracle, JSON that parses, exit codes that say which."""

import json
import shutil
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.cli import main
from shadowft_core.delta import extract
from shadowft_core.graft import graft
from shadowft_core.pair import check_pair
from shadowft_core.weights import open_checkpoint
from shadowft_core.weights.diff import diff
from tests.fixtures.models import Pair, write_model

BF16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
Q, DOWN, NORM = (f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"))
Tensors = dict[str, np.ndarray]


@pytest.fixture
def shadowft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`shadowft("diff", a, b)` gives exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shadowft", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def weights(seed: int = 0, dtype: np.dtype[Any] = BF16) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes = {Q: (600, 500), DOWN: (48, 32), NORM: (32,)}  # the first is larger than a chunk
    return {name: (0.02 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def assert_error(done: tuple[int, str, str], code: int, *parts: str) -> None:
    assert done[0] == code, done
    lines = [line for line in done[2].splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done[2]
    assert all(part in lines[0] for part in parts), lines[0]


# diff


def test_the_same_tensors_are_equal_however_they_are_sharded(tmp_path: Path, shadowft: Any) -> None:
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
    assert "the two are equal" in out


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_the_numbers_are_the_oracles(tmp_path: Path, shadowft: Any, dtype: np.dtype[Any]) -> None:
    before, after = weights(dtype=dtype), weights(dtype=dtype)
    after[Q] = (after[Q].astype(F32) + weights(1, F32)[Q] / 100).astype(dtype)
    after[Q][-1, -1] = 7  # the largest lies in the last chunk
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


def test_layouts_that_differ_are_told_apart(tmp_path: Path, shadowft: Any) -> None:
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


def test_what_is_no_finite_number_is_null(tmp_path: Path, shadowft: Any) -> None:
    before, after = weights(), weights()
    before[DOWN][:] = after[DOWN][:] = 0
    after[DOWN][0, 0] = 1  # relative to a zero tensor
    after[NORM][0] = np.nan
    before[Q][0, 0] = after[Q][0, 0] = np.inf  # equal bits, but the norm is infinite
    after[Q][1, 1] = 3
    a, b = write_model(tmp_path / "a", before), write_model(tmp_path / "b", after)
    code, out, _ = shadowft("diff", a, b, "--json")
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["tensors"]
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


def test_a_sign_of_zero_is_a_difference_of_bits(tmp_path: Path) -> None:
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


def test_what_cannot_be_read_is_no_difference(tmp_path: Path, shadowft: Any) -> None:
    whole, cut = write_model(tmp_path / "whole", weights()), write_model(tmp_path / "cut", weights())
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert_error(shadowft("diff", whole, cut), 3, "cut/model.safetensors", "header describes")
    assert_error(shadowft("diff", whole, tmp_path / "absent"), 3, "absent", "no such folder")
    (tmp_path / "empty").mkdir()
    assert_error(shadowft("diff", tmp_path / "empty", whole, "--json"), 3, "no weights")


def test_an_error_of_the_disk_is_not_exit_code_1(
    tmp_path: Path, shadowft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = write_model(tmp_path / "a", weights()), write_model(tmp_path / "b", weights())

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error", "a/model.safetensors")

    monkeypatch.setattr("shadowft_core.weights.checkpoint.os.preadv", fail)
    assert_error(shadowft("diff", a, b), 3, "a/model.safetensors", "Input/output error")


# receipt


@pytest.fixture
def grafted(tmp_path: Path) -> Path:
    """A graft in bfloat16 of a delta that leaves the norm alone, at a scale that the cast partly loses."""
    base, instruct = weights(0, F32), weights(0)
    tuned = {n: a if n == NORM else a + weights(1, F32)[n] / (50 if n == Q else 500) for n, a in base.items()}
    extract(write_model(tmp_path / "base", base), write_model(tmp_path / "tuned", tuned), tmp_path / "delta")
    write_model(tmp_path / "instruct", instruct)
    graft(tmp_path / "instruct", [(tmp_path / "delta", 0.5)], tmp_path / "out")
    return tmp_path / "out"


def test_the_receipt_tells_what_the_cast_left(grafted: Path, shadowft: Any) -> None:
    code, out, _ = shadowft("receipt", grafted, "--json")
    account = json.loads(out)
    assert code == 0
    assert account["digest"] == open_checkpoint(grafted).digest()
    assert [delta["scale"] for delta in account["deltas"]] == [0.5]
    grafted_names = [row["name"] for row in account["tensors"]]
    before, after = open_checkpoint(grafted.parent / "instruct"), open_checkpoint(grafted)
    base, tuned = open_checkpoint(grafted.parent / "base"), open_checkpoint(grafted.parent / "tuned")
    energies = {}
    for row in account["tensors"]:
        name = row["name"]
        delta = 0.5 * (tuned.read(name) - base.read(name)).astype(np.float64)
        reached = after.read(name).astype(np.float64) - before.read(name).astype(np.float64)
        weight = np.linalg.norm(before.read(name).astype(np.float64))
        energies[name] = 1 - ((reached - delta) ** 2).sum() / (delta**2).sum()
        assert row["delta_norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-4)
        assert row["relative"] == pytest.approx(np.linalg.norm(delta) / weight, rel=1e-4)
        assert row["cosine"] == pytest.approx(
            (delta * reached).sum() / np.linalg.norm(delta) / np.linalg.norm(reached), rel=1e-4
        )
        assert row["energy"] == pytest.approx(energies[name], abs=1e-4)
        assert row["unchanged"] == pytest.approx(((reached == 0) & (delta != 0)).sum() / (delta != 0).sum(), rel=1e-4)
    assert grafted_names == sorted(energies, key=energies.__getitem__) == [DOWN, Q], "the most affected first"
    assert [name for names in account["untouched"].values() for name in names] + grafted_names == [NORM, DOWN, Q]


def test_the_receipt_for_people(grafted: Path, shadowft: Any) -> None:
    code, out, _ = shadowft("receipt", grafted)
    assert code == 0
    assert "2 tensors grafted\n1 untouched, no delta: " in out
    assert out.index("overall") < out.index(f"{DOWN} ") < out.index(f"{Q} ")
    assert str(open_checkpoint(grafted).digest()) in out


def test_a_receipt_at_scale_zero_has_no_retention(grafted: Path, shadowft: Any) -> None:
    graft(grafted.parent / "instruct", [(grafted.parent / "delta", 0.0)], grafted.parent / "zero")
    code, out, _ = shadowft("receipt", grafted.parent / "zero", "--json")
    account = json.loads(out)
    assert code == 0
    assert account["retention"] is None
    assert account["untouched"] == {"scale 0": sorted([Q, DOWN]), "no delta": [NORM]}
    assert "2 untouched, scale 0" in shadowft("receipt", grafted.parent / "zero")[1]


def test_a_folder_that_is_not_grafted_has_no_receipt(grafted: Path, shadowft: Any) -> None:
    assert_error(shadowft("receipt", grafted.parent / "instruct"), 3, "recipe.json", "made by `graft`")
    assert_error(shadowft("receipt", grafted.parent / "absent"), 3, "absent", "made by `graft`")
    record = json.loads((grafted / "receipt.json").read_text())
    for damaged, part in (
        ({**record, "format": 2}, "format 2, 1 is wanted"),
        ({**record, "grafted": {Q: {}}}, "damaged"),
        ({"format": 1}, "damaged"),
    ):
        (grafted / "receipt.json").write_text(json.dumps(damaged))
        assert_error(shadowft("receipt", grafted, "--json"), 3, "receipt.json", part)


# pair


def words_of(pair: Pair) -> tuple[object, ...]:
    return "pair", "--full", "--base", pair.base, "--instruct", pair.instruct


def test_a_good_pair(tiny_llama_pair: Pair, shadowft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = check_pair(tiny_llama_pair.base, tiny_llama_pair.instruct)
    code, out, _ = shadowft(*words_of(tiny_llama_pair), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["sigma"] == expected["sigma"]
    assert found["verdict"] == "ok"
    base = {"ref": str(tiny_llama_pair.base), "label": "", "digest": expected["base"]["digest"]}
    assert found["base"] == base
    code, out, _ = shadowft(*words_of(tiny_llama_pair))
    assert code == 0
    for text in ("verdict: ok", f"sigma {expected['sigma']['overall']:.5f}", "layer 1", "q_proj"):
        assert text in out
    assert not list(tmp_path.iterdir()), "a look writes nothing"


def test_a_warning_names_its_reason_and_passes(tiny_llama_pair: Pair, shadowft: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama_pair.base, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").unlink()
    code, out, _ = shadowft(*words_of(Pair(tmp_path / "base", tiny_llama_pair.instruct)))
    assert code == 0
    assert "verdict: warn\n  the vocabularies were not compared" in out


def test_a_refused_pair_is_exit_code_4_and_json_all_the_same(tiny_llama_pair: Pair, shadowft: Any) -> None:
    swapped = Pair(tiny_llama_pair.instruct, tiny_llama_pair.base)
    done = shadowft(*words_of(swapped), "--json")
    assert_error(done, 4, "may not be paired", "swapped")
    found = json.loads(done[1])
    assert found["verdict"] == "refuse"
    assert "swapped" in found["reasons"][0]
    done = shadowft(*words_of(swapped))
    assert_error(done, 4, "swapped")
    assert done[1] == ""


def test_a_reference_that_is_none(tiny_llama_pair: Pair, shadowft: Any) -> None:
    done = shadowft("pair", "--base", "absent", "--instruct", tiny_llama_pair.instruct, "--json")
    assert_error(done, 3, "absent", "no such folder")
    assert done[1] == ""


@pytest.mark.parametrize("verb", ["pair", "receipt", "diff"])
def test_help_has_an_example(verb: str, shadowft: Any) -> None:
    code, out, _ = shadowft(verb, "--help")
    assert code == 0
    assert f"Example: shadowft {verb} " in out
