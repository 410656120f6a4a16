"""Progress of a sweep or an evaluation: lines on a pipe, a bar on a terminal; signals."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowft_core.evaluate import progress
from shadowft_core.evaluate.progress import Progress
from tests.fixtures.answering import ROOT, write_params
from tests.fixtures.evaluation import World, score_instruct, write_task
from tests.fixtures.training import tree

LINE = re.compile(r"(\S+) (\S+) (\d+)/(\d+), in all (\d+)/(\d+)(?:, ([\d.]+) items/s, eta (\d+)s)?")


class Clock:
    """Stands for the monotonic clock."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def shown(stream: io.StringIO) -> list[tuple[str | None, ...]]:
    return [found.groups() for line in stream.getvalue().splitlines() if (found := LINE.fullmatch(line))]


def test_the_lines_count_all_tasks_and_arms_and_tell_the_time_left(clock: Clock) -> None:
    """Two arms; `a` takes one second for an item, `b` (four requests for an item) two seconds."""
    stream = io.StringIO()
    with Progress({"a": 4, "b": 5}, stream) as shows:
        shows.arms = 2
        for arm in ("x", "y"):
            for task, items, requests, seconds in (("a", 4, 4, 1.0), ("b", 5, 20, 0.5)):
                shows.begin(arm, task)
                shows.expect(items, requests)
                for _ in range(requests):
                    clock.now += seconds
                    shows.answered(1, kept=False)
                shows.end()
    lines = shown(stream)
    assert lines[0] == ("x", "a", "1", "4", "1", "18", "1.0", "17"), "b is unknown, and counts like a"
    assert ("x", "b", "1", "5", "5", "18", "0.8", "22") in lines, "9 items of b and 4 of a are left"
    assert lines[-1] == ("y", "b", "5", "5", "18", "18", f"{18 / 28:.1f}", "0")


def test_a_slow_run_is_not_shown_as_halted(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress({"a": 2}, stream) as shows:
        shows.begin("x", "a")
        shows.expect(2, 2)
        clock.now += 80
        shows.answered(1, kept=False)
    assert shown(stream)[0] == ("x", "a", "1", "2", "1", "2", "0.013", "80")


def test_kept_answers_count_as_done_but_not_in_the_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress({"a": 10}, stream) as shows:
        shows.begin("x", "a")
        shows.expect(10, 10)
        clock.now += 5
        shows.say("8 of 10 answers from an interrupted run")
        shows.answered(8, kept=True)
        clock.now += 2
        shows.answered(1, kept=False)
    assert "x a: 8 of 10 answers from an interrupted run" in stream.getvalue()
    assert shown(stream) == [("x", "a", "8", "10", "8", "10", None, None), ("x", "a", "9", "10", "9", "10", "0.5", "2")]


def test_there_is_one_line_per_second_at_most_and_one_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress({"a": 1000}, stream) as shows:
        shows.begin("x", "a")
        shows.expect(1000, 1000)
        for _ in range(1000):
            clock.now += 0.01
            shows.answered(1, kept=False)
        shows.end()
    assert 9 <= len(shown(stream)) <= 11
    assert shown(stream)[-1][2:6] == ("1000", "1000", "1000", "1000")


SLOW = 250  # items; enough for a signal to arrive in between


@pytest.fixture(scope="module")
def slow(world: World) -> Iterator[dict[str, object]]:
    write_task(world.tasks, "slow", [(f"say {'say ' * (i % 9)}a", f"{i}") for i in range(SLOW)])
    yield {"domain": ("slow",), "guards": (), "batch_size": 1, "limits": {"cut": 1}}
    (world.tasks / "slow.yaml").unlink()


def started(world: World, folder: Path, stderr: int, settings: dict[str, object]) -> subprocess.Popen[bytes]:
    params = write_params(folder, world, **settings)
    command = [sys.executable, "-m", "shadowft_core.cli", "evaluate", "--instruct", world.instruct]
    command += ["--data", world.data, "--params", params, "--out", folder / "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*map(str, command)], env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=stderr)


def kept(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "shadowft/answers").glob("*"))


def wait_for(condition: object, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert running.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_its_exit_code_and_the_same_command_goes_on(
    world: World, tmp_path: Path, slow: dict[str, object], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The former scores stay until the new ones are complete."""
    score_instruct(world, tmp_path / "expected", **slow)
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "shadowft"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/former").write_text("scores")
    with started(world, tmp_path, subprocess.PIPE, slow) as running:
        wait_for(lambda: kept(tmp_path) > 5, running)
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    lines = said.decode().splitlines()
    assert running.returncode == 128 + number, said
    why = (
        f"error: evaluation stopped by {signal.Signals(number).name}: nothing was written, the answers so far are kept"
    )
    assert lines[-1] == f"{why}; run the same command again to go on"
    assert tree(tmp_path / "out") == {"former": b"scores"}
    assert not [*(tmp_path / "scratch").iterdir()]
    assert not (tmp_path / ".out.partial").exists()
    lines_before = kept(tmp_path)
    with started(world, tmp_path, subprocess.PIPE, slow) as running:
        _, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert f"slow: {lines_before - 1} of {SLOW} answers from an interrupted run" in said.decode()
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")


@pytest.mark.slow
def test_a_terminal_gets_a_bar(world: World, tmp_path: Path, slow: dict[str, object]) -> None:
    parent, child = pty.openpty()
    with started(world, tmp_path, child, slow) as running:
        os.close(child)
        said = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # the terminal is closed
                break
            said += part
        running.communicate(timeout=60)
    os.close(parent)
    text = said.decode(errors="replace")
    assert running.returncode == 0, text
    assert "━" in text
    assert re.search(rf"instruct slow \d+/{SLOW}, in all \d+/{SLOW}, [\d.]+ items/s, eta \d+s", text)
    assert "\x1b[2K" in text, "the bar is redrawn in place"
