"""Sweep: a table of the rule that chooses the scale, and real sweeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import Item, TaskScore
from shadowft_core.params import Sweep
from shadowft_core.selection import choose
from shadowft_core.sweep import one_item, point, sweep
from tests.fixtures.evaluation import World

INSTRUCT = {"scale": 0.0, "domain": 0.1, "guards": 0.9}


def curve(*points: tuple[float, float, float | None]) -> list[dict[str, Any]]:
    return [{"scale": scale, "domain": domain, "guards": guards} for scale, domain, guards in points]


@pytest.mark.parametrize(
    ("points", "chosen", "why"),
    [
        (curve((0.5, 0.4, 0.9), (1.0, 0.8, 0.9)), 1.0, "highest domain score"),
        (curve((0.5, 0.4, 0.89), (1.0, 0.8, 0.87)), 0.5, "1 of 2 scales keep it within 0.02"),
        (curve((0.5, 0.4, 0.9), (1.0, 0.8, 0.88)), 1.0, "mean guard loss 0.02"),  # exactly the tolerance is allowed
        (curve((0.5, 0.79, 0.9), (1.0, 0.8, 0.9)), 0.5, "within one item of the best (0.8 at scale 1)"),
        (curve((0.5, 0.7899, 0.9), (1.0, 0.8, 0.9)), 1.0, "highest domain score"),
        (curve((1.0, 0.8, 0.9), (0.5, 0.8, 0.9)), 0.5, "highest"),  # an exact tie; the order given does not matter
        (curve((0.25, 0.79, 0.8), (0.5, 0.5, 0.9), (1.0, 0.8, 0.9)), 1.0, "2 of 3"),  # a tie outside the tolerance
        (curve((0.5, 0.9, 0.6), (1.0, 0.2, 0.7)), 1.0, "No scale keeps the mean guard loss within 0.02"),
        (curve((0.5, 0.2, 0.7), (1.0, 0.9, 0.7)), 0.5, "costs least, 0.2"),
        (
            curve((0.5, 0.0, 0.95), (1.0, 0.05, 0.95)),
            1.0,
            "the Instruct has 0.1",
        ),  # worse than the Instruct
        (curve((2.0, 0.5, 0.9)), 2.0, "highest"),
    ],
)
def test_the_rule_chooses_the_expected_scale(points: list[dict[str, Any]], chosen: float, why: str) -> None:
    scale, reason = choose(points, INSTRUCT, tolerance=0.02, tie=0.01)
    assert scale == chosen
    assert why in reason


def test_without_guards_the_domain_decides() -> None:
    scale, reason = choose(curve((0.5, 0.4, None), (1.0, 0.8, None)), {**INSTRUCT, "guards": None}, 0.0, 0.0)
    assert scale == 1.0
    assert "no guard tasks" in reason


def scored(role: Any, *scores: float) -> TaskScore:
    return TaskScore(role, "m", tuple(Item(str(i), score, "", "") for i, score in enumerate(scores)))


def test_one_item_is_the_largest_step_of_one_answer() -> None:
    assert one_item({"a": scored("domain", 1, 0, 0, 1)}) == 0.25
    assert one_item({"a": scored("domain", 1, 0), "b": scored("domain", *[1] * 10), "g": scored("guard", 0.5)}) == 0.25
    assert (
        one_item({"a": scored("domain", -1.25, -0.5)}) == 0
    )  # a likelihood has no step of one item: only equal scores tie


def test_right_answers_and_likelihoods_together_have_no_step() -> None:
    assert one_item({"a": scored("domain", 1, 0), "b": scored("domain", -1.25, -0.5)}) == 0


def test_all_tasks_of_a_point_have_the_same_weight() -> None:
    at = point(0.5, {"a": scored("domain", 1, 0), "b": scored("domain", *[1] * 10), "g": scored("guard", 0, 1, 1, 1)})
    assert (at["scale"], at["domain"], at["guards"]) == (0.5, 0.75, 0.75)
    assert at["tasks"]["b"].items() >= {"role": "domain", "metric": "m", "n": 10, "mean": 1}.items()


PARAMS = Sweep(scales=(1.0, 0.0, 0.01), domain=("next_dev",), guards=("say_dev",), tolerance=0.02)


def test_a_sweep_finds_the_scale_that_learned(
    world: World, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one.json", "two.json"):
        monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path_factory.mktemp(name)))  # the second asks the model again
        sweep(world.instruct, world.delta, world.data, PARAMS, world.params(), tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "two.json"]
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    result = json.loads((tmp_path / "one.json").read_bytes())
    assert set(result) == {
        "format", "route", "scope", "factors", "scale", "curve", "instruct", "tie", "items", "reason"
    }  # fmt: skip
    assert (result["route"], result["scope"], result["scale"]) == ("shadow", "all", 1.0)
    assert [at["scale"] for at in result["curve"]] == [0, 0.01, 1]
    assert result["curve"][0] == result["instruct"]
    assert result["curve"][2]["domain"] == 1.0 > result["instruct"]["domain"]
    assert "Scale 1 has the highest domain score" in result["reason"]


def test_a_task_in_both_sweep_and_evaluate_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="task next_dev: is in sweep and in evaluate"):
        sweep(
            world.instruct, world.delta, world.data, PARAMS, world.params(domain=("next_dev",)), tmp_path / "out.json"
        )
    with pytest.raises(EvaluationError, match="task say_dev: is in sweep and in evaluate"):
        sweep(world.instruct, world.delta, world.data, PARAMS, world.params(guards=("say_dev",)), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_only_tensors_in_scope_are_swept(world: World, tmp_path: Path) -> None:
    """With the norms alone no scale adds the new skill."""
    norms = PARAMS.model_copy(update={"scope": ("*norm*",)})
    sweep(world.instruct, world.delta, world.data, norms, world.params(), tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_bytes())
    assert result["scope"] == ["*norm*"]
    assert result["curve"][-1]["domain"] < 1.0
