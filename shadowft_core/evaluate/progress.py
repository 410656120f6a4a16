"""Progress of a run: items done and total over all tasks and arms, the rate, and the time left."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from shadowft_core.errors import plain

EVERY = 1.0  # seconds between two lines


class Progress:
    """On a terminal a bar, elsewhere a line per second at most, and one at the end of each task.

    The rate counts the answers of this run only. The time left adds up the items left, each at the pace of its task in
    an earlier arm, or at the mean pace if no arm has answered that task yet.
    """

    def __init__(self, items: Mapping[str, int], stream: TextIO) -> None:
        """`items` has the number of items of each task."""
        self.arms = 1
        """number of models that will be scored"""
        self._items, self._stream = dict(items), stream
        self._finished = dict.fromkeys(items, 0)  # arms that finished a task
        self._fresh = dict.fromkeys(items, 0.0)  # items of a task that a model answered in this run
        self._spent = dict.fromkeys(items, 0.0)  # seconds for these
        self._label = self._task = ""
        self._requests = self._done = 0
        self._shown = self._began = time.monotonic()
        self._line = ""
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            console = Console(file=self._stream)
            columns = (BarColumn(), TextColumn("{task.description}", markup=False))
            self._bar = Bar(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
            self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Show a line about the task that runs."""
        self._print(f"{self._label} {self._task}: {line}")

    def note(self, line: str) -> None:
        """Show a line about the run."""
        self._print(line)

    def begin(self, label: str, task: str) -> None:
        """A task starts; `label` names the arm."""
        self._label, self._task, self._requests, self._done = label, task, 0, 0
        self._began = time.monotonic()

    def expect(self, items: int, requests: int) -> None:
        """The running task has `items` items, for which the harness makes `requests` further requests."""
        self._items[self._task] = items
        self._requests += requests

    def answered(self, answers: int, kept: bool) -> None:
        """There are further answers; `kept` tells that an earlier run gave them."""
        now = time.monotonic()
        self._done += answers
        if not kept:
            self._fresh[self._task] += answers * self._items[self._task] / self._requests
            self._spent[self._task] += now - self._began
        self._began = now
        if self._bar or now - self._shown >= EVERY:
            self._show(now)

    def end(self) -> None:
        """The running task is finished."""
        self._finished[self._task] += 1
        self._done = self._requests = 0
        self._show(time.monotonic(), finished=True)

    def _show(self, now: float, finished: bool = False) -> None:
        self._shown = now
        items = self._items[self._task]
        here = items if finished else self._done * items // max(self._requests, 1)
        done = sum(count * self._items[task] for task, count in self._finished.items()) + (0 if finished else here)
        total = self.arms * sum(self._items.values())
        line = f"{self._label} {self._task} {here}/{items}, in all {done}/{total}{self._pace(0 if finished else here)}"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=plain(line))
        elif line != self._line:
            self._print(line)
        self._line = line

    def _pace(self, here: int) -> str:
        """Rate and time left; empty as long as no model has answered."""
        fresh, spent = sum(self._fresh.values()), sum(self._spent.values())
        if not fresh or not spent:
            return ""
        left = 0.0
        for task, items in self._items.items():
            count = (self.arms - self._finished[task]) * items - (here if task == self._task else 0)
            known = self._fresh[task] > 0
            left += count * (self._spent[task] / self._fresh[task] if known else spent / fresh)
        return f", {_rate(fresh / spent)} items/s, eta {max(left, 0.0):.0f}s"

    def _print(self, line: str) -> None:
        line = plain(line)
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)


def _rate(items: float) -> str:
    """One decimal place; below 0.1 two significant digits, so that a slow run does not look like a halted one."""
    return f"{items:.1f}" if items >= 0.1 else f"{items:.2g}"
