"""The result of a finished run: arms, verdict and facts, as a table on a terminal or as Markdown."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shadowft_core.errors import plain
from shadowft_core.verdict.scores import groups_of


@dataclass(frozen=True)
class Result:
    """The verdict of a run, the names of its guard tasks, and facts to show with it, such as version and report."""

    verdict: Mapping[str, Any]
    guards: Sequence[str]
    facts: Mapping[str, str]

    @property
    def header(self) -> list[str]:
        return [
            "arm",
            "scale",
            "domain",
            *self._tasks,
            *(["all guards"] if len(self._tasks) < len(self.guards) else []),
        ]

    def rows(self) -> Iterator[list[str]]:
        """One row per arm: its scale, then mean and interval of the domain and of each guard."""
        arms = self.verdict["arms"]
        for name in groups_of(arms):
            arm = arms[name]
            scores = [arm["domain"], *(arm["tasks"][guard] for guard in self._tasks)]
            if len(self._tasks) < len(self.guards):  # a guard that is a group of tasks has no mean of its own
                scores.append(arm["guards"])
            scale = "" if arm["scale"] is None else f"{arm['scale']:g}"
            yield [name, scale, *(_score(score) for score in scores)]

    @property
    def _tasks(self) -> list[str]:
        """The guards that are single tasks."""
        return [guard for guard in self.guards if guard in self.verdict["arms"]["instruct"]["tasks"]]

    def _last(self) -> dict[str, str]:
        """The facts, and how to make a version champion that may become it."""
        version = re.match(r"models:/([^/ ]+)/(\d+)", self.facts.get("version", ""))
        if self.verdict["decision"] != "promote" or version is None:
            return dict(self.facts)
        name, number = version.groups()
        return {**self.facts, "next": f"read the report, then `shadowft promote {name} {number}` makes it champion"}

    def print(self, console: Console) -> None:
        table = Table(title="mean score [95 % interval]; higher is better", show_lines=True)
        for name in self.header:
            table.add_column(name, overflow="fold", justify="right" if table.columns else "left")
        for row in self.rows():
            table.add_row(
                *(plain(cell).replace(" [", "\n[") for cell in row),
                style="bold" if row[0] == self.verdict["candidate"] else "",
            )
        console.print(table)
        style = {"promote": "bold green", "hold": "bold yellow"}.get(self.verdict["decision"], "bold")
        console.print(Text.assemble("verdict: ", (self.verdict["decision"], style)))
        for reason in self.verdict["reasons"]:
            console.print(plain(f"  - {reason}"), soft_wrap=True)
        for name, value in self._last().items():
            console.print(plain(f"{name}: {value}"), soft_wrap=True)

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(_markdown(cell).replace("|", "\\|") for cell in cells) + " |"

        return "\n".join(
            [
                f"# Verdict: {self.verdict['decision']}",
                *(f"- {_markdown(reason)}" for reason in self.verdict["reasons"]),
                "",
                line(self.header),
                line(["---"] * len(self.header)),
                *(line(row) for row in self.rows()),
                "",
                *(f"- {name}: {_markdown(value)}" for name, value in self._last().items()),
            ]
        )


def _markdown(text: str) -> str:
    """The text without elements of HTML, and without links to elsewhere, which a page would load or offer."""
    return plain(text).replace("<", "&lt;").replace("](", "]\\(")


def _score(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['mean']:.3f} [{low:.3f}, {high:.3f}]"
