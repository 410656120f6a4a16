"""No process below a guard survives its parent, whatever ends the parent."""

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

# A stubborn tree: ignores TERM, a child in the same session, an orphan in a session of its own.
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
    """A value in the environment of every process started by the test."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("SHADOWFT_TEST_MARK", value)
    return value


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_survives_the_parent(mark: str, number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, TREE], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout
    assert parent.stdout.readline() == b"up\n"
    assert len(marked(mark)) >= 5  # parent, guard, shell and two sleeps
    parent.send_signal(number)
    parent.wait(timeout=30)
    assert none_left(mark, seconds=15)


def test_a_killed_guard_takes_its_group_along(mark: str) -> None:
    child = process.start(["sh", "-c", "sleep 300 & echo up; wait"])
    assert child.stdout
    assert child.stdout.readline() == "up\n"
    child.kill()
    process.stop(child)
    assert none_left(mark, seconds=5)


def test_a_command_that_ends_leaves_nothing_behind(mark: str) -> None:
    child = process.start(["sh", "-c", "echo out; echo err >&2; (setsid sleep 300 &); exit 7"])
    assert child.stdout
    assert child.stdout.read() == "out\nerr\n"
    assert child.wait() == 7
    assert none_left(mark, seconds=1)
    process.stop(child)


def test_a_signal_is_told_as_a_shell_tells_it() -> None:
    child = process.start(["sh", "-c", "kill -9 $$"])
    assert child.wait() == 137
    process.stop(child)


def test_stop_is_quick_with_a_willing_child() -> None:
    child = process.start(["sleep", "300"])
    while not psutil.Process(child.pid).children():
        time.sleep(0.02)
    start = time.monotonic()
    process.stop(child)
    assert time.monotonic() - start < process.GRACE
    assert not psutil.pid_exists(child.pid)
