"""A whole run with the objective dpo on the embedded pair: `dvc repro` of the real dvc.yaml, on preferences."""

import json
import math
from pathlib import Path

import pytest

from tests.fixtures.checkouts import checkout, edit_params, run, two_routes
from tests.fixtures.data import lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pico_pair: Path) -> Path:
    """The rows of the demo, each with the reversed answer as the rejected reply."""
    place = checkout(tmp_path_factory.mktemp("preference"))
    rows = json.loads((place / "shadowft_core/demo/pico/data/train_alpaca.json").read_text(encoding="utf-8"))[:400]
    pairs = [
        {"prompt": f"{row['instruction']}\n{row['input']}", "chosen": row["output"], "rejected": row["output"][::-1]}
        for row in rows
        if row["output"] != row["output"][::-1]
    ]
    (place / "pairs.jsonl").write_bytes(lines(pairs))
    two_routes(place)
    edit_params(
        place,
        prepare={"data": "pairs.jsonl", "near": None},
        train={"objective": "dpo", "learning_rate": 0.0005, "epochs": 1},
        sweep={"scales": [1.0]},
        evaluate={"limit": 8},
        verdict={"resamples": 999},
    )
    run(place, "dvc", "repro")
    return place


def test_preferences_are_tuned_on_the_base_and_grafted(place: Path) -> None:
    assert json.loads((place / "work/data/data-report.json").read_text())["preferences"] > 350
    for route in ("shadow", "direct"):
        facts = json.loads((place / f"work/tuned/{route}/train.json").read_text())
        assert (facts["objective"], facts["settings"]["dpo"]) == ("dpo", {"beta": 0.1})
        assert facts["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert facts["valid_loss"] < math.log(2)
        assert facts["preferences"]["last_margin"] > 0.1
        receipt = json.loads((place / f"work/grafted/{route}/receipt.json").read_text())
        assert receipt["classes"]
    verdict = json.loads((place / "work/verdict.json").read_text())
    assert verdict["decision"] in ("promote", "hold", "undecided")
    assert "rejected:" in (place / "work/report.html").read_text()


def test_nothing_runs_again(place: Path) -> None:
    assert "Running stage" not in run(place, "dvc", "repro")
