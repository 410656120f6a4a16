"""Arms of further routes: shown in the verdict, its numbers, the page and its figures; no claim about them gates."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.pipeline.result import Result
from shadowft_core.report import figures, report
from shadowft_core.verdict import decision_of, judge, numbers, verdict
from shadowft_core.verdict.scores import arm_names, routes_of
from tests.fixtures.arms import ARMS, CLEAR, PARAMS, arena, arm, five
from tests.fixtures.report import Page, dump, page, sha, write_work

FURTHER = ["direct_osf", "direct_osf_scaled", "zebra", "zebra_scaled"]


@pytest.mark.parametrize("scores", [0.0, 1.0, 7.0, -3.0])
def test_further_arms_change_no_claim_of_the_gate_and_no_other_arm(scores: float) -> None:
    """Not even arms with scores on another scale, which would widen the padding of every interval."""
    arms = arena(five(CLEAR), {"shadow_scaled": np.arange(400) >= 4})
    alone = judge(arms, PARAMS, candidate="shadow_scaled")
    tasks = {task: (role, np.full(400, scores)) for task, role in (("skill", "domain"), ("general", "guard"))}
    more = arms | {name: arm(name, tasks) for name in FURTHER}
    found = judge(more, PARAMS, candidate="shadow_scaled")
    gates = [[claim for claim in one["claims"] if claim["gate"]] for one in (found, alone)]
    assert gates[0] == gates[1]
    assert {(c["arm"], c["against"]) for c in found["claims"] if not c["gate"]} == {
        ("shadow_scaled", rival) for rival in ("direct", "direct_scaled", "direct_osf_scaled", "zebra_scaled")
    }
    assert {name: found["arms"][name] for name in ARMS} == alone["arms"]
    assert list(found["arms"]) == ["instruct", "direct", "direct_scaled", *FURTHER, "shadow", "shadow_scaled"]
    assert found["arms"]["zebra"]["domain"]["mean"] == scores
    assert decision_of(found) == alone["decision"] == "promote"
    assert numbers(found)["guards.direct_osf"] == scores


def test_a_further_route_does_not_stand_for_direct_tuning() -> None:
    names = {name: items for name, items in five(CLEAR).items() if not name.startswith("direct")}
    rival = {"direct_osf": np.ones(400), "direct_osf_scaled": np.ones(400)}
    found = judge(arena(names | rival), PARAMS, candidate="shadow_scaled")
    assert found["direct_control"] is False
    assert {claim["against"] for claim in found["claims"]} == {"instruct", "direct_osf_scaled"}
    assert "the route direct was not run: nothing is claimed about it" in found["reasons"]


def test_arms_and_routes_name_each_other() -> None:
    routes = ["shadow", "zebra", "direct", "a"]
    assert routes_of(arm_names(routes)) == set(routes)
    assert list(arm_names(routes))[:3] == ["instruct", "direct", "direct_scaled"]
    assert list(arm_names(routes))[-1] == "shadow_scaled"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the route direct_osf, whose training had a validation loss."""
    work = write_work(tmp_path_factory.mktemp("further"))
    for folder in ("scores", "tuned", "delta"):
        for old in sorted((work / folder / "direct").rglob("*")):
            if old.is_file():
                new = str(old.relative_to(work)).replace("direct", "direct_osf")
                (work / new).parent.mkdir(parents=True, exist_ok=True)
                (work / new).write_text(old.read_text().replace('"arm": "direct', '"arm": "direct_osf'))
    dump(work / "sweep/direct_osf.json", json.loads((work / "sweep/direct.json").read_text()))
    for route, settings in (
        ("shadow", {"method": "lora", "osf": {"preserved": 0.5}}),
        ("direct_osf", {"method": "osf"}),
    ):
        edit(work / f"tuned/{route}/train.json", settings=settings, model_digest=sha(route))
    edit(work / "tuned/direct_osf/train.json", model_digest=sha("instruct"))
    edit(work / "tuned/direct_osf/train.json", valid_loss=1.25)
    with (work / "tuned/direct_osf/metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "valid_loss": 1.5}\n{"step": 119, "loss": 1.0}\n')
    routes = ["shadow", "direct", "direct_osf"]
    verdict(work / "scores", [work / "grafted/shadow/recipe.json"], routes, PARAMS, work / "verdict.json")
    return work


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def shown(work: Path) -> Page:
    return page(work)


def test_the_page_shows_the_arms_of_a_further_route_and_names_them(shown: Page) -> None:
    text = " ".join(shown.text.split())
    assert "further route: Instruct + delta of the tuned Instruct, scale 1" in text
    assert "direct_osf_scaled" in text
    assert "direct_osf: differs from shadow in method osf (shadow lora), osf.preserved null (shadow 0.5)." in text
    assert "The further route direct_osf is compared with the candidate" in text
    assert "direct_osf, validation" in shown.source
    assert text.count("further route: ") == 2


def test_the_points_have_every_route_and_the_validation_loss(work: Path, tmp_path: Path) -> None:
    report(work, tmp_path / "report.html", tmp_path / "plots")
    points = {path.stem: json.loads(path.read_bytes()) for path in (tmp_path / "plots").iterdir()}
    assert {"domain-direct_osf", "guards-direct_osf", "loss-direct_osf", "valid-loss-direct_osf"} <= set(points)
    assert points["valid-loss-direct_osf"] == [{"step": 60, "loss": 1.5}, {"step": 119, "loss": 1.25}]
    assert len(points["loss-direct_osf"]) == 120
    assert "valid-loss-shadow" not in points
    assert "direct_osf_scaled" in {at["arm"] for at in points["arms-guards"]}


def test_every_route_has_a_colour_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "svg", lambda figure, name: figure)
    steps = {
        name: [{"step": 1, "loss": 2.0}, {"step": 2, "valid_loss": 1.0}] for name in ("shadow", "b", "direct", "a")
    }
    lines = figures.loss(steps).axes[0].lines  # type: ignore[attr-defined]
    assert [line.get_label() for line in lines] == [f"{n}{v}" for n in steps for v in ("", ", validation")]
    assert [list(line.get_ydata()) for line in lines] == [[2.0], [1.0]] * 4
    colours = [line.get_color() for line in lines]
    assert colours[::2] == colours[1::2]
    assert len(set(colours)) == 4


def test_the_table_of_a_run_has_a_row_for_every_arm(work: Path) -> None:
    rows = list(Result(json.loads((work / "verdict.json").read_text()), [], {}).rows())
    assert [row[0] for row in rows] == list(arm_names(["shadow", "direct", "direct_osf"]))
