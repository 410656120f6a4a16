"""The flow over a small DVC workspace, on a real Prefect server, with a real store and registry."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.processes import marked, none_left
from tests.fixtures.workspace import make_workspace

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SHADOWFT_STORE_URI", "SHADOWFT_STORE_ENDPOINT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return make_workspace(tmp_path)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    value = uuid.uuid4().hex
    monkeypatch.setenv("SHADOWFT_TEST_MARK", value)
    return value


def ran(workspace: Path) -> list[str]:
    """The stages that ran so far, in order."""
    file = workspace / "order.txt"
    return file.read_text(encoding="utf-8").split() if file.exists() else []


def task_states(flow_run_id: uuid.UUID) -> dict[str, str]:
    """Name of the final state of every task of a flow run, as the server keeps them; it hears of them a little late."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    this_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    states: dict[str, str] = {}

    def all_final() -> bool:
        with get_client(sync_client=True) as client:
            runs = client.read_task_runs(flow_run_filter=this_run, limit=200, sort=TaskRunSort.END_TIME_DESC)
        states.update({run.name: run.state.name for run in runs})
        return len(runs) == 7 and all(run.state.is_final() for run in runs)

    wait_until(all_final)
    return states


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_failure_stops_the_road_and_the_next_run_does_only_what_is_left(
    workspace: Path,
    prefect_api: str,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flows.retrain import retrain

    twin = make_workspace(tmp_path_factory.mktemp("twin"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=twin, check=True, env=environment)
    order = ran(twin)
    assert sorted(order) == ["extract@shadow", "fetch", "graft@shadow", "report", "verdict"]

    healthy = (workspace / "graft.sh").read_text(encoding="utf-8")
    (workspace / "graft.sh").write_text(
        "echo working\necho 'error: w.bias: 3 rows, expected 4; name another Base' >&2\nexit 5\n", encoding="utf-8"
    )
    failed = retrain(str(workspace), return_state=True)
    assert failed.is_failed()
    assert failed.message == "graft@shadow: w.bias: 3 rows, expected 4; name another Base"
    at = order.index("graft@shadow")
    assert ran(workspace) == order[: at + 1]

    (workspace / "graft.sh").write_text(healthy, encoding="utf-8")
    repaired = retrain(str(workspace), return_state=True)
    assert repaired.is_completed(), repaired.message
    assert repaired.message == "hold: models:/shadowft-pico/1 (alias challenger)"
    assert ran(workspace) == order[: at + 1] + order[at:]
    states = task_states(repaired.state_details.flow_run_id)
    assert {name: state for name, state in states.items() if name in order} == {
        name: "Unchanged" if place < at else "Completed" for place, name in enumerate(order)
    }
    assert set(json.loads((workspace / "var/durations.json").read_text())) == {*order, "publish", "register"}

    capsys.readouterr()
    again = retrain(str(workspace), return_state=True)
    assert again.message == repaired.message  # the same version: nothing was registered twice
    assert ran(workspace) == order[: at + 1] + order[at:]
    states = task_states(again.state_details.flow_run_id)
    assert {state for name, state in states.items() if name in order} == {"Unchanged"}
    shown = capsys.readouterr().out
    assert re.search(r"shadow_scaled │ +0\.5 ", shown)
    assert "[0.250, 0.750]" in shown
    assert "a tie never promotes" in shown
    assert "report: work/report.html" in shown


def test_bad_params_fail_before_the_first_stage(workspace: Path, prefect_api: str) -> None:
    from flows.retrain import retrain

    params = (workspace / "params.yaml").read_text(encoding="utf-8")
    (workspace / "params.yaml").write_text(params.replace("data: seed", "data: nowhere"), encoding="utf-8")
    state = retrain(str(workspace), return_state=True)
    assert state.is_failed()
    assert state.message == "params.yaml: prepare.data: nowhere does not exist; name an existing file or folder"
    assert ran(workspace) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_everything_and_says_so(
    workspace: Path, prefect_api: str, mark: str, number: signal.Signals
) -> None:
    (workspace / "fetch.sh").write_text("sleep 300 & (setsid sleep 300 &)\nwait\n", encoding="utf-8")
    run = start(workspace, PREFECT_API_URL=prefect_api)
    wait_until(lambda: ran(workspace) == ["fetch"], seconds=120)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    lines = [line for line in errors.splitlines() if "mlflow" not in line]
    assert lines == ["error: interrupted; all its processes have ended, the next run resumes at the unfinished stage"]
    assert none_left(mark, seconds=1)


def test_kill_9_leaves_no_orphan_and_the_next_run_succeeds(workspace: Path, mark: str) -> None:
    """With the Prefect server of its own, which must be gone too."""
    healthy = (workspace / "fetch.sh").read_text(encoding="utf-8")
    (workspace / "fetch.sh").write_text("sleep 300 & (setsid sleep 300 &)\nwait\n", encoding="utf-8")
    run = start(workspace)
    wait_until(lambda: ran(workspace) == ["fetch"], seconds=180)
    assert len(marked(mark)) > 5
    run.kill()
    run.communicate()
    assert none_left(mark, seconds=15)

    (workspace / "fetch.sh").write_text(healthy, encoding="utf-8")
    run = start(workspace)
    out, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert errors == ""
    assert "models:/shadowft-pico/1" in out
    assert ran(workspace) == ["fetch", "fetch", "extract@shadow", "graft@shadow", "verdict", "report"]
    assert none_left(mark, seconds=1)


def start(workspace: Path, **environment: str) -> subprocess.Popen[str]:
    """The flow as a person starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.retrain", "--workspace", str(workspace)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
