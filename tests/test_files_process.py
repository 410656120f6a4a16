"""No descendant of a guard survives the guard's parent, however the parent ends."""

import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from shadowft_core.files import process
from tests.fixtures.processes import marked, none_left

ROOT = Path(__file__).parent.parent

# A shell that ignores TERM, with a child in its session and an orphan in another session.
TREE = "trap '' TERM; sleep 300 & (setsid sleep 300 &); echo up; wait"
PARENT = """
import sys
from shadowft_core.files import process
child = process.start(["sh", "-c", sys.argv[1]])
try:
    print(child.stdout.readline(), flush=True)
    child.wait()
finally:
    process.stop(child)
"""


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A value in the environment of every process that the test starts."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("SHADOWFT_TEST_MARK", value)
    return value


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_survives_the_parent(mark: str, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, TREE], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"up\n"
        assert len(marked(mark)) >= 5  # parent, guard, shell and two sleeps
        parent.send_signal(number)
        parent.wait(timeout=30)
    assert none_left(mark, seconds=15)


def test_stop_ends_the_process_group_of_a_killed_guard(mark: str) -> None:
    with process.start(["sh", "-c", "sleep 300 & echo up; wait"]) as child:
        assert child.stdout
        assert child.stdout.readline() == "up\n"
        child.kill()
        process.stop(child)
    assert none_left(mark, seconds=5)


def test_a_command_that_ends_leaves_no_process_running(mark: str) -> None:
    with process.start(["sh", "-c", "echo out; echo err >&2; (setsid sleep 300 &); exit 7"]) as child:
        assert child.stdout
        assert child.stdout.read() == "out\nerr\n"
        assert child.wait() == 7
        assert none_left(mark, seconds=1)
        process.stop(child)


def test_a_signal_gives_the_exit_code_of_a_shell() -> None:
    with process.start(["sh", "-c", "kill -9 $$"]) as child:
        assert child.wait() == 137
        process.stop(child)


def test_stop_is_quick_when_the_child_obeys() -> None:
    with process.start(["sleep", "300"]) as child:
        while not psutil.Process(child.pid).children():
            time.sleep(0.02)
        start = time.monotonic()
        process.stop(child)
        assert time.monotonic() - start < process.GRACE
    assert not psutil.pid_exists(child.pid)
