"""The suites and benchmarks that `shadowft suite` knows, from catalogue.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from shadowft_core.errors import EvaluationError
from shadowft_core.suites.configs import harness_folder, read_config
from shadowft_core.suites.harness import harness_leaves, harness_names, harness_task_file
from shadowft_core.suites.names import close_to, some

UNKNOWN_LICENCE = "see the data card"


@dataclass(frozen=True)
class Task:
    """A task of a benchmark: its config, and the harness's task file that it inherits, if any."""

    name: str
    config: Mapping[str, Any]
    file: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Data, and the tasks that read it. The fields are those of catalogue.yaml."""

    name: str
    harness: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    items: int | None = None
    licence: str = UNKNOWN_LICENCE
    shots: int | str | None = None
    parser: str = ""
    extras: tuple[str, ...] = ()
    without_examples: Mapping[str, Any] | None = field(default_factory=dict)
    """fields to replace where the source has no examples; None: then the benchmark is left out"""

    def tasks(self) -> list[Task]:
        """Its tasks, with the keys that the catalogue and the harness's groups set. Reads the installed harness."""
        if self.own:
            return [Task(self.name, dict(self.own))]
        found = []
        for leaf in harness_leaves(self.harness) or ():
            file = harness_task_file(leaf.task)
            config = read_config(harness_folder() / file) | dict(leaf.overrides) | dict(self.keys)
            found.append(Task(leaf.task, config, file))
        return found

    def by_size(self) -> bool:
        """Whether the mean over its tasks weights them by their number of items, as the harness's group says."""
        return any(leaf.groups and leaf.groups[0].by_size for leaf in harness_leaves(self.harness) or ())

    def bare(self) -> "Benchmark":
        """The benchmark as it is where the source has no examples."""
        return replace(self, **(self.without_examples or {}), without_examples={})


@dataclass(frozen=True)
class Line:
    """A benchmark of a suite, as the paper calls it, and our counterpart; `benchmark` is None if there is none."""

    benchmark: Benchmark | None
    paper: str = ""
    difference: str = ""

    @property
    def name(self) -> str:
        """The benchmark as the paper calls it, else as the catalogue does."""
        return self.paper or (self.benchmark.name if self.benchmark else "")


@dataclass(frozen=True)
class Suite:
    """Several benchmarks under one name."""

    name: str
    about: str
    lines: tuple[Line, ...]

    @property
    def benchmarks(self) -> list[Benchmark]:
        return [line.benchmark for line in self.lines if line.benchmark]


@cache
def suites() -> dict[str, Suite]:
    """All suites of the catalogue."""
    raw = yaml.safe_load((Path(__file__).parent / "catalogue.yaml").read_text(encoding="utf-8"))
    known = {
        name: Benchmark(**{"name": name} | about | {"extras": tuple(about.get("extras", ()))})
        for name, about in raw["benchmarks"].items()
    }
    found = {}
    for name, about in raw["suites"].items():
        lines = [Line(**{**line, "benchmark": known.get(line["benchmark"])}) for line in about["lines"]]
        found[name] = Suite(name, about["about"], tuple(lines))
    alone = {name: Suite(name, "", (Line(one),)) for name, one in known.items() if name not in found}
    return found | alone


def suite_of(name: str) -> Suite:
    """A suite or benchmark of the catalogue, or any task, group or tag of the harness.

    Raises EvaluationError for a name that is neither, with similar names.
    """
    if name in suites():
        return suites()[name]
    if harness_leaves(name) is None:
        close = close_to(name, [*suites(), *harness_names()])
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise EvaluationError(
            f"suite {name:.100}: unknown; {hint}there are {some(suites())}, and the harness's own tasks"
        )
    return Suite(name, "of lm-evaluation-harness", (Line(Benchmark(name, harness=name)),))
