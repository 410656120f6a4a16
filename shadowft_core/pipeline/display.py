"""What a person sees: a live table on a terminal, plain lines anywhere else, and the result at the end."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shadowft_core.pipeline.clock import Clock
from shadowft_core.verdict.scores import arm_names

WAITING, RUNNING, UNCHANGED, COMPLETED, FAILED = "waiting", "running", "Unchanged", "Completed", "Failed"
STYLES = {WAITING: "dim", RUNNING: "bold cyan", UNCHANGED: "blue", COMPLETED: "green", FAILED: "bold red"}


@dataclass
class Row:
    """One step of the run as it is shown."""

    name: str
    description: str
    state: str = WAITING
    seconds: float = 0.0
    line: str = ""


class Display:
    """Shows the steps of one run while they happen; a context manager.

    `stale` names the steps that are expected to run; the others cost no time in the estimate. A quiet display shows
    nothing: where a Prefect worker runs the flow, Prefect's own log is the display.
    """

    def __init__(self, steps: Mapping[str, str], stale: frozenset[str], clock: Clock, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False)
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
        self._live.stop()

    @property
    def _on_terminal(self) -> bool:
        return self.console.is_terminal and not self.console.quiet

    def start(self, name: str) -> None:
        """A step begins."""
        self._running = self._rows[name]
        self._running.state, self._running.line = RUNNING, ""
        self._started = time.monotonic()
        self._say(f"{name}: {self._running.description} ({_duration(self._left())} left)")

    def line(self, text: str) -> None:
        """The running step says something."""
        if self._running and text.strip():
            self._running.line = text.strip()
            self._say(f"  {self._running.line}")

    def finish(self, state: str) -> None:
        """The running step is over; what a completed one took is remembered."""
        if row := self._running:
            row.seconds, row.state, self._running = time.monotonic() - self._started, state, None
            if state == COMPLETED:
                self._clock.record(row.name, row.seconds)
            self._say(f"{row.name}: {state} in {row.seconds:.1f} s")

    def _say(self, text: str) -> None:
        if not self._on_terminal:
            self.console.print(text, markup=False, soft_wrap=True)

    def _left(self) -> float:
        waiting = [row.name for row in self._rows.values() if row.state == WAITING and row.name in self._stale]
        running = self._running.name if self._running else None
        return self._clock.left(waiting, running, time.monotonic() - self._started)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for row in self._rows.values():
            seconds = time.monotonic() - self._started if row is self._running else row.seconds
            style = STYLES.get(row.state, STYLES[FAILED])  # a state may have a custom name: Waiting, Refused
            table.add_row(
                Text(row.name, style),
                Text(row.state, style),
                Text("" if row.state == WAITING else _duration(seconds), justify="right"),
                Text(row.description if row.state == WAITING else row.line, "dim", no_wrap=True, overflow="ellipsis"),
            )
        left, so_far = self._left(), time.monotonic() - self._run_started
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=max(so_far + left, 1e-9), completed=so_far, width=40),
            Text(f"{_duration(so_far)} so far, {_duration(left)} left"),
        )
        return Group(table, bar)


@dataclass(frozen=True)
class Result:
    """What a finished run has to say. `guards` names the guard tasks; `facts` are version, report path and the like."""

    verdict: Mapping[str, Any]
    guards: Sequence[str]
    facts: Mapping[str, str]

    @property
    def header(self) -> list[str]:
        return ["arm", "scale", "domain", *self.guards]

    def rows(self) -> Iterator[list[str]]:
        """One row an arm: its scale, then mean and interval of the domain and of each guard."""
        arms = self.verdict["arms"]
        for name in filter(arms.__contains__, arm_names(("direct", "shadow"))):
            arm = arms[name]
            scores = [arm["domain"], *(arm["tasks"][guard] for guard in self.guards)]
            yield [name, f"{arm['scale']:g}", *(_score(score) for score in scores)]

    def print(self, console: Console) -> None:
        table = Table(title="mean score [95 % interval]; higher is better", show_lines=True)
        for name in self.header:
            table.add_column(name, overflow="fold", justify="right" if table.columns else "left")
        for row in self.rows():
            table.add_row(
                *(escape(cell.replace(" [", "\n[")) for cell in row),
                style="bold" if row[0] == self.verdict["candidate"] else "",
            )
        console.print(table)
        style = {"promote": "bold green", "hold": "bold yellow"}.get(self.verdict["decision"], "bold")
        console.print(Text.assemble("verdict: ", (self.verdict["decision"], style)))
        for reason in self.verdict["reasons"]:
            console.print(f"  - {reason}", markup=False, soft_wrap=True)
        for name, value in self.facts.items():
            console.print(f"{name}: {value}", markup=False, soft_wrap=True)

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        return "\n".join(
            [
                f"# Verdict: {self.verdict['decision']}",
                *(f"- {reason}" for reason in self.verdict["reasons"]),
                "",
                line(self.header),
                line(["---"] * len(self.header)),
                *(line(row) for row in self.rows()),
                "",
                *(f"- {name}: {value}" for name, value in self.facts.items()),
            ]
        )


def _score(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
