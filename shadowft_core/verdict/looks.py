"""Looks: how much of alpha a verdict may spend when the same test items were read by earlier verdicts.

The first look spends 80 % of alpha, look k >= 2 spends 20 % of alpha / (k (k - 1)). All looks together spend at most
alpha, whatever their number, so the probability that any of them promotes a candidate that gains nothing is at most
alpha (Bonferroni; unlike group sequential bounds it needs no assumption on how the candidates depend on each other).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from shadowft_core.errors import EvaluationError
from shadowft_core.files import Record, read_record
from shadowft_core.limits import COUNT, RECORD_BYTES
from shadowft_core.verdict.scorefiles import Count, Label, Skipped
from shadowft_core.verdict.scores import CHAMPIONS

FIRST = 0.8  # share of alpha that the first look spends


def alpha_of(alpha: float, number: int) -> float:
    """The one-sided level of look `number`, counted from 1."""
    return FIRST * alpha if number == 1 else (1 - FIRST) * alpha / (number * (number - 1))


def alpha_left(alpha: float, looks: int) -> float:
    """What is left of `alpha` after this many looks, for all later ones together."""
    return alpha if looks == 0 else (1 - FIRST) * alpha / looks


@dataclass(frozen=True)
class Look:
    """Which look at the test items a verdict is."""

    number: int
    """counted from 1; 0 if there is no candidate, so nothing is judged"""
    items: str | None = None
    """digest of the domain's items; None if no history is kept"""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """the looks before: number, candidate, model_name, commit and overlap (items shared)"""

    def alpha(self, alpha: float) -> float:
        """The one-sided level of this look. Without a candidate, that of the next one."""
        return alpha_of(alpha, self.number or self._looks() + 1)

    def record(self, alpha: float) -> dict[str, Any]:
        """The field `look` of verdict.json."""
        left = alpha_left(alpha, self._looks())
        return {
            "number": self.number,
            "alpha": self.alpha(alpha),
            "left": left,
            "items": self.items,
            "earlier": self.earlier,
        }

    def _looks(self) -> int:
        return max([self.number, *(int(look["number"]) for look in self.earlier)])


class _Version(Record):
    version: int = Field(ge=1, le=COUNT)
    digest: Label


class _Earlier(Record):
    """A look that came before, and how many items it shares. Files of older versions say less."""

    number: int = Field(ge=1, le=COUNT)
    candidate: str | None = None
    model_name: str | None = None
    commit: str | None = None
    overlap: Count | None = None


class _Cost(Record):
    stage: str
    seconds: float = Field(ge=0)


class Run(Record):
    """run.json: what verdict and report need to know and DVC does not watch."""

    format: Literal[1]
    candidate: Label | None
    items: str | None
    look: Count
    earlier: list[_Earlier] = Field(max_length=100_000)
    champion: _Version | None = None
    best_champion: _Version | None = None
    skipped: list[Skipped] = Field([], max_length=10_000)
    commit: str | None = None
    date: str | None = None
    dirty: bool | None = None
    costs: list[_Cost] = Field([], max_length=10_000)

    @property
    def as_look(self) -> Look:
        return Look(self.look, self.items, [look.model_dump(exclude_unset=True) for look in self.earlier])

    @property
    def champions(self) -> dict[str, str]:
        """The model digest of each arm of an earlier version."""
        named: dict[str, _Version | None] = {name: getattr(self, name) for name in CHAMPIONS}
        return {name: version.digest for name, version in named.items() if version is not None}


def read_run(path: Path) -> Run:
    """Read run.json. Raises EvaluationError if it is missing or damaged."""
    return read_record(path, Run, "run `shadowft look` again", error=EvaluationError, largest=RECORD_BYTES)


def require_same_models(path: Path, run: Run, digests: Mapping[str, str], candidate: str | None) -> None:
    """Raises EvaluationError if the models of run.json are not those that were scored. `digests` is keyed by arm."""
    expected = run.champions | ({} if candidate is None or run.candidate is None else {candidate: run.candidate})
    if (run.candidate is None) != (candidate is None):
        raise EvaluationError(
            f"{path}: candidate is {run.candidate}, but the arm to judge is {candidate}; run `shadowft look` again"
        )
    for name, digest in expected.items():
        if digests[name] != digest:
            raise EvaluationError(
                f"{path}: {name} is model {digest}, but its scores are of {digests[name]}; run `shadowft look` again, "
                "or evaluate that model again"
            )
