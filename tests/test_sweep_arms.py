"""Sweep: one Instruct in memory for all scales, factors by module, and refusals before anything is loaded."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import open_delta
from shadowft_core.errors import EvaluationError, GraftError, ShadowError
from shadowft_core.evaluate import evaluate, load_grafted
from shadowft_core.grafting import Options, chosen, graft, multiplied
from shadowft_core.params import Graft, Render, Sweep
from shadowft_core.sweep import sweep
from shadowft_core.weights import open_checkpoint
from tests.fixtures.evaluation import World, read_arm, rows, write_task
from tests.test_evaluate_generation import MUTE, templated

DEV: dict[str, Any] = {"domain": ("next_dev",), "guards": ("say_dev",)}


def swept(world: World, out: Path, params: Sweep) -> dict[str, Any]:
    sweep(world.instruct, world.delta, world.data, params, world.params(), out)
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found


def test_eleven_scales_load_the_instruct_once_and_write_no_weights(
    world: World, tmp_path: Path, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = tuple(number / 10 for number in range(11))
    found = swept(world, tmp_path / "out.json", Sweep(scales=scales, **DEV))
    assert loads == [world.instruct]
    assert [path.name for path in tmp_path.rglob("*")] == ["out.json"]
    assert [at["scale"] for at in found["curve"]] == list(scales)
    assert found["curve"][0] == found["instruct"]
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))  # without the answers of the first
    one = swept(world, tmp_path / "one.json", Sweep(scales=(0.6,), **DEV))
    assert one["curve"] == [found["curve"][6]], "a scale scores the same among others and alone"


def test_factors_reach_the_curve_the_graft_and_the_scaled_arm(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = {"*mlp*": 0.5, "*embed*": 0.0, "lm_head.weight": 0.0}
    found = swept(world, tmp_path / "out.json", Sweep(scales=(0.5, 1.0), factors=factors, **DEV))
    assert found["factors"] == [[pattern, factor] for pattern, factor in factors.items()]
    assert "Every scale is multiplied by 0.5 for *mlp*, 0 for *embed*, 0 for lm_head.weight." in found["reason"]

    deltas, options = chosen([(world.delta, None)], Options(waivers=("onto-base",)), Graft(), tmp_path / "out.json")
    scale = deltas[0][1]
    recipe = graft(world.instruct, deltas, tmp_path / "grafted", options)
    assert recipe["scale_for"] == [["*mlp*", scale * 0.5], ["*embed*", 0], ["lm_head.weight", 0]]
    before, after, delta = (
        open_checkpoint(world.instruct),
        open_checkpoint(tmp_path / "grafted"),
        open_delta(world.delta),
    )
    for name in before.names:
        size = scale * next((factor for pattern, factor in factors.items() if fnmatchcase(name, pattern)), 1.0)
        expected = before.read(name) + np.float32(size) * delta.read(name) if size else before.read(name)
        np.testing.assert_array_equal(after.read(name), expected, name)

    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))  # without the answers of the sweep
    evaluate(
        world.instruct, world.data, world.delta, tmp_path / "grafted", "shadow", world.params(**DEV), tmp_path / "s"
    )
    scores, _ = read_arm(tmp_path / "s/shadow_scaled")
    assert scores["model_digest"] == recipe["digest"] == after.digest()
    point = next(at for at in found["curve"] if at["scale"] == scale)
    assert means(scores["tasks"]) == means(point["tasks"]), "the curve's point is the model that is grafted"
    whole, _ = read_arm(tmp_path / "s/shadow")
    everywhere = load_grafted(world.instruct, [(world.delta, 1.0)], Options(waivers=("onto-base",)))
    assert whole["model_digest"] == everywhere[1] != scores["model_digest"], "scale 1 everywhere"


def means(tasks: Mapping[str, Any]) -> dict[str, float]:
    return {name: task["mean"] for name, task in tasks.items()}


def test_the_products_are_the_same_numbers_everywhere() -> None:
    assert multiplied(0.3, [("*a*", 0.1), ("*b*", 3.0)]) == (("*a*", 0.3 * 0.1), ("*b*", 0.3 * 3.0))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"factors": {"*mlp*": 0.5, "*layers.0*": 0.0}},
            EvaluationError,
            r"mlp.* matches '\*mlp\*' \(0.5\) and .*\(0\)",
        ),
        ({"factors": {"*nothing*": 0.5}}, GraftError, r"scale pattern '\*nothing\*' matches none"),
        ({"scope": ("*nothing*",)}, GraftError, r"scope pattern '\*nothing\*' matches none"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_loaded(
    world: World, tmp_path: Path, loads: list[Path], changes: dict[str, Any], error: type[ShadowError], said: str
) -> None:
    with pytest.raises(error, match=said):
        swept(world, tmp_path / "out.json", Sweep(**DEV, **changes))
    assert (loads, [*tmp_path.iterdir()]) == ([], [])


def test_equal_factors_may_overlap(world: World, tmp_path: Path) -> None:
    factors = {"*mlp*": 0.0, "*layers*": 0.0}
    found = swept(world, tmp_path / "out.json", Sweep(scales=(1.0,), factors=factors, **DEV))
    assert found["curve"][0]["domain"] < 1.0, "without the layers, the skill is not there"


ROLES = [("domain", "domain"), ("domain", "guards"), ("guards", "domain"), ("guards", "guards")]


@pytest.mark.parametrize(("chooses", "judges"), ROLES)
def test_no_task_both_chooses_and_judges(world: World, tmp_path: Path, chooses: str, judges: str) -> None:
    params = Sweep(**{**DEV, chooses: ("twins",)})
    with pytest.raises(EvaluationError, match="task twins: is in sweep and in evaluate"):
        sweep(
            world.instruct, world.delta, world.data, params, world.params(**{judges: ("twins",)}), tmp_path / "out.json"
        )
    assert [*tmp_path.iterdir()] == []


def test_factors_multiply_every_scale_and_the_instruct_is_always_scored(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a factor for every tensor, each scale is that of the product. Without scale 0, the Instruct is measured."""
    held = {"domain": ("heldout",), "guards": ("say_dev",)}  # a log-likelihood tells all scales apart
    halved = swept(world, tmp_path / "halved.json", Sweep(scales=(1.0, 0.5, 1.0), factors={"*": 0.5}, **held))
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    plain = swept(world, tmp_path / "plain.json", Sweep(scales=(0.0, 0.25, 0.5), **held))
    assert [at["tasks"] for at in halved["curve"]] == [at["tasks"] for at in plain["curve"][1:]]
    assert len({at["domain"] for at in plain["curve"]}) == 3
    assert halved["instruct"] == plain["curve"][0]


def test_a_sweep_renders_as_params_say(world: World, tmp_path: Path) -> None:
    mute = templated(world, tmp_path / "mute", MUTE)
    evaluating = mute.params(generation={"system": "next next"})
    settings = mute.instruct, mute.delta, mute.data, Sweep(scales=(1.0,), **DEV), evaluating, tmp_path / "out.json"
    with pytest.raises(EvaluationError, match=r"prints no system turn; set render\.system to fold"):
        sweep(*settings)
    sweep(*settings, Render(system="fold"))
    assert json.loads((tmp_path / "out.json").read_bytes())["curve"][0]["scale"] == 1


def test_a_sweep_whose_instruct_is_cut_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    for name, tokens in {"next": 3, "say": 3, "next_dev": 1, "say_dev": 3}.items():
        write_task(tmp_path / "tasks", name, rows(name.partition("_")[0])[:4], tokens=tokens)
    params = Sweep(scales=(1.0,), **DEV)
    evaluating = world.params(tasks=str(tmp_path / "tasks"))
    with pytest.raises(EvaluationError, match=r"scale 0 next_dev: 4 of 4 answers were cut at the token limit"):
        sweep(world.instruct, world.delta, world.data, params, evaluating, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
