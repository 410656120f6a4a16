"""Several deltas: sum, TIES and DARE against oracles in memory, scales by pattern, the command line."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.cli import main
from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import GraftError, ShadowError, ZeroDeltaError
from shadowft_core.files import write_json_atomically
from shadowft_core.grafting import (
    Merge,
    Options,
    chosen,
    graft,
    grafted_tensors,
    options_of,
)
from shadowft_core.grafting.merge_rules import kept_by_chance, threshold
from shadowft_core.params import Graft
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import write_model
from tests.test_graft import BF16, F16, F32, Q, Tensors, bits, make, noise, refused, tensors_of

DOWN = "model.layers.1.mlp.down_proj.weight"
SCALES = (0.5, 0.25, -0.3)


@pytest.fixture(scope="module", params=[BF16, F16, F32], ids=str)
def three(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """An Instruct in two shards and three deltas of one Base; the third has no q_proj."""
    folder = tmp_path_factory.mktemp("three")
    base, instruct, _ = make(request.param)
    write_model(folder / "base", base)
    write_model(folder / "instruct", instruct, 2)
    for number in range(3):
        tuned = {n: (a.astype(F32) + noise(7 + number, 0.001)[n]).astype(request.param) for n, a in base.items()}
        if number == 2:
            tuned[Q] = base[Q]
        extract(folder / "base", write_model(folder / f"tuned{number}", tuned), folder / f"delta{number}")
    return folder / "instruct", [folder / f"delta{number}" for number in range(3)]


def deltas_of(folders: Sequence[Path], name: str) -> list[np.ndarray | None]:
    opened = [open_delta(folder) for folder in folders]
    return [delta.read(name) if name in delta.names else None for delta in opened]


def cast_sum(instruct: Path, added: Mapping[str, np.ndarray]) -> Tensors:
    return {n: (a.astype(F32) + added[n]).astype(a.dtype) for n, a in tensors_of(instruct).items()}


def summed(parts: Sequence[np.ndarray]) -> np.ndarray:
    total = parts[0].copy()
    for part in parts[1:]:
        total = total + part
    return total


@pytest.mark.parametrize("workers", [1, 2])
def test_deltas_sum_in_their_order_before_the_one_rounding(
    three: tuple[Path, list[Path]], tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowft_core.files.ordered_map.WORKERS", workers)
    instruct, folders = three
    expected = {
        name: summed([F32.type(s) * d for s, d in zip(SCALES, deltas_of(folders, name), strict=True) if d is not None])
        for name in tensors_of(instruct)
    }
    recipe = graft(instruct, list(zip(folders, SCALES, strict=True)), tmp_path / "out")
    assert bits(tensors_of(tmp_path / "out")) == bits(cast_sum(instruct, expected))
    assert recipe["digest"] == open_checkpoint(tmp_path / "out").digest()


def ties_oracle(parts: Sequence[np.ndarray], scales: Sequence[float], density: float) -> np.ndarray:
    """Trim, elect, merge, as in section 4 of the paper, with each task vector scaled before the election."""
    trimmed = []
    for part, scale in zip(parts, scales, strict=True):
        magnitudes = np.sort(np.abs(part).ravel())[::-1]
        least = magnitudes[max(1, round(density * part.size)) - 1]
        trimmed.append(np.where(np.abs(part) >= least, F32.type(scale) * part, F32.type(0)))
    sign = np.sign(summed(trimmed))
    agreeing = [np.where((np.sign(part) == sign) & (sign != 0), part, F32.type(0)) for part in trimmed]
    count = sum((part != 0).astype(F32) for part in agreeing)
    return summed(agreeing) / np.maximum(count, F32.type(1))


@pytest.mark.parametrize("density", [0.2, 0.73, 1.0])
def test_ties_equals_its_oracle(three: tuple[Path, list[Path]], density: float) -> None:
    instruct, folders = three
    expected = {}
    for name in tensors_of(instruct):
        given = [(d, s) for d, s in zip(deltas_of(folders, name), SCALES, strict=True) if d is not None]
        expected[name] = ties_oracle([d for d, _ in given], [s for _, s in given], density)
    options = Options(merge=Merge("ties", density))
    found = dict(grafted_tensors(instruct, list(zip(folders, SCALES, strict=True)), options))
    assert bits(found) == bits(cast_sum(instruct, expected))


@pytest.mark.parametrize("seed", range(3))
def test_the_trimming_threshold_is_the_exact_kth_magnitude(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((70, 4000)) * 10.0 ** rng.integers(-9, 0, (70, 1))).astype(F32).ravel()
    values[rng.random(values.shape) < 0.3] = values[0]  # many equal ones
    start = write_model(tmp_path / "base", {"w": np.zeros_like(values)})
    extract(start, write_model(tmp_path / "tuned", {"w": values}), tmp_path / "delta")
    ordered = np.sort(np.abs(values))[::-1]
    for density in (1e-9, 0.001, 0.2, 0.5, 0.999, 1.0):
        expected = ordered[max(1, round(density * values.size)) - 1]
        assert threshold(open_delta(tmp_path / "delta"), "w", density) == expected


def chance(seed: int, digest: str, name: str, size: int, density: float) -> np.ndarray:
    """The whole Philox stream of a tensor at once."""
    key = hashlib.sha256(f"{seed}\0{digest}\0{name}".encode()).digest()[:16]
    stream = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(size)
    return stream <= np.uint64(int(density * 2.0**64))


@pytest.mark.parametrize("workers", [1, 2])
def test_dare_equals_its_oracle_for_any_chunks_and_threads(
    three: tuple[Path, list[Path]], tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadowft_core.files.ordered_map.WORKERS", workers)
    instruct, folders = three
    expected = {}
    for name, weights in tensors_of(instruct).items():
        given = []
        for folder, delta, scale in zip(folders, deltas_of(folders, name), SCALES, strict=True):
            if delta is not None:
                kept = chance(5, open_delta(folder).digest, name, weights.size, 0.3).reshape(weights.shape)
                assert abs(np.mean(kept) - 0.3) < 6 * np.sqrt(0.21 / weights.size)
                given.append(np.where(kept, F32.type(scale / 0.3) * delta, F32.type(0)))
        expected[name] = summed(given)
    deltas = list(zip(folders, SCALES, strict=True))
    graft(instruct, deltas, tmp_path / "out", Options(merge=Merge("dare", 0.3, 5)))
    # Equal values: a dropped entry may be a zero of either sign, which a weight of zero would show.
    for name, array in cast_sum(instruct, expected).items():
        np.testing.assert_array_equal(tensors_of(tmp_path / "out")[name], array)


def test_dare_draws_the_same_entries_in_parts_of_any_size() -> None:
    """The generator counts blocks of four; a part may start inside one. Each tensor and delta has its own draws."""
    keep = kept_by_chance("sha256:a", "w", 0.5, 3)
    whole = keep(0, 101)
    assert bytes(whole) == bytes(np.concatenate([keep(0, 1), keep(1, 6), keep(7, 94)]))
    others = [("sha256:b", "w", 3), ("sha256:a", "v", 3), ("sha256:a", "w", 4)]
    for digest, tensor, seed in others:
        assert bytes(kept_by_chance(digest, tensor, 0.5, seed)(0, 101)) != bytes(whole)


def test_dare_keeps_the_mean_and_depends_on_its_seed(three: tuple[Path, list[Path]]) -> None:
    instruct, folders = three
    whole = open_delta(folders[0]).read(Q).astype(np.float64)
    results = [
        dict(grafted_tensors(instruct, [(folders[0], 1.0)], Options(dtype="float32", merge=Merge("dare", 0.5, seed))))
        for seed in (0, 0, 1)
    ]
    assert bits(results[0]) == bits(results[1]) != bits(results[2])
    moved = (results[0][Q] - tensors_of(instruct)[Q].astype(F32)).astype(np.float64)
    # <dropped, whole> / |whole|^2 has mean 1 and, for gaussian entries, variance 3 (1 - p) / (p n), here p = 0.5.
    assert (moved * whole).sum() / (whole**2).sum() == pytest.approx(1, abs=6 * np.sqrt(3 / whole.size))


def test_an_invalid_merge_is_refused(three: tuple[Path, list[Path]]) -> None:
    instruct, folders = three
    refused(
        GraftError,
        "ties needs two deltas or more, found 1",
        instruct,
        [(folders[0], 1.0)],
        merge=Merge("ties", 0.2),
    )
    for arguments, message in [
        (("mean",), "merge rule 'mean'; expected one of sum, ties, dare"),
        (("sum", 0.5), "sum takes no density"),
        (("ties",), "ties with density None"),
        (("ties", 1.5), "ties with density 1.5"),
        (("dare", float("nan"), 1), "dare with density nan"),
        (("dare", 0.5), "dare with seed None"),
        (("dare", 0.5, -1), "dare with seed -1"),
        (("ties", 0.5, 3), "ties with seed 3"),
    ]:
        with pytest.raises(GraftError, match=message):
            Merge(*arguments)
    refused(GraftError, "the same delta as", instruct, [(folders[0], 1.0), (folders[0], 0.5)])


def test_scales_by_pattern_replace_the_scale_of_a_delta(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    instruct, folders = three
    chosen = {n: 0.4 if "mlp" in n else 0.7 for n in tensors_of(instruct)} | {DOWN: 0.0}
    expected = {
        name: summed([F32.type(chosen[name]) * d for d in deltas_of(folders[:2], name) if d is not None])
        for name in chosen
        if name != DOWN
    } | {DOWN: np.float32(-0.0)}
    options: dict[str, Any] = {"scale_for": [("*mlp*", 0.4), ("*down_proj*", 0.0)]}
    recipe = graft(instruct, [(folders[0], 0.7), (folders[1], 0.7)], tmp_path / "out", Options(**options))
    assert bits(tensors_of(tmp_path / "out")) == bits(cast_sum(instruct, expected))
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    assert receipt["untouched"] == {DOWN: "scale 0"}
    assert recipe["scale_for"] == [["*mlp*", 0.4], ["*down_proj*", 0.0]]
    refused(
        GraftError,
        r"scale pattern '\*nowhere\*' matches none .*a glob of whole names",
        instruct,
        [(folders[0], 1.0)],
        scale_for=[("*nowhere*", 1.0)],
    )
    refused(GraftError, "scale nan for", instruct, [(folders[0], 1.0)], scale_for=[("*", float("nan"))])


@pytest.mark.parametrize("merge", [Merge(), Merge("ties", 0.4), Merge("dare", 0.4, 9)], ids=lambda merge: merge.rule)
def test_a_recipe_repeats_a_merge(three: tuple[Path, list[Path]], tmp_path: Path, merge: Merge) -> None:
    instruct, folders = three
    deltas = list(zip(folders[:2], SCALES, strict=False))
    options = Options(["*proj*"], "float32", merge, scale_for=[("*q_proj*", 0.1)])
    first = graft(instruct, deltas, tmp_path / "one", options)
    stored = json.loads((tmp_path / "one" / "recipe.json").read_bytes())
    assert stored == first
    assert graft(instruct, deltas, tmp_path / "two", options_of(stored)) == first
    with pytest.raises(GraftError, match=r"options: unknown field merge.colour"):
        options_of(stored | {"merge": {"rule": "sum", "colour": 1}})
    with pytest.raises(GraftError, match="waiver 'all'; expected one of onto-base, unrelated"):
        graft(instruct, deltas, tmp_path / "no", options_of(stored | {"waivers": ["all"]}))


def test_a_delta_outside_the_scope_is_refused(three: tuple[Path, list[Path]]) -> None:
    instruct, folders = three
    refused(
        ZeroDeltaError,
        "delta2: the scope matches none of the delta's 4 tensors",
        instruct,
        [(folders[0], 1.0), (folders[2], 1.0)],
        scope=[f"*{Q}"],
    )


def test_the_command_line_grafts_several_deltas(
    three: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instruct, folders = three

    def graft_verb(*words: object) -> int:
        params = Path(__file__).parent.parent / "params.yaml"
        fixed = ("graft", "--instruct", instruct, "--out", tmp_path / "out", "--params", params)
        monkeypatch.setattr(sys, "argv", ["shadowft", *map(str, (*fixed, *words))])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    several = ("--delta", f"{folders[0]}@0.5", "--delta", f"{folders[1]}@0.25", "--merge", "ties", "--density", "0.2")
    assert graft_verb(*several, "--scope", "*proj*", "--scope", "*norm*", "--scale-for", "*norm*=0.1", "--json") == 0
    recipe = json.loads(capsys.readouterr().out)
    assert recipe == json.loads((tmp_path / "out" / "recipe.json").read_bytes()) | {"kind": "recipe"}
    assert [part["scale"] for part in recipe["deltas"]] == [0.5, 0.25]
    assert recipe["merge"] == {"rule": "ties", "density": 0.2}
    assert (recipe["scope"], recipe["scale_for"], recipe["waivers"]) == (["*proj*", "*norm*"], [["*norm*", 0.1]], [])
    assert (
        graft_verb("--delta", folders[0], "--scale", "1", "--scope", "all", "--scope", "*proj*") == GraftError.exit_code
    )
    assert "--scope all cannot be combined" in capsys.readouterr().err


def test_params_choose_the_scale_of_a_single_delta(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    instruct, folders = three
    sweep = tmp_path / "sweep.json"
    write_json_atomically(sweep, {"format": 1, "scale": 0.5, "scope": "linear"})

    def scales(*given: float | None, scale: float | None = None, scope: Sequence[str] = ()) -> Any:
        deltas = list(zip(folders, given, strict=False))
        scaled, options = chosen(deltas, Options(), Graft(), sweep, scale, scope)
        made = graft(instruct, scaled, tmp_path / "out", options)
        return [part["scale"] for part in made["deltas"]], made["scope"]

    assert scales(None) == ([0.5], "linear")
    assert scales(0.1) == ([0.1], "linear")
    assert scales(0.1, None, scale=0.3, scope=["all"]) == ([0.1, 0.3], "all")
    with pytest.raises(ShadowError, match="params and sweep set the scale of a single delta"):
        scales(0.1, None)
