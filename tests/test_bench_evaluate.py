"""The benchmark of the evaluation runs: both sides of each pair give the same means, and a killed run goes on."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.evaluate import app
from tests.fixtures.evaluation import World


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_pairs_give_the_same_means(world: World, tmp_path: Path) -> None:
    settings = ["--items", "12", "--tokens", "4", "--scales", "3", "--rounds", "1", "--batch-size", "4"]
    done = CliRunner().invoke(app, ["--instruct", str(world.instruct), "--out", str(tmp_path), *settings])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "evaluate.json").read_text())
    arms = {arm: samples[0] for arm, samples in found["arms"].items()}
    assert arms["ours"]["means"] == arms["bare"]["means"] == arms["resumed"]["means"]
    assert arms["sweep"]["means"] == arms["generation"]["means"]
    assert len(arms["sweep"]["means"]) == 3
    assert arms["killed"]["batches"] + arms["resumed"]["batches"] == arms["ours"]["batches"] == 15
    assert arms["sweep"]["written"] < found["weights"], "no weights"
    assert "| `ours` divided by `bare` | " in (tmp_path / "evaluate.md").read_text()
