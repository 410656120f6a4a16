"""One stage at a time, on a real DVC workspace: when it runs, how its failure is reported; checks before it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger

from shadowft_core.errors import EvaluationError, InputError
from shadowft_core.files import process
from shadowft_core.params import load_params
from shadowft_core.pipeline import command, steps
from shadowft_core.pipeline.dvc_stages import Stage, read_plan
from shadowft_core.pipeline.stage_process import explain_failure
from tests.fixtures.workspace import make_workspace


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every stage is up to date. Copy it."""
    folder = make_workspace(tmp_path_factory.mktemp("finished"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=folder, check=True, env=environment)
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The current folder: a copy of the finished workspace."""
    folder = shutil.copytree(finished, tmp_path / "workspace", symlinks=True)
    with contextlib.chdir(folder):
        yield folder


def reproduced(stage: str, *, stale: bool = True) -> tuple[State, list[str]]:
    """The task on one stage, without a flow around it: its state and the lines the stage wrote."""
    shown: list[str] = []
    with disable_run_logger():
        return steps.reproduce.fn(stage, stale, shown.append), shown


def test_everything_downstream_of_a_change_is_stale(workspace: Path) -> None:
    assert read_plan().stale == frozenset()
    (workspace / "graft.sh").write_text("echo changed >&2\n", encoding="utf-8")
    assert read_plan().stale == {"graft@shadow", "verdict", "report"}


def test_a_stage_runs_only_when_it_is_stale_and_its_inputs_differ(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "graft.sh").write_text("echo changed >&2\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(process, "start", lambda *_, **__: pytest.fail("a child was started"))
        state, _ = reproduced("verdict")  # downstream of the change, and its inputs are still equal
        assert (state.is_completed(), state.name) == (True, "Unchanged")
        state, _ = reproduced("graft@shadow", stale=False)  # the plan, made before anything ran, has it as up to date
        assert (state.is_completed(), state.name) == (True, "Unchanged")
    state, lines = reproduced("graft@shadow")
    assert (state.is_completed(), state.name, lines[0]) == (True, "Completed", "changed")
    assert reproduced("graft@shadow")[0].name == "Unchanged"


def test_a_forced_stage_runs_without_a_change_and_what_follows_is_not_run_again(workspace: Path) -> None:
    """A stage that reads what DVC does not watch, such as the champion, which did not move."""
    plan = read_plan(frozenset({"extract@shadow", "not in dvc.yaml"}))
    assert plan.forced == {"extract@shadow"}
    assert plan.stale == {"extract@shadow", "graft@shadow", "verdict", "report"}
    before = (workspace / "order.txt").read_text(encoding="utf-8").split()
    with disable_run_logger():
        state = steps.reproduce.fn("extract@shadow", True, lambda _: None, True)
    assert (state.is_completed(), state.name) == (True, "Completed")
    assert (workspace / "order.txt").read_text(encoding="utf-8").split() == [*before, "extract@shadow"]
    assert reproduced("graft@shadow")[0].name == "Unchanged"


def test_the_locks_of_a_killed_run_are_removed_even_if_another_process_has_its_number(workspace: Path) -> None:
    """After a restart of the machine, DVC would take that process for the holder and refuse every run."""
    locks = workspace / ".dvc/tmp/rwlock"
    with subprocess.Popen(["sleep", "60"]) as other:
        holder = {"pid": other.pid, "cmd": "reproduce.py graft@shadow"}
        grafted = str(workspace / "work/grafted/shadow")
        locks.write_text(json.dumps({"write": {grafted: holder}, "read": {grafted: [holder]}}), encoding="utf-8")
        try:
            with pytest.raises(InputError, match=f"is busy, it is being blocked by: .*{other.pid}"):
                read_plan()  # the process started before the lock was written: it may be the holder
            os.utime(locks, (time.time(), time.time() - 3600))  # the process started later
            assert read_plan().stale == frozenset()
        finally:
            other.kill()
    assert str(other.pid) not in locks.read_text(encoding="utf-8")


MEMORY = "killed by signal 9 (SIGKILL), as the kernel does when memory runs out; "
FAILURES = {  # graft.sh -> part of the message
    "echo 'error: w.bias: 3 rows, expected 4' >&2; echo bye; exit 5": "w.bias: 3 rows, expected 4",
    "exit 7": "exit code 7, without a message",
    "echo loading; kill -9 $$": MEMORY,
    "echo loading; echo Killed >&2; kill -9 $$": MEMORY,  # as some shells report a killed child
    "sh -c 'kill -9 $$'; exit $?": MEMORY,  # the shell in between turns it into 137
    "kill -SEGV $$": "killed by signal 11 (SIGSEGV)",
    "echo loading; echo 'Segmentation fault (core dumped)' >&2; kill -SEGV $$": "(SIGSEGV)",
    "echo reading http://user:hunter2@host; exit 1": "reading http://***@host",
    "rm -r work/delta/shadow; exit 0": "work/delta/shadow",  # the verb's own error
}


@pytest.mark.parametrize("script", FAILURES)
def test_a_failed_stage_reports_the_reason(workspace: Path, script: str) -> None:
    (workspace / "graft.sh").write_text(script, encoding="utf-8")
    state, shown = reproduced("graft@shadow")
    assert "hunter2" not in "".join([state.message or "", *shown])
    assert state.is_failed()
    assert state.message.startswith("graft@shadow: ")
    assert FAILURES[script] in state.message
    assert "\n" not in state.message
    if "loading" in script:
        assert state.message.endswith(". Its last line: loading")


def test_a_stage_killed_from_outside_names_the_signal_and_memory(workspace: Path) -> None:
    """As the kernel does when memory runs out: SIGKILL for the stage's process alone; DVC and the guard live on."""
    import threading

    import psutil

    (workspace / "graft.sh").write_text("exec sleep 4322\n", encoding="utf-8")

    def kill() -> None:
        while not (found := [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "4322"]]):
            pass
        found[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    state, _ = reproduced("graft@shadow")
    killer.join()
    assert state.is_failed()
    assert MEMORY in state.message


@pytest.mark.parametrize("change", ["echo true >> graft.sh", "sed -i 's/^  seed: .*/  seed: 4711/' params.yaml"])
def test_a_stage_whose_inputs_change_while_it_runs_fails_and_runs_again(workspace: Path, change: str) -> None:
    """DVC would record the new input for the output of the former one, and hold the stage for up to date."""
    stages = yaml.safe_load((workspace / "dvc.yaml").read_text(encoding="utf-8"))
    stages["stages"]["graft"]["do"]["params"] = ["train"]
    (workspace / "dvc.yaml").write_text(yaml.safe_dump(stages), encoding="utf-8")
    (workspace / "graft.sh").write_text(f"test -e again || {change}\n", encoding="utf-8")
    lock = (workspace / "dvc.lock").read_bytes()
    state, _ = reproduced("graft@shadow")
    assert state.is_failed()
    assert f"{change.rsplit(maxsplit=1)[-1]}: changed while the stage ran" in state.message
    assert (workspace / "dvc.lock").read_bytes() == lock
    (workspace / "again").touch()
    assert reproduced("graft@shadow")[0].name == "Completed"
    assert (workspace / "order.txt").read_text(encoding="utf-8").split().count("graft@shadow") == 3
    assert reproduced("graft@shadow")[0].name == "Unchanged"


def test_an_error_of_dvc_itself_is_reported(workspace: Path) -> None:
    shutil.rmtree(workspace / "tuned")
    state, _ = reproduced("extract@shadow")
    assert state.is_failed()
    assert "exit code" not in state.message
    assert "tuned" in state.message


@pytest.mark.parametrize(
    ("code", "line", "expected"),
    [
        (-9, "", MEMORY),  # the guard itself
        (137, "error: no room", f"{MEMORY}add memory"),
        (137, "error: no room", "Its last line: no room"),
        (143, "error: interrupted", "interrupted"),  # the stage's own message
        (143, "", "killed by signal 15 (SIGTERM)"),
        (255, "ERROR: failed to reproduce 'x'", "failed to reproduce 'x'"),
    ],
)
def test_an_exit_code_is_explained_in_words(code: int, line: str, expected: str) -> None:
    assert expected in explain_failure(code, line)


def sparse(folder: Path, size: int) -> str:
    """A folder with a sparse weights file of `size` bytes."""
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return str(folder)


def test_a_disk_that_is_too_small_is_refused_before_the_first_stage(workspace: Path, tmp_path: Path) -> None:
    params = load_params(workspace / "params.yaml")
    full = params.model_copy(update={"train": params.train.model_copy(update={"method": "full"})})
    seeds = {"method": "full", "seeds": tuple(range(12))}
    seeded = params.model_copy(update={"train": params.train.model_copy(update=seeds)})
    free = shutil.disk_usage(".").free

    def pair(size: int) -> tuple[str, str]:
        place = Path(tempfile.mkdtemp(dir=tmp_path))
        return sparse(place / "base", size), sparse(place / "instruct", size)

    assert len(params.routes) == 2  # each route writes a model
    steps.require_disk(params, pair(free // 3))
    steps.require_disk(full, pair(free // 40))  # tuned and delta in float32, twice each, and the graft: nine times two
    # (seeded, free // 40): eleven deltas of each route wait, beside one tuned model
    for settings, size in ((params, free // 2 + free // 8), (full, free // 12), (seeded, free // 40)):
        with pytest.raises(InputError, match=r"disk: \d+\.\d GB free, the run may write \d+\.\d GB; free space"):
            steps.require_disk(settings, pair(size))


def test_little_free_space_is_refused_even_if_the_sizes_of_the_models_are_unknown(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(workspace / "params.yaml")
    steps.require_disk(params, ("nowhere", "elsewhere"))
    monkeypatch.setattr(steps, "MIN_FREE_BYTES", 2 * shutil.disk_usage(".").total)
    with pytest.raises(InputError, match="disk: "):
        steps.require_disk(params, ("nowhere", "elsewhere"))


def test_a_stage_runs_alone_and_finds_the_commands_of_this_environment(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow decides about the other stages. A service, such as cron, starts it with a short PATH."""
    monkeypatch.setenv("PATH", os.defpath)
    before = (workspace / "order.txt").read_text(encoding="utf-8").split()
    for script in ("fetch.sh", "graft.sh"):
        (workspace / script).write_text("echo changed >&2\n", encoding="utf-8")
    state, _ = reproduced("graft@shadow")
    assert state.name == "Completed", state.message
    assert (workspace / "order.txt").read_text(encoding="utf-8").split() == [*before, "graft@shadow"]


def test_the_plan_has_seconds_and_outputs_of_dvc_yaml(workspace: Path) -> None:
    plan = read_plan()
    assert (plan["fetch"].seconds, plan["fetch"].description) == (2, "get the pair")
    assert plan["report"].seconds == 1
    assert plan["fetch"].out("pair.json") == "work/pair/pair.json"
    with pytest.raises(InputError, match="no stage train; it has fetch, "):
        plan["train"]


@pytest.mark.parametrize(("suffix", "count"), [(".json", 2), (".html", 0), ("", 3)])
def test_an_output_that_is_not_the_only_one_is_refused(suffix: str, count: int) -> None:
    stage = Stage("judge", "", 1, ("a/x.json", "b/y.json", "c"))
    with pytest.raises(InputError, match=rf"stage judge: {count} outputs end with '{suffix}', expected one; it has a/"):
        stage.out(suffix)


@pytest.mark.parametrize("name", ["prepare.data", "evaluate.tasks"])
def test_a_path_of_params_that_does_not_exist_is_refused_before_a_server_starts(
    name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = (workspace / "params.yaml").read_text(encoding="utf-8")
    field = name.rpartition(".")[2]
    (workspace / "params.yaml").write_text(params.replace(f"{field}: seed", f"{field}: nowhere"), encoding="utf-8")
    said = f"params.yaml: {name}: nowhere does not exist; name an existing file or folder"
    with pytest.raises(InputError, match=rf"^{re.escape(said)}$"):
        steps.preflight(Path("params.yaml"), None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the handlers of the tests stay
    monkeypatch.setattr(command, "prefect_server", lambda home: pytest.fail("a server was started"))
    for place in (Path("."), workspace):
        with pytest.raises(SystemExit) as ended:
            command.run_flow(Path("flows/retrain.py"), place)
        assert (ended.value.code, capsys.readouterr().err) == (1, f"error: {place / said}\n")


@pytest.mark.parametrize("name", ["heldout", "heldout_dev"])
def test_a_misspelt_task_is_refused_before_the_first_stage(name: str, workspace: Path) -> None:
    params = (workspace / "params.yaml").read_text(encoding="utf-8")
    (workspace / "params.yaml").write_text(params.replace(f"- {name}\n", "- heldaut\n"), encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"^task heldaut: unknown; did you mean heldout"):
        steps.preflight(Path("params.yaml"), None)


def test_stderr_of_a_step_is_shown_without_passwords_also_if_it_fails() -> None:
    shown: list[str] = []

    @steps.captured_stderr(shown.append)
    def step() -> None:
        print("sending to http://user:hunter2@host\nsent", file=sys.stderr)
        raise InputError("no such luck")

    with pytest.raises(InputError):
        step()
    assert shown == ["sending to http://***@host", "sent"]
