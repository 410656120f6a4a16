"""`shadowft train` in a process of its own, followed in MLflow: killed, gone on with, and with MLflow away."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.params import Registry
from shadowft_core.registry.connection import connected
from tests.fixtures.training import tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
STEPS = 400


@pytest.fixture
def workspace(place: Path, tmp_path: Path) -> Path:
    """A folder with params.yaml, whose registry is a database that exists."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["train"] |= {"max_steps": STEPS, "batch_size": 4, "max_length": 40, "learning_rate": 0.001}
    params["routes"]["far"] = {"model": "base", "train": {"seed": 3}}
    params["registry"] = {"name": "followed", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    params["checkpoint"] = {"steps": 20}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with connected(Registry(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")) as client:
        client.search_experiments(max_results=1)
    return tmp_path


def started(place: Path, workspace: Path, out: str, **environment: str) -> "subprocess.Popen[str]":
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST", "MLFLOW_TRACKING_URI")}
    words = ["train", "--model", place / "base", "--instruct", place / "instruct", "--data", place / "data"]
    return subprocess.Popen(
        [sys.executable, "-m", "shadowft_core.cli", *map(str, words), "--route", "far", "--out", out],
        cwd=workspace,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def runs(workspace: Path) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")
    found = client.get_experiment_by_name("followed-training")
    return list(client.search_runs([found.experiment_id])) if found else []


def steps_of(workspace: Path, run: Any) -> list[int]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")
    return sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "loss"))


def test_a_killed_training_goes_on_in_the_same_run_and_the_result_does_not_depend_on_mlflow(
    place: Path, workspace: Path
) -> None:
    with started(place, workspace, "tuned") as child:
        deadline = time.monotonic() + 120
        while not any("loss" in run.data.metrics for run in runs(workspace)) and time.monotonic() < deadline:
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            time.sleep(0.1)
        child.kill()
    [left] = runs(workspace)
    assert left.info.status == "RUNNING"
    again = started(place, workspace, "tuned")
    said = again.communicate()[1]
    assert again.returncode == 0, said
    assert "not followed" not in said
    [run] = runs(workspace)
    assert (run.info.run_id, run.info.status, run.info.run_name) == (left.info.run_id, "FINISHED", "far")
    steps = steps_of(workspace, run)
    assert len(steps) == len(set(steps))
    assert steps[-1] == STEPS
    facts = json.loads((workspace / "tuned/train.json").read_text())
    assert run.data.metrics["valid_loss"] == pytest.approx(facts["valid_loss"])
    assert (run.data.params["seed"], run.data.params["lora.rank"]) == ("3", "16")

    alone = started(place, workspace, "alone", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    said = alone.communicate()[1]
    assert alone.returncode == 0, said
    assert said.count("train: not followed in MLflow: registry at http://127.0.0.1:9") == 1
    assert tree(workspace / "alone") == tree(workspace / "tuned")
