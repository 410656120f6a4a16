"""The stage select: a table of the rule, what candidate.json records, and which sweep files are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.files import file_digest, write_json_atomically
from shadowft_core.params import Sweep
from shadowft_core.selection import Candidate, choose, read_candidate, select
from shadowft_core.sweep import sweep
from tests.fixtures.cli import Shadowft
from tests.fixtures.deltas import noise, write_delta
from tests.fixtures.evaluation import World

ROOT = Path(__file__).parent.parent
Points = list[tuple[float, float, float | None]]
TASKS = {"d": {"role": "domain", "metric": "acc", "n": 100}, "g": {"role": "guard", "metric": "acc", "n": 50}}
TOLERANCE, TIE = 0.02, 0.01
KEPT = [(0.5, 0.4, 0.9), (1.0, 0.8, 0.9)]  # the Instruct has 0.1 and 0.9


def at(scale: float, domain: float, guards: float | None) -> dict[str, Any]:
    return {"scale": scale, "domain": domain, "guards": guards, "tasks": TASKS}


def write_sweep(folder: Path, route: str, points: Points, instruct: tuple[float, float | None] = (0.1, 0.9)) -> Path:
    """A sweep file as `sweep` writes it, with its own choice among these (scale, domain, guards)."""
    curve, untouched = [at(*point) for point in points], at(0.0, *instruct)
    scale, reason = choose(curve, untouched, TOLERANCE, TIE)
    found = {"format": 1, "route": route, "scope": "all", "factors": [], "scale": scale, "curve": curve}
    found |= {"instruct": untouched, "tie": TIE, "items": "sha256:a", "reason": reason}
    write_json_atomically(folder / f"{route}.json", found)
    return folder / f"{route}.json"


def chosen(folder: Path, curves: dict[str, Points], fixed: float | None = None, **instruct: Any) -> Candidate:
    for route, points in curves.items():
        write_sweep(folder, route, points, **instruct)
    return select(folder, curves, TOLERANCE, folder / "candidate.json", fixed)


@pytest.mark.parametrize(
    ("curves", "arm", "scale", "why"),
    [
        # the best arm, whatever its name
        ({"shadow": [(1, 0.5, 0.9)], "direct": [(1, 0.8, 0.9)]}, "direct_scaled", 1, "highest domain score"),
        ({"shadow": [(1, 0.8, 0.9)], "direct": [(1, 0.5, 0.9)]}, "shadow_scaled", 1, "2 of 2 arms keep it within 0.02"),
        ({"shadow": [(1, 0.5, 0.9)], "slow": [(0.5, 0.8, 0.9)]}, "slow_scaled", 0.5, "the Instruct has 0.1"),
        # guards first
        ({"shadow": [(1, 0.5, 0.9)], "direct": [(1, 0.8, 0.87)]}, "shadow_scaled", 1, "1 of 2 arms"),
        ({"shadow": [(1, 0.5, 0.9)], "direct": [(0.5, 0.8, 0.87)]}, "shadow_scaled", 1, "1 of 2 arms"),
        ({"shadow": [(1, 0.5, 0.9)], "direct": [(1, 0.8, 0.88)]}, "direct_scaled", 1, "mean guard loss 0.02"),
        # within one item of the best: the smaller scale, then the smaller guard loss, then the name
        ({"shadow": [(1, 0.8, 0.9)], "direct": [(0.5, 0.79, 0.89)]}, "direct_scaled", 0.5, "(0.8, shadow at scale 1)"),
        ({"shadow": [(1, 0.8, 0.9)], "direct": [(0.5, 0.7899, 0.9)]}, "shadow_scaled", 1, "highest"),
        ({"shadow": [(1, 0.79, 0.9)], "direct": [(1, 0.8, 0.89)]}, "shadow_scaled", 1, "within one item"),
        ({"shadow": [(1, 0.8, 0.9)], "direct": [(1, 0.8, 0.9)]}, "direct_scaled", 1, "highest"),
        # the tie within direct (0.79 for 0.8) does not allow shadow another one (0.78 for 0.79)
        (
            {"shadow": [(0.25, 0.78, 0.9)], "direct": [(0.5, 0.79, 0.9), (1, 0.8, 0.9)]},
            "direct_scaled", 0.5, "best (0.8, direct at scale 1)",
        ),
        # the Instruct takes part at scale 0
        ({"shadow": [(1, 0.11, 0.9)], "direct": [(1, 0.05, 0.9)]}, None, None, "Nothing beats the Instruct"),
        ({"shadow": [(1, 0.11, 0.9)], "direct": [(1, 0.05, 0.9)]}, None, None, "0.11, which is within one item."),
        ({"shadow": [(1, 0.1, 0.9)], "direct": [(1, 0.9, 0.5)]}, None, None, "shadow at scale 1, has 0.1."),
        ({"shadow": [(1, 0.1101, 0.9)]}, "shadow_scaled", 1, "highest"),
        # the arm within one item of the Instruct, the best of its route beyond: still better than the Instruct
        ({"shadow": [(0.5, 0.11, 0.9), (1, 0.12, 0.9)]}, "shadow_scaled", 0.5, "within one item"),
        ({"shadow": [(1, 0.9, 0.8)], "direct": [(0.5, 0.8, 0.7)]}, None, None, "No scale of any route keeps"),
        ({"shadow": [(0, 0.1, 0.9)]}, None, None, "grafted at scale 0"),
    ],
)  # fmt: skip
def test_the_rule_chooses_the_expected_arm(
    tmp_path: Path, curves: dict[str, Points], arm: str | None, scale: float | None, why: str
) -> None:
    found = chosen(tmp_path, curves)
    assert (found.arm, found.scale, found.route) == (arm, scale, arm and arm.removesuffix("_scaled"))
    assert why in found.reason
    assert found == read_candidate(tmp_path / "candidate.json")
    (tmp_path / "turned").mkdir()
    assert chosen(tmp_path / "turned", dict(reversed(curves.items()))) == found, "the order of the routes is nothing"


def test_without_guards_the_domain_decides(tmp_path: Path) -> None:
    found = chosen(tmp_path, {"shadow": [(1, 0.5, None)], "direct": [(1, 0.8, None)]}, instruct=(0.1, None))
    assert found.arm == "direct_scaled"
    assert found.reason.endswith("there are no guard tasks.")


def test_the_file_has_every_point_of_every_route(tmp_path: Path) -> None:
    found = chosen(tmp_path, {"shadow": [(0, 0.1, 0.9), *KEPT], "direct": [(1, 0.5, 0.8)]})
    assert "1 of 2 arms keep it within 0.02" in found.reason
    written = json.loads((tmp_path / "candidate.json").read_bytes())
    points = written.pop("points")
    assert written == {
        "format": 1, "arm": "shadow_scaled", "route": "shadow", "scale": 1.0, "reason": found.reason,
        "instruct": at(0.0, 0.1, 0.9),
    }  # fmt: skip
    assert points == [
        {"route": "direct", "scale": 1, "domain": 0.5, "guards": 0.8, "loss": 0.9 - 0.8, "kept": False, "chosen": True},
        {"route": "shadow", "scale": 0.5, "domain": 0.4, "guards": 0.9, "loss": 0, "kept": True, "chosen": False},
        {"route": "shadow", "scale": 1, "domain": 0.8, "guards": 0.9, "loss": 0, "kept": True, "chosen": True},
    ]


def test_a_fixed_scale_is_that_of_every_arm(tmp_path: Path) -> None:
    curves: dict[str, Points] = {"shadow": [(0.5, 0.4, 0.9), (1, 0.9, 0.9)], "direct": [(0.5, 0.6, 0.9), (1, 0.1, 0.9)]}
    found = chosen(tmp_path, curves, fixed=0.5)
    assert (found.arm, found.scale) == ("direct_scaled", 0.5)
    assert "highest domain score" in found.reason, "scale 1 is no arm"
    assert chosen(tmp_path, curves, fixed=0.0).arm is None
    with pytest.raises(EvaluationError, match=r"graft.scale is 0.75, the curve has 0, 0.5, 1; add it to sweep.scales"):
        chosen(tmp_path, curves, fixed=0.75)


def test_a_file_of_an_older_version_ties_only_when_equal(tmp_path: Path) -> None:
    for route, domain in (("shadow", 0.8), ("direct", 0.795)):
        path = write_sweep(tmp_path, route, [(0.5 if route == "direct" else 1, domain, 0.9)])
        old = json.loads(path.read_bytes())
        write_json_atomically(path, {name: old[name] for name in old if name not in ("tie", "items")})
    assert select(tmp_path, ["shadow", "direct"], TOLERANCE, tmp_path / "out.json").arm == "shadow_scaled"
    write_json_atomically(path, old)  # with the tie of one file, wherever it is
    for routes in (["shadow", "direct"], ["direct", "shadow"]):
        assert select(tmp_path, routes, TOLERANCE, tmp_path / "out.json").arm == "direct_scaled"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"items": "sha256:b"}, "not measured on the same dev items"),
        ({"instruct": at(0, 0.1, 0.9) | {"tasks": {**TASKS, "d": TASKS["d"] | {"n": 99}}}}, "the same dev items"),
        (
            {"instruct": at(0, 0.1, 0.9) | {"tasks": {**TASKS, "d": TASKS["d"] | {"metric": "f1"}}}},
            "the same dev items",
        ),
        ({"route": "shadow"}, "is of route 'shadow', expected 'direct'"),
        ({"scale": 0.7}, "the chosen scale is 0.7, the curve has 0, 0.5, 1; run `shadowft sweep` again"),
        ({"curve": []}, "curve: "),
        ({"curve": [at(0.5, 0.1, None), at(1.0, 0.1, 0.9)]}, "some points have guards and others none"),
        ({"format": 2}, "format: "),
        ({"tie": -1}, "tie: "),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    write_sweep(tmp_path, "shadow", KEPT)
    path = write_sweep(tmp_path, "direct", KEPT)
    write_json_atomically(path, json.loads(path.read_bytes()) | changed)
    with pytest.raises(EvaluationError) as error:
        select(tmp_path, ["shadow", "direct"], TOLERANCE, tmp_path / "out.json")
    assert str(tmp_path / "direct.json") in str(error.value)
    assert said in str(error.value)
    assert not (tmp_path / "out.json").exists()


def test_a_damaged_or_missing_candidate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "candidate.json"
    with pytest.raises(EvaluationError, match="no such file"):
        read_candidate(path)
    good = {"format": 1, "arm": "direct_scaled", "route": "direct", "scale": 0.5, "reason": "."}
    for changed in ({"arm": "shadow_scaled"}, {"scale": None}, {"arm": None}, {"format": 2}, {"reason": 1}):
        write_json_atomically(path, good | changed)
        with pytest.raises(EvaluationError, match=r"candidate.json: .*run `shadowft select` again"):
            read_candidate(path)
    write_json_atomically(path, good)
    assert read_candidate(path).route == "direct"


def test_a_route_that_params_do_not_have_is_not_chosen(tmp_path: Path, shadowft: Shadowft) -> None:
    """The files of a route that was removed stay in work/sweep."""
    for route, domain in (("shadow", 0.5), ("direct", 0.6), ("direct_replay", 0.4), ("removed", 0.9)):
        write_sweep(tmp_path, route, [(1.0, domain, 0.9)])
    words = "select", "--params", ROOT / "params.yaml", "--sweeps", tmp_path, "--out", tmp_path / "out.json"
    ended = shadowft(*words)
    assert ended.code == 0
    assert read_candidate(tmp_path / "out.json").arm == "direct_scaled"
    assert "select: direct_scaled, at scale 1, has the highest domain score" in ended.err
    (tmp_path / "direct.json").unlink()
    shadowft(*words).refused(7, "direct.json: no such file")


def test_real_sweeps_of_two_routes_agree_on_their_items(world: World, tmp_path: Path) -> None:
    """The delta with the skill, and one that changes nothing of it: its norms alone are in scope."""
    dev = {"domain": ("next_dev",), "guards": ("say_dev",)}
    sweeps = tmp_path / "sweep"
    sweep(world.instruct, world.delta, world.data, Sweep(scales=(1.0,), **dev), world.params(), sweeps / "shadow.json")
    idle = shutil.copytree(world.delta, tmp_path / "idle")
    norms = Sweep(scales=(1.0,), scope=("*norm*",), **dev)
    sweep(world.instruct, idle, world.data, norms, world.params(), sweeps / "idle.json")
    read = [json.loads((sweeps / f"{route}.json").read_bytes()) for route in ("shadow", "idle")]
    assert read[0]["items"] == read[1]["items"]
    assert read[0]["tie"] == 1 / read[0]["instruct"]["tasks"]["next_dev"]["n"]
    assert select(sweeps, ["idle", "shadow"], 0.02, tmp_path / "c.json").arm == "shadow_scaled"
    assert select(sweeps, ["idle"], 0.02, tmp_path / "c.json").arm is None


def test_publish_sends_the_delta_of_the_candidate(
    tmp_path: Path, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digests = {
        route: write_delta(tmp_path / "work/delta" / route, {"w": noise(seed, 8)})
        for seed, route in enumerate(("shadow", "direct"))
    }
    expected = {route: file_digest(folder / "delta.json") for route, folder in digests.items()}
    assert shadowft("store", "publish", "--store", "here").out.strip() == expected["shadow"]
    named = {"format": 1, "arm": "direct_scaled", "route": "direct", "scale": 1.0, "reason": "It is the best."}
    write_json_atomically(Path("work/candidate.json"), named)
    assert shadowft("store", "publish", "--store", "here").out.strip() == expected["direct"]
    write_json_atomically(Path("work/candidate.json"), named | {"arm": None, "route": None, "scale": None})
    shadowft("store", "publish", "--store", "here").refused(3, "names no candidate: It is the best. Name a delta with")
    assert shadowft("store", "publish", "--delta", "work/delta/shadow", "--store", "here").code == 0
