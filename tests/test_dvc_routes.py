"""A whole run with a third route, on the embedded pair: `dvc repro` of the real dvc.yaml."""

import html
import json
from pathlib import Path

import pytest

from tests.fixtures.checkouts import checkout, edit_params, ran, run, two_routes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GROUPS = ("train", "extract", "sweep", "graft", "evaluate", "seeds")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pico_pair: Path) -> Path:
    place = checkout(tmp_path_factory.mktemp("three"))
    two_routes(place)
    edit_params(
        place,
        routes={
            "direct_full": {"model": "instruct", "graft": "--onto-base", "train": {"method": "full", "max_steps": 2}}
        },
        train={"max_steps": 3, "seeds": [0, 1]},
        sweep={"scales": [1.0]},
        evaluate={"limit": 4},
        verdict={"resamples": 999},
    )
    run(place, "dvc", "repro")
    return place


def test_every_stage_runs_for_a_third_route(place: Path) -> None:
    facts = {
        route: json.loads((place / f"work/tuned/{route}/train.json").read_text())
        for route in ("shadow", "direct", "direct_full")
    }
    assert {route: (found["method"], found["steps"]) for route, found in facts.items()} == {
        "shadow": ("lora", 3), "direct": ("lora", 3), "direct_full": ("full", 2)
    }  # fmt: skip
    assert facts["direct_full"]["model_digest"] == facts["direct"]["model_digest"] != facts["shadow"]["model_digest"]
    assert facts["shadow"]["settings"] == facts["direct"]["settings"]
    verdict = json.loads((place / "work/verdict.json").read_text())
    assert {"direct_full", "direct_full_scaled"} < verdict["arms"].keys()
    candidate = json.loads((place / "work/candidate.json").read_text())
    assert {point["route"] for point in candidate["points"] if point["chosen"]} == facts.keys()
    assert verdict["candidate"] == candidate["arm"]
    assert (verdict["recipe_digest"] is None) == (candidate["arm"] is None)
    page = html.unescape((place / "work/report.html").read_text())
    assert candidate["reason"] in page
    assert "further route: Instruct + delta of the tuned Instruct" in page
    assert (place / "work/plots/loss-direct_full.json").is_file()


def test_a_further_seed_informs_claims_about_the_method_and_no_others(place: Path) -> None:
    for route in ("shadow", "direct", "direct_full"):
        told = json.loads((place / f"work/seeds/{route}/seeds.json").read_text())
        assert (told["first"], [one["seed"] for one in told["further"]]) == (0, [1])
    verdict = json.loads((place / "work/verdict.json").read_text())
    method = [claim for claim in verdict["claims"] if not claim["gate"]]
    assert {tuple(claim["by_seed"]) for claim in method} == {("0", "1")}
    assert {claim["by_seed"] for claim in verdict["claims"] if claim["gate"]} <= {None}
    page = html.unescape((place / "work/report.html").read_text())
    assert 'id="by-seed"' in page
    assert not list((place / "var/seeds").glob("*/*"))


def test_a_change_of_the_third_route_trains_only_that_route(place: Path) -> None:
    edit_params(
        place,
        routes={
            "direct_full": {"model": "instruct", "graft": "--onto-base", "train": {"method": "full", "max_steps": 3}}
        },
    )
    again = ran(run(place, "dvc", "repro", *(f"{group}@{route}" for group in GROUPS for route in ("shadow", "direct"))))
    assert again == ["start"]  # which reads the routes; its output is the same, so nothing is trained
    again = ran(run(place, "dvc", "repro", "train@direct_full"))
    assert again == ["train@direct_full"]
