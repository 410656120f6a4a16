"""The deployed schedule: a Prefect server, a worker, prefect.yaml and a workspace, as separate processes."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from shadowft_core.environment import VARIABLES
from shadowft_core.files import process
from tests.fixtures.workspace import copy_flows, make_workspace

ROOT = Path(__file__).parent.parent


def wait_for(get: Callable[[], object], seconds: float) -> object:
    deadline = time.monotonic() + seconds
    while not (result := get()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)
    return result


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small checkout: workspace, flows, and the repository's prefect.yaml with a run every minute."""
    folder = make_workspace(tmp_path / "home")
    copy_flows(folder)
    (folder / "graft.sh").write_text("env > environment.txt\n", encoding="utf-8")
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    deployments["deployments"][0]["schedules"][0]["cron"] = "* * * * *"
    (folder / "prefect.yaml").write_text(yaml.safe_dump(deployments), encoding="utf-8")
    return folder


@pytest.fixture
def prefect(home: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `prefect ...` in the checkout, against the test's server; ends every process at teardown."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {name: value for name, value in os.environ.items() if name not in VARIABLES}  # none of ours but these two
    environment = (
        told
        | {name: VARIABLES[name] for name in ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED")}
        | {
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "SHADOWFT_HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{home}:{ROOT}",
        }
    )
    started = []

    def prefect(*arguments: str) -> subprocess.Popen[str]:
        command = ["env", "-C", str(home), sys.executable, "-m", "prefect", *arguments]
        with (tmp_path / f"{len(started)}.log").open("w") as log:  # the child has its own copy
            started.append(process.start(command, env=environment, log=log))
        return started[-1]

    prefect.api = environment["PREFECT_API_URL"]
    prefect.port = str(port)
    try:
        yield prefect
    finally:
        for child in reversed(started):
            process.stop(child)


@pytest.mark.slow
def test_the_schedule_makes_runs_and_a_worker_finishes_them(home: Path, prefect, tmp_path: Path) -> None:
    def answers() -> bool:
        try:
            return httpx.get(f"{prefect.api}/health").status_code == 200
        except httpx.TransportError:
            return False

    def post(path: str, **body: object) -> list[dict]:
        return httpx.post(f"{prefect.api}/{path}", json=body, timeout=60).raise_for_status().json()

    prefect("server", "start", "--no-ui", "--host", "127.0.0.1", "--port", prefect.port)
    wait_for(answers, 180)
    assert prefect("--no-prompt", "work-pool", "create", "shadowft", "--type", "process").wait(timeout=180) == 0
    assert prefect("--no-prompt", "deploy", "--all").wait(timeout=180) == 0

    deployment = httpx.get(f"{prefect.api}/deployments/name/retrain/weekly").raise_for_status().json()
    assert deployment["work_pool_name"] == "shadowft"
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert set(deployment["parameters"]) == {"workspace", "store_uri", "store_endpoint", "model_name"}

    request = {"parameters": {"store_endpoint": "http://someone:hunter2@127.0.0.1:8333"}}
    answer = httpx.post(f"{prefect.api}/deployments/{deployment['id']}/create_flow_run", json=request, timeout=60)
    assert answer.status_code == 409  # a password is refused by the server, before it is stored

    def runs(**state: object) -> list[dict]:
        chosen = {"deployment_id": {"any_": [deployment["id"]]}} | ({"state": state} if state else {})
        return post("flow_runs/filter", flow_runs=chosen)

    scheduled = wait_for(lambda: [run for run in runs() if run["auto_scheduled"]], 120)
    assert len(scheduled) >= 1  # by the scheduler, before a worker starts

    prefect("worker", "start", "--pool", "shadowft")
    done = wait_for(lambda: runs(type={"any_": ["COMPLETED", "FAILED", "CRASHED"]}), 480)
    assert [run["state"]["type"] for run in done] == ["COMPLETED"] * len(done), done[0]["state"]["message"]
    assert done[0]["auto_scheduled"]
    assert done[0]["state"]["message"] == "hold: models:/shadowft-pico/1 (alias challenger)"
    order = (home / "order.txt").read_text(encoding="utf-8").split()
    assert order == ["fetch", "extract@shadow", "graft@shadow", "verdict", "report"]

    lines = (home / "environment.txt").read_text("utf-8").splitlines()
    seen = {name: value.lower() for name, _, value in (line.partition("=") for line in lines)}  # Prefect writes False
    assert seen.items() >= VARIABLES.items(), "a stage of a deployed run has telemetry off and hubs offline"

    assert not [path for path in (tmp_path / "prefect").glob("prefect.db*") if b"hunter2" in path.read_bytes()]

    # Cancel, as the button on Prefect's page does: the running stage ends with its whole process tree.
    quick = (home / "graft.sh").read_text(encoding="utf-8")
    (home / "graft.sh").write_text("sleep 4321\n", encoding="utf-8")
    wait_for(sleepers, 180)
    (home / "graft.new").write_text(quick, encoding="utf-8")
    (home / "graft.new").rename(home / "graft.sh")  # for the next run; the running shell keeps the old file
    [running] = runs(type={"any_": ["RUNNING"]})
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    httpx.post(f"{prefect.api}/flow_runs/{running['id']}/set_state", json=state, timeout=60).raise_for_status()
    wait_for(lambda: not sleepers(), 90)
    wait_for(lambda: [run for run in runs(type={"any_": ["CANCELLED"]}) if run["id"] == running["id"]], 90)


def test_a_silent_run_is_marked_crashed_after_any_state() -> None:
    """Every event of a run resets the automation of infra/lost-runs.yaml, also a state with a custom name."""
    from prefect.server.events.schemas.automations import AutomationCore, EventTrigger

    automation = AutomationCore.model_validate(
        yaml.safe_load((ROOT / "infra/lost-runs.yaml").read_text(encoding="utf-8"))
    )
    assert isinstance(automation.trigger, EventTrigger)
    assert automation.trigger.starts_after("prefect.flow-run.heartbeat")
    assert not automation.trigger.starts_after("prefect.flow-run.Running")  # a run by hand may send none
    for event in ("heartbeat", "Completed", "Waiting", "Cancelling"):
        assert automation.trigger.expects(f"prefect.flow-run.{event}")
    assert [action.model_dump()["state"] for action in automation.actions] == ["CRASHED"]


def sleepers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "4321"]]
