"""Low-rank deltas: the smallest rank within the budget, the measured error, the same bits twice."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from shadowft_core.cli import app
from shadowft_core.delta import Delta, extract, open_delta
from shadowft_core.errors import ParamsError
from shadowft_core.weights import open_checkpoint, open_safetensors
from tests.fixtures.adapters import adapt
from tests.fixtures.models import Pair, write_model

BF16 = np.dtype(ml_dtypes.bfloat16)


def falling(rows: int, columns: int, seed: int) -> np.ndarray:
    """A float32 matrix with singular values 1, 1/2, 1/4 ... on noise of 1e-6."""
    noise = np.random.default_rng(seed)
    left = np.linalg.qr(noise.standard_normal((rows, 12)))[0]
    right = np.linalg.qr(noise.standard_normal((columns, 12)))[0]
    whole = left * 0.5 ** np.arange(12) @ right.T + 1e-6 * noise.standard_normal((rows, columns))
    return np.asarray(whole, np.float32)


NOISE = np.random.default_rng(0)
BASE = {
    "wide": NOISE.standard_normal((90, 1500)).astype(BF16),
    "tall": NOISE.standard_normal((1300, 70)).astype(BF16),
    "full": NOISE.standard_normal((40, 30)).astype(BF16),
    "experts": NOISE.standard_normal((3, 20, 30)).astype(BF16),
    "norm": NOISE.standard_normal(30).astype(BF16),
    "still": NOISE.standard_normal((30, 40)).astype(BF16),
}
MOVED = {
    "wide": falling(90, 1500, 1),
    "tall": falling(1300, 70, 2),
    "full": 0.01 * NOISE.standard_normal((40, 30)).astype(np.float32),
    "experts": 0.01 * NOISE.standard_normal((3, 20, 30)).astype(np.float32),
    "norm": 0.01 * NOISE.standard_normal(30).astype(np.float32),
}
TUNED = {name: array.astype(np.float32) + MOVED.get(name, np.float32(0)) for name, array in BASE.items()}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_model(tmp_path / "base", BASE), write_model(tmp_path / "tuned", TUNED)


def norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64)))


@pytest.mark.parametrize("budget", [0.5, 0.05, 0.001, 1e-5])
def test_every_tensor_is_within_the_budget_at_the_smallest_rank(
    folders: tuple[Path, Path], tmp_path: Path, budget: float
) -> None:
    facts = extract(*folders, tmp_path / "delta", lowrank=budget)
    extract(*folders, tmp_path / "exact")
    dense = open_safetensors(tmp_path / "exact" / "dense.safetensors")
    sizes = {name: dense.info(name).nbytes for name in MOVED}
    delta = open_delta(tmp_path / "delta")
    lost = total = 0.0
    for name in MOVED:
        exact = TUNED[name] - BASE[name].astype(np.float32)
        entry = delta.certificate["tensors"][name]
        error = norm(exact - delta.read(name)) / norm(exact)
        lost, total = lost + (error * norm(exact)) ** 2, total + norm(exact) ** 2
        if entry["form"] == "factors":
            rank, (rows, columns) = entry["rank"], exact.shape
            assert error <= budget
            assert entry["error"] == pytest.approx(error, rel=1e-6)
            assert entry["scaling"] == 1
            assert entry["norm"] == pytest.approx(norm(delta.read(name)), rel=1e-6)
            values = np.linalg.svd(exact.astype(np.float64), compute_uv=False)
            nearest = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1]) / norm(exact)
            assert nearest[rank - 1] > budget, "one less would leave out more than the budget"
            # The error is the smallest for the rank, apart from rounding the factors to float32 (about 1e-7).
            assert error == pytest.approx(nearest[rank], rel=1e-6, abs=2e-7)
            assert 4 * rank * (rows + columns) < sizes[name], "bytes"
        else:
            np.testing.assert_array_equal(delta.read(name), exact)
    forms = {name: delta.certificate["tensors"][name]["form"] for name in MOVED}
    assert forms["experts"] == forms["norm"] == "frames", "no matrices"
    assert forms["wide"] == forms["tall"] == ("factors" if budget > 1e-4 else "frames")
    assert forms["full"] == ("factors" if budget == 0.5 else "frames"), "noise has no small factors that are near"
    assert "still" not in delta.names
    assert delta.kind == facts["kind"] == "lowrank"
    assert facts["error"] == pytest.approx(np.sqrt(lost / total), rel=1e-6, abs=1e-9)
    assert delta.certificate["lowrank"] == {"budget": budget, "error": facts["error"]}


def ranks(delta: Delta) -> dict[str, int]:
    return {n: e["rank"] for n, e in delta.certificate["tensors"].items() if e["form"] == "factors"}


def test_the_same_inputs_give_the_same_bits(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for out in ("one", "two"):
        extract(*folders, tmp_path / out, lowrank=0.05)
    files = [{f.name: f.read_bytes() for f in (tmp_path / out).iterdir()} for out in ("one", "two")]
    assert files[0] == files[1]
    assert set(files[0]) == {"delta.json", "dense.safetensors", "factors.safetensors", "base.safetensors"}


def test_the_sign_of_the_factors_is_fixed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The sign of a singular vector is arbitrary: its largest entry is made positive."""
    from safetensors.numpy import load_file

    extract(*folders, tmp_path / "delta", lowrank=0.001)
    stored = load_file(tmp_path / "delta" / "factors.safetensors")
    for vectors in (stored["wide.lora_B"], stored["tall.lora_A"].T):
        assert vectors.shape[1] > 5
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-6)
        assert (vectors.max(axis=0) == np.abs(vectors).max(axis=0)).all()


def test_an_adapter_is_merged_before_it_is_approximated(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    adapt(tiny_llama_pair.base, tmp_path / "adapter", r=6, use_dora=True, target_modules=["up_proj", "down_proj"])
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "exact")
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "delta", lowrank=0.4)
    exact, delta = open_delta(tmp_path / "exact"), open_delta(tmp_path / "delta")
    assert (exact.kind, delta.kind) == ("dense", "lowrank")
    assert set(ranks(delta)) == set(exact.names), "every one of them fits"
    for name in exact.names:
        assert norm(exact.read(name) - delta.read(name)) <= 0.4 * norm(exact.read(name))


def test_plain_lora_keeps_at_most_its_rank(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    adapt(tiny_llama_pair.base, tmp_path / "adapter", r=4)
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "delta", lowrank=1e-5)
    found = ranks(open_delta(tmp_path / "delta"))
    assert set(found.values()) == {4}
    before = open_checkpoint(tiny_llama_pair.base)
    assert set(found) == {n for n in before.names if n.endswith("_proj.weight")}
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "kept", lowrank=1e-9)
    kept, exact = open_delta(tmp_path / "kept"), tmp_path / "exact"
    extract(tiny_llama_pair.base, tmp_path / "adapter", exact)
    assert kept.certificate["tensors"] == open_delta(exact).certificate["tensors"], "float32 says no more: left exact"
    assert kept.certificate["lowrank"]["error"] == 0


@pytest.mark.parametrize("budget", [0, 1, -0.1, 1.5, float("nan")])
def test_a_budget_out_of_range_is_refused(folders: tuple[Path, Path], tmp_path: Path, budget: float) -> None:
    with pytest.raises(ParamsError, match=f"lowrank {budget}: .*above 0 and below 1"):
        extract(*folders, tmp_path / "delta", lowrank=budget)
    assert not list(tmp_path.glob("*delta*"))


def test_the_verb_prints_what_it_made(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def run(out: str, *options: str) -> Any:
        return CliRunner().invoke(
            app,
            ["extract", "--base", str(folders[0]), "--tuned", str(folders[1]), "--out", str(tmp_path / out), *options],
        )

    plain = run("plain")
    assert plain.exit_code == 0
    assert "kind dense, tensors: 5 frames; " in plain.stdout
    lowered = run("lowered", "--lowrank", "0.05", "--json")
    facts = json.loads(lowered.stdout)
    size = sum(file.stat().st_size for file in (tmp_path / "lowered").iterdir())
    assert (facts["delta_kind"], facts["tensors"], facts["bytes"]) == ("lowrank", {"factors": 2, "frames": 3}, size)
    assert 0 < facts["error"] <= 0.05
    assert size < sum(file.stat().st_size for file in (tmp_path / "plain").iterdir()) / 3
