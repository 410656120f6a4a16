"""Which arm is judged, at which look, against which champions: candidate.json, run.json and recipes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.verdict import Look, alpha_left, alpha_of, decision_of, verdict
from tests.fixtures.arms import ARMS, CLEAR, PARAMS, arena, five
from tests.test_verdict_files import write_arm


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Scores of five arms, whose model digests are their names, and recipes of some."""
    for name, a in arena(five(CLEAR)).items():
        write_arm(tmp_path / "scores" / name.split("_")[0] / name, a, name)
    for name in ARMS:
        (tmp_path / f"{name}.json").write_text(json.dumps({"digest": name}))
    return tmp_path


def champion(work: Path, right: int, name: str = "champion") -> None:
    a = arena({name: (np.arange(400) < right).astype(float)})[name]
    write_arm(work / "scores" / "champion" / name, a, f"digest of {name}")


def selected(work: Path, arm: str | None, **changes: Any) -> Path:
    path = work / "candidate.json"
    route, scale = (None, None) if arm is None else (arm.removesuffix("_scaled"), 1.0)  # the scale of fixtures/arms.py
    found = {"format": 1, "arm": arm, "route": route, "scale": scale, "reason": "nothing beats scale 0", "points": []}
    path.write_text(json.dumps(found | changes))
    return path


def run_file(work: Path, candidate: str | None = "shadow_scaled", look: int = 1, **changes: Any) -> Path:
    path = work / "run.json"
    earlier = [
        {"number": k, "candidate": "x", "model_name": "m", "commit": "c", "overlap": 400} for k in range(1, look)
    ]
    found = {"format": 1, "candidate": candidate, "items": "sha256:items", "look": look, "earlier": earlier}
    path.write_text(json.dumps(found | {"champion": None, "best_champion": None, "commit": "c"} | changes))
    return path


def run(work: Path, *recipes: str, **files: Path | None) -> dict[str, Any]:
    out = work / "verdict.json"
    paths = [work / f"{name}.json" for name in recipes]
    verdict(work / "scores", paths, ["shadow", "direct"], PARAMS, out, work / "metrics.json", **files)
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found


def test_a_further_route_without_scores_is_named(work: Path) -> None:
    """Outside the flow, whose stages make the scores of every route."""
    out, chosen = work / "verdict.json", selected(work, "shadow_scaled")
    routes = ["shadow", "direct", "third"]
    found = verdict(work / "scores", [], routes, PARAMS, out, candidate=chosen)
    assert found["decision"] == "promote"
    assert "third" not in str(found["claims"])
    assert found["reasons"][-1] == f"{work / 'scores/third'}: no such folder, so no claim is about the route third"
    with pytest.raises(EvaluationError, match=r"third/third/scores\.json: no such file; .*run the stage"):
        verdict(work / "scores", [], routes, PARAMS, out, candidate=chosen, run=run_file(work))
    (work / "scores/third").mkdir()
    with pytest.raises(EvaluationError, match=r"third/third/scores\.json: no such file"):
        verdict(work / "scores", [], routes, PARAMS, out, candidate=chosen)
    shutil.rmtree(work / "scores/direct")
    with pytest.raises(EvaluationError, match=r"direct/direct/scores\.json: no such file"):
        verdict(work / "scores", [], ["shadow", "direct"], PARAMS, out, candidate=chosen)


def test_a_candidate_that_is_the_champion_has_nothing_to_ship(work: Path) -> None:
    shutil.copytree(work / "scores/shadow/shadow_scaled", work / "scores/champion/champion")
    path = work / "scores/champion/champion/scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arm": "champion"}))
    found = run(work, candidate=selected(work, "shadow_scaled"))
    assert (found["decision"], found["arm"], decision_of(found)) == ("hold", "champion", "hold")
    assert found["reasons"][0] == "shadow_scaled is the champion: the same model, so there is nothing to ship"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_digest": "of another model"}))
    other = run(work, candidate=selected(work, "shadow_scaled"))
    assert (other["decision"], decision_of(other)) == ("promote", "promote")


@pytest.mark.parametrize("arm", ["direct_scaled", "shadow_scaled"])
def test_candidate_json_names_the_candidate(work: Path, arm: str) -> None:
    found = run(work, candidate=selected(work, arm))
    assert (found["candidate"], found["recipe_digest"], found["decision"]) == (arm, arm, "promote")
    assert found == run(work, arm, candidate=work / "candidate.json")
    with pytest.raises(
        EvaluationError, match=f"instruct.json: model is instruct, but the scores of {arm} are of {arm}"
    ):
        run(work, "instruct", candidate=work / "candidate.json")


def test_a_candidate_that_was_scored_at_another_scale_is_refused(work: Path) -> None:
    scale = json.loads((work / "scores/direct/direct_scaled/scores.json").read_text())["scale"]
    assert run(work, candidate=selected(work, "direct_scaled", scale=scale))["candidate"] == "direct_scaled"
    with pytest.raises(EvaluationError, match=r"direct_scaled was chosen at scale 0\.123, but its scores are of scale"):
        run(work, candidate=selected(work, "direct_scaled", scale=0.123))


def test_without_it_the_recipe_names_the_arm(work: Path) -> None:
    assert run(work, "direct_scaled")["candidate"] == "direct_scaled"
    assert run(work, "shadow")["candidate"] == "shadow"
    with pytest.raises(EvaluationError, match=r"no candidate is named; pass candidate.json or the recipe.json"):
        run(work)


def test_a_scaled_arm_stands_for_its_equal_at_scale_1(work: Path) -> None:
    path = work / "scores/shadow/shadow/scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_digest": "shadow_scaled"}))
    assert run(work, "shadow_scaled")["candidate"] == "shadow_scaled"


def test_no_candidate_is_a_hold_with_its_reason(work: Path) -> None:
    found = run(work, "shadow_scaled", candidate=selected(work, None), run=run_file(work, None, 0))
    assert (found["decision"], found["candidate"], found["arm"], found["recipe_digest"]) == (
        "hold",
        None,
        "instruct",
        None,
    )
    assert found["reasons"][0] == "nothing beats scale 0"
    assert found["look"] == {
        "number": 0,
        "alpha": pytest.approx(0.04),
        "left": 0.05,
        "items": "sha256:items",
        "earlier": [],
    }
    assert "scale" not in json.loads((work / "metrics.json").read_bytes())


def test_damaged_files_are_refused_by_name(work: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"candidate.json: arm is 'zebra_scaled', but the arms that were scored are inst"
    ):
        run(work, candidate=selected(work, "zebra_scaled"))
    with pytest.raises(EvaluationError, match=r"candidate.json: reason: .*run `shadowft select` again"):
        run(work, candidate=selected(work, "shadow_scaled", reason=None))
    with pytest.raises(EvaluationError, match=r"candidate.json: .*arm shadow, route shadow .*contradict"):
        run(work, candidate=selected(work, "shadow"))  # `register` refuses it as well
    with pytest.raises(EvaluationError, match=r"run.json: look: .*run `shadowft look` again"):
        run(work, "shadow_scaled", run=run_file(work, look=-1))
    with pytest.raises(EvaluationError, match=r"run.json: candidate is None, but the arm to judge is shadow_scaled"):
        run(work, "shadow_scaled", run=run_file(work, None))
    with pytest.raises(
        EvaluationError, match=r"run.json: shadow_scaled is model x, but its scores are of shadow_scaled"
    ):
        run(work, "shadow_scaled", run=run_file(work, "x"))
    with pytest.raises(EvaluationError, match=r"champion/champion/scores.json: no such file"):
        run(work, "shadow_scaled", run=run_file(work, champion={"version": 3, "digest": "digest of champion"}))


def test_run_json_tells_look_and_champions(work: Path) -> None:
    champion(work, 395)
    champion(work, 398, "best_champion")
    assert run(work, "shadow_scaled", run=run_file(work))["decision"] == "promote", "run.json names no champion"
    one = run(work, "shadow_scaled", run=run_file(work, champion={"version": 3, "digest": "digest of champion"}))
    assert (one["decision"], one["arm"]) == ("hold", "champion")
    assert set(one["arms"]) == {*ARMS, "champion"}
    named = {name: {"version": 3, "digest": f"digest of {name}"} for name in ("champion", "best_champion")}
    both = run(work, "shadow_scaled", run=run_file(work, look=3, **named))
    assert [c["against"] for c in both["claims"] if c["gate"] and c["role"] == "domain"] == [
        "instruct",
        "champion",
        "best_champion",
    ]
    assert (both["look"]["number"], len(both["look"]["earlier"])) == (3, 2)
    named["champion"]["digest"] = "another"
    with pytest.raises(EvaluationError, match=r"champion is model another, but its scores are of digest of champion"):
        run(work, "shadow_scaled", run=run_file(work, **named))


def test_without_run_json_a_scored_champion_is_judged(work: Path) -> None:
    champion(work, 395)
    found = run(work, "shadow_scaled")
    assert (found["decision"], found["arm"], found["look"]["number"]) == ("hold", "champion", 1)


def test_looks_spend_alpha_and_no_more() -> None:
    assert alpha_of(0.05, 1) == pytest.approx(0.04)
    assert [alpha_of(0.05, k) for k in (2, 3, 10)] == pytest.approx([0.005, 0.01 / 6, 0.01 / 90])
    assert Look(0, earlier=[{"number": 1}, {"number": 2}]).alpha(0.05) == alpha_of(0.05, 3), "that of the next look"
    assert [alpha_left(0.05, k) for k in (0, 1, 2, 10)] == pytest.approx([0.05, 0.01, 0.005, 0.001])
    for looks in (1, 2, 7, 200):
        spent = sum(alpha_of(0.05, k) for k in range(1, looks + 1))
        assert spent + alpha_left(0.05, looks) == pytest.approx(0.05)
