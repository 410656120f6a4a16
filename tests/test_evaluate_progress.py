"""Progress of a sweep or an evaluation: lines on a pipe, a bar on a terminal; signals."""

import io
import re

import pytest

from shadowft_core.evaluate import progress
from shadowft_core.evaluate.progress import Progress

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
