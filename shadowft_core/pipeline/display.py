"""Shows the progress of a run: as a live table on a terminal, elsewhere as plain lines."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shadowft_core.errors import plain
from shadowft_core.pipeline.clock import Clock
from shadowft_core.terminal import new_console

WAITING, RUNNING, UNCHANGED, COMPLETED, FAILED = "waiting", "running", "Unchanged", "Completed", "Failed"
STYLES = {WAITING: "dim", RUNNING: "bold cyan", UNCHANGED: "blue", COMPLETED: "green", FAILED: "bold red"}


@dataclass
class Row:
    """The displayed state of one step of the run."""

    name: str
    description: str
    state: str = WAITING
    seconds: float = 0.0
    line: str = ""


class Display:
    """Shows the steps of one run as they run; a context manager.

    `steps` has their descriptions by name. `stale` names the steps that are expected to run; the estimate counts no
    time for the others. A quiet display shows nothing: under a Prefect worker, Prefect's log is the display.
    """

    def __init__(self, steps: Mapping[str, str], stale: frozenset[str], clock: Clock, *, quiet: bool = False) -> None:
        self.console = new_console(quiet=quiet)
        if not self.console.is_terminal:
            self.console.width = 120
        self._rows = {name: Row(name, description) for name, description in steps.items()}
        self._stale = stale
        self._clock = clock
        self._running: Row | None = None
        self._started = self._run_started = time.monotonic()
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._on_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the live table; its last state stays on the screen."""
        self._live.stop()

    @property
    def _on_terminal(self) -> bool:
        return self.console.is_terminal and not self.console.quiet

    def drop(self, *names: str) -> None:
        """Remove steps that will not run."""
        for name in names:
            self._rows.pop(name, None)

    def insert(self, name: str, description: str, after: str) -> None:
        """Add a row for a step below that of another one."""
        rows = list(self._rows.values())
        place = 1 + next(number for number, row in enumerate(rows) if row.name == after)
        rows.insert(place, Row(name, description))
        self._rows = {row.name: row for row in rows}

    def start(self, name: str, description: str = "") -> None:
        """Show that a step has started; a step that `steps` did not name gets a new row at the end."""
        self._running = self._rows.setdefault(name, Row(name, description))
        self._running.state, self._running.line = RUNNING, ""
        self._started = time.monotonic()
        self._print(f"{name}: {self._running.description} ({_duration(self._remaining())} left)")

    def line(self, text: str) -> None:
        """Show a line that the running step wrote."""
        if self._running and text.strip():
            self._running.line = plain(text.strip())
            self._print(f"  {self._running.line}")

    def finish(self, state: str) -> None:
        """Show how the running step ended; the time of a completed step is recorded for later estimates."""
        if row := self._running:
            row.seconds, row.state, self._running = time.monotonic() - self._started, state, None
            if state == COMPLETED:
                self._clock.record(row.name, row.seconds)
            self._print(f"{row.name}: {state} in {row.seconds:.1f} s")

    def _print(self, text: str) -> None:
        if not self._on_terminal:
            self.console.print(plain(text), soft_wrap=True)

    def _remaining(self) -> float:
        waiting = [row.name for row in list(self._rows.values()) if row.state == WAITING and row.name in self._stale]
        running = self._running.name if self._running else None
        return self._clock.remaining(waiting, running, time.monotonic() - self._started)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for row in list(self._rows.values()):  # Live renders in a thread, and a step may add a row meanwhile
            seconds = time.monotonic() - self._started if row is self._running else row.seconds
            style = STYLES.get(row.state, STYLES[FAILED])  # a state may have a custom name: Waiting, Refused
            last = plain(row.description) if row.state == WAITING else row.line
            table.add_row(
                Text(plain(row.name), style),
                Text(plain(row.state), style),
                Text("" if row.state == WAITING else _duration(seconds), justify="right"),
                Text(
                    last,
                    "dim",
                    no_wrap=True,
                    overflow="ellipsis",
                ),
            )
        remaining, so_far = self._remaining(), time.monotonic() - self._run_started
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=max(so_far + remaining, 1e-9), completed=so_far, width=40),
            Text(f"{_duration(so_far)} so far, {_duration(remaining)} left"),
        )
        return Group(table, bar)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
