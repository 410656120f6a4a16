"""The flow over a small DVC workspace, on a real Prefect server, with a real store and registry."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from shadowft_core.params import Store, load_params
from tests.fixtures.cli import Shadowft
from tests.fixtures.deltas import noise, write_delta
from tests.fixtures.processes import marked, none_left
from tests.fixtures.workspace import make_workspace

ROOT = Path(__file__).parent.parent


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
    """Name of the final state of each of the seven tasks of a flow run; the server gets them with a delay."""
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


def commit(folder: Path, *files: str) -> str:
    """Commit these files to a new git repository; returns the commit."""
    author = (["config", "user.name", "a"], ["config", "user.email", "a@example.org"])
    for words in (["init", "-q"], *author, ["add", *files], ["commit", "-qm", "workspace"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def registered_code(folder: Path) -> tuple[str, str]:
    """Commit and dirty flag in the tags of the one registered version."""
    import mlflow

    uri = f"sqlite:///{folder}/var/mlflow/mlflow.db"
    tags = mlflow.MlflowClient(uri, uri).get_model_version("shadowft-pico", "1").tags
    return tags["shadowft.git.commit"], tags["shadowft.git.dirty"]


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_failure_ends_the_run_and_the_next_run_resumes_there(
    workspace: Path,
    prefect_api: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flows.retrain import retrain
    from shadowft_core.pipeline import steps

    monkeypatch.setattr(steps, "reproduce", steps.reproduce.with_options(retry_delay_seconds=0))
    twin = make_workspace(tmp_path_factory.mktemp("twin"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=twin, check=True, env=environment)
    order = ran(twin)
    assert sorted(order) == ["extract@shadow", "fetch", "graft@shadow", "report", "verdict"]

    # fetch is tried twice, a stage that computes only once
    (workspace / "fetch.sh").write_text("test -e tried || { touch tried; exit 1; }\n", encoding="utf-8")
    healthy = (workspace / "graft.sh").read_text(encoding="utf-8")
    (workspace / "graft.sh").write_text(
        "echo working\necho 'error: w.bias: 3 rows, expected 4; name another Base' >&2\nexit 5\n", encoding="utf-8"
    )
    failed = retrain(str(workspace), return_state=True)
    assert failed.is_failed()
    assert failed.message == "graft@shadow: w.bias: 3 rows, expected 4; name another Base"
    at = order.index("graft@shadow")
    assert ran(workspace) == ["fetch", *order[: at + 1]]

    (workspace / "graft.sh").write_text(f"{healthy}git commit -qm meanwhile --allow-empty\n", encoding="utf-8")
    expected = commit(workspace, "params.yaml", "dvc.yaml", "dvc.lock", "graft.sh")
    repaired = retrain(str(workspace), return_state=True)
    assert repaired.is_completed(), repaired.message
    assert repaired.message == "hold: models:/shadowft-pico/1 (alias challenger)"
    assert ran(workspace) == ["fetch", *order[: at + 1], *order[at:]]
    assert registered_code(workspace) == (
        expected,
        "false",
    )  # the state at the start of the run, before it wrote dvc.lock
    states = task_states(repaired.state_details.flow_run_id)
    assert {name: state for name, state in states.items() if name in order} == {
        name: "Unchanged" if place < at else "Completed" for place, name in enumerate(order)
    }
    assert set(json.loads((workspace / "var/durations.json").read_text())) == {*order, "publish", "register"}

    capsys.readouterr()
    again = retrain(str(workspace), return_state=True)
    assert again.message == repaired.message  # nothing was registered twice
    assert ran(workspace) == ["fetch", *order[: at + 1], *order[at:]]
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


@pytest.mark.parametrize(
    ("store", "tries", "name"),
    [
        ({"uri": "s3://bucket/deltas", "endpoint": "http://127.0.0.1:9", "region": "us-east-1"}, 3, "Failed"),
        ({"uri": "ftp://nowhere"}, 1, "Refused"),
    ],
)
def test_an_unreachable_store_is_retried_and_a_refusal_is_not(
    store: dict[str, str], tries: int, name: str, tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shadowft_core.store.backends.s3 as s3
    from shadowft_core.pipeline import steps
    from shadowft_core.store import publish

    monkeypatch.setattr(s3, "PATIENCE", 0.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobody")
    tried: list[Path] = []

    def counted(folder: Path, where: object) -> str:
        tried.append(folder)
        return publish(folder, where)

    monkeypatch.setattr("shadowft_core.store.publish", counted)
    delta = write_delta(tmp_path / "delta", {"w": noise(0, 8)})
    params = load_params(ROOT / "params.yaml").model_copy(update={"store": Store(**store)})
    task = steps.publish.with_options(retry_delay_seconds=0)
    state = task(params, str(delta), lambda _: None, return_state=True)
    assert (state.is_failed(), state.name, len(tried)) == (True, name, tries), state.message


def test_a_failed_run_exits_with_1(
    workspace: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shadowft_core.pipeline import command

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    (workspace / "graft.sh").write_text("echo 'error: no such luck' >&2; exit 5\n", encoding="utf-8")
    try:
        with pytest.raises(SystemExit) as ended:
            command.run(workspace, None, None, None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 1
    assert os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "ERROR", "the user's setting stays"
    assert capsys.readouterr().err.endswith("error: graft@shadow: no such luck\n")


def test_the_command_says_once_that_a_run_was_interrupted(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, shadowft: Shadowft
) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shadowft_core.pipeline.command.load_params", interrupted)
    monkeypatch.setattr("shadowft_core.pipeline.command.signal.signal", lambda *_: None)
    (workspace / "flows").mkdir()
    (workspace / "flows/retrain.py").touch()
    ended = shadowft("run", workspace)
    assert ended.code == 130
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: interrupted; all processes of the run have ended")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_all_processes_and_exits_with_130(
    workspace: Path, prefect_api: str, mark: str, number: signal.Signals
) -> None:
    (workspace / "fetch.sh").write_text("sleep 300 & (setsid sleep 300 &)\nwait\n", encoding="utf-8")
    run = start(workspace, PREFECT_API_URL=prefect_api)
    wait_until(lambda: ran(workspace) == ["fetch"], seconds=120)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    lines = [line for line in errors.splitlines() if "mlflow" not in line]
    assert lines == [
        "error: interrupted; all processes of the run have ended, the next run resumes at the unfinished stage"
    ]
    assert none_left(mark, seconds=1)


def test_kill_9_leaves_no_orphan_and_the_next_run_succeeds(workspace: Path, mark: str) -> None:
    """The Prefect server that the run started ends too."""
    healthy = (workspace / "fetch.sh").read_text(encoding="utf-8")
    (workspace / "fetch.sh").write_text("sleep 300 & (setsid sleep 300 &)\nwait\n", encoding="utf-8")
    run = start(workspace)
    wait_until(lambda: ran(workspace) == ["fetch"], seconds=180)
    assert len(marked(mark)) > 5
    assert listening(mark) == {"127.0.0.1"}
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


def listening(mark: str) -> set[str]:
    """The addresses at which processes of the test listen."""
    sockets = [socket for process in marked(mark) for socket in process.net_connections("inet")]
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}


def start(workspace: Path, **environment: str) -> subprocess.Popen[str]:
    """The command line of the flow, in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.retrain", "--workspace", str(workspace)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
