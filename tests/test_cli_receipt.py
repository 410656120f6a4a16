"""The verb `receipt`: its numbers against a small oracle, its JSON, its text."""

import json
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.delta import extract
from shadowft_core.grafting import graft
from shadowft_core.grafting.receipt import read_receipt
from shadowft_core.weights import open_checkpoint
from tests.fixtures.cli import Shadowft
from tests.fixtures.models import write_model
from tests.test_cli_diff import DOWN, F32, NORM, Q, weights


@pytest.fixture
def grafted(tmp_path: Path) -> Path:
    """A graft in bfloat16 of a delta without the norm, at a scale so small that rounding loses part of it."""
    base, instruct = weights(0, F32), weights(0)
    tuned = {n: a if n == NORM else a + weights(1, F32)[n] / (50 if n == Q else 500) for n, a in base.items()}
    extract(write_model(tmp_path / "base", base), write_model(tmp_path / "tuned", tuned), tmp_path / "delta")
    write_model(tmp_path / "instruct", instruct)
    graft(tmp_path / "instruct", [(tmp_path / "delta", 0.5)], tmp_path / "out")
    return tmp_path / "out"


def test_the_receipt_measures_what_rounding_kept(grafted: Path, shadowft: Shadowft) -> None:
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


def test_the_receipt_is_printed_as_text(grafted: Path, shadowft: Shadowft) -> None:
    code, out, _ = shadowft("receipt", grafted)
    assert code == 0
    assert "2 tensors grafted\n1 untouched, no delta: " in out
    assert out.index("overall") < out.index(f"{DOWN} ") < out.index(f"{Q} ")
    assert str(open_checkpoint(grafted).digest()) in out


def test_a_receipt_at_scale_zero_has_no_retention(grafted: Path, shadowft: Shadowft) -> None:
    graft(grafted.parent / "instruct", [(grafted.parent / "delta", 0.0)], grafted.parent / "zero")
    code, out, _ = shadowft("receipt", grafted.parent / "zero", "--json")
    account = json.loads(out)
    assert code == 0
    assert account["retention"] is None
    assert account["untouched"] == {"scale 0": sorted([Q, DOWN]), "no delta": [NORM]}
    assert "2 untouched, scale 0" in shadowft("receipt", grafted.parent / "zero")[1]


def test_tensors_without_loss_are_listed_by_relative_size_and_a_zero_weight_has_none(tmp_path: Path) -> None:
    """All weights are integers, so float32 loses nothing."""
    base = {n: 64 * np.rint(4000 * a).astype(F32) for n, a in weights(0, F32).items()}
    tuned = {n: a * F32.type(1 + (2 if n == DOWN else 1) / 64) for n, a in base.items()}
    for name, tensors in {"base": base, "instruct": base | {NORM: np.zeros(32, F32)}, "tuned": tuned}.items():
        write_model(tmp_path / name, tensors)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    graft(tmp_path / "instruct", [(tmp_path / "delta", 1.0)], tmp_path / "out")
    rows = read_receipt(tmp_path / "out")["tensors"]
    assert [(row["name"], row["energy"]) for row in rows] == [(DOWN, 1), (Q, 1), (NORM, 1)]
    assert [row["relative"] for row in rows] == [pytest.approx(1 / 32, rel=1e-5), pytest.approx(1 / 64, rel=1e-5), None]


def test_a_folder_that_is_not_grafted_has_no_receipt(grafted: Path, shadowft: Shadowft) -> None:
    shadowft("receipt", grafted.parent / "instruct").refused(3, "recipe.json", "made by `graft`")
    shadowft("receipt", grafted.parent / "absent").refused(3, "absent", "made by `graft`")
    recipe = json.loads((grafted / "recipe.json").read_text())
    (grafted / "recipe.json").write_text(json.dumps({**recipe, "format": 2}))
    shadowft("receipt", grafted).refused(3, "recipe.json: format: Input should be 1, found 2")
    (grafted / "recipe.json").write_text(json.dumps(recipe))
    record = json.loads((grafted / "receipt.json").read_text())
    for damaged, part in (
        ({**record, "format": 2}, "format: Input should be 1, found 2"),
        ({**record, "grafted": {Q: {}}}, "weight_norm is missing"),
        ({"format": 1}, "is missing"),
    ):
        (grafted / "receipt.json").write_text(json.dumps(damaged))
        shadowft("receipt", grafted, "--json").refused_as_json(3, "CheckpointError", "receipt.json", part)
