"""The whole road in a workspace, as processes in folders outside of the checkout: init, run, promote, materialize."""

import json
import sys
from pathlib import Path

import pytest

from tests.fixtures.checkouts import ROOT, commit, edit_params, ran, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def shadowft(folder: Path, *words: str, code: int = 0) -> str:
    return run(folder, sys.executable, "-m", "shadowft_core.cli", *words, code=code)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory, pico_pair: Path) -> Path:
    """A workspace on two local folders and a data file, after a run of few steps on few items."""
    place = tmp_path_factory.mktemp("newcomer")
    rows = json.loads((ROOT / "shadowft_core/demo/pico/data/train_alpaca.json").read_text(encoding="utf-8"))
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:200]), encoding="utf-8")
    models = ["--base", str(pico_pair / "base"), "--instruct", str(pico_pair / "instruct")]
    out = shadowft(place, "init", "mine", *models, "--data", "rows.jsonl")
    assert out.splitlines()[-1] == "next: cd mine && shadowft run"
    edit_params(place / "mine", train={"max_steps": 4}, evaluate={"limit": 8, "kl_answers": 0})
    run(place / "mine", "git", "config", "user.name", "Someone")
    run(place / "mine", "git", "config", "user.email", "someone@example.org")
    shadowft(place, "run", "mine")
    return place / "mine"


def test_a_run_ends_in_a_registered_version_that_can_be_promoted_and_rebuilt(mine: Path) -> None:
    verdict = json.loads((mine / "work/verdict.json").read_bytes())
    assert verdict["arms"].keys() == {"instruct", "direct", "direct_scaled", "shadow", "shadow_scaled"}
    promoted = shadowft(mine, "promote", "mine", "1", "--override", "a test")
    assert "champion of mine is version 1" in promoted
    rebuilt = shadowft(mine, "materialize", "models:/mine@champion", "--out", "../champion")
    assert f"{verdict['recipe_digest']}, as registered" in rebuilt


def test_dvc_runs_the_same_stages(mine: Path) -> None:
    """After the flow it has nothing to do. After an edit it runs what depends on it, without the flow."""
    commit(mine, "a run")
    assert ran(run(mine, "dvc", "repro")) == []
    edit_params(mine, verdict={"alpha": 0.1})
    assert ran(run(mine, "dvc", "repro")) == ["verdict", "report"]


def test_an_experiment_runs_in_a_folder_of_its_own(mine: Path) -> None:
    commit(mine, "before the experiment")
    out = run(mine, "dvc", "exp", "run", "--temp", "--name", "whole", "-S", "graft.scale=1.0")
    assert not [stage for stage in ran(out) if stage.startswith(("train", "extract", "sweep"))]
    assert run(mine, "git", "status", "--porcelain") == ""


def test_the_flow_of_the_workspace_is_the_one_that_runs(mine: Path) -> None:
    """With a module of the user's own beside it, also as `python -m flows.retrain`."""
    flow = mine / "flows/retrain.py"
    (mine / "flows/mine.py").write_text("print('imported from', __file__)\n", encoding="utf-8")
    text = flow.read_text(encoding="utf-8")
    flow.write_text(text.replace("from typing import", "import flows.mine\nfrom typing import"), encoding="utf-8")
    for words in (("-m", "shadowft_core.cli", "run"), ("-m", "flows.retrain")):
        out = run(mine, sys.executable, *words)
        assert f"imported from {mine / 'flows/mine.py'}" in out
        assert "train@shadow: Unchanged" in out
