"""Claims: paired comparisons of the candidate with another arm, each with an outcome and a sentence.

Superiority: on the domain the candidate beats a rival (one-sided paired test, Holm across the rivals). Non-inferiority:
on a guard task the candidate loses less than `margin` against the Instruct.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shadowft_core.params import Verdict
from shadowft_core.verdict.scores import Arm
from shadowft_core.verdict.statistics import Items, holm, interval, items_to_detect, mean_of_tasks, p_greater

CANDIDATE = "shadow_scaled"
RIVALS = ("instruct", "direct", "direct_scaled")
LEVEL = 0.95  # of every interval

Kind = Literal["superiority", "non-inferiority"]
Outcome = Literal["better", "worse", "tie", "passed", "harmed", "too few items"]
Decision = Literal["promote", "hold", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One comparison of the candidate with another arm. Differences are candidate minus other, in score units."""

    claim: Kind
    arm: str
    against: str
    role: Literal["domain", "guard"]
    tasks: list[str]
    n: int  # distinct items
    difference: float  # mean of the task means
    interval: tuple[float, float]  # two-sided, 95 %
    p: float | None  # superiority only, one-sided
    p_adjusted: float | None  # after Holm
    outcome: Outcome
    items_needed: int | None  # when the items were too few: about how many would settle the claim
    by_task: dict[str, float]  # difference on each task
    reason: str  # the claim as a sentence


def superiority(arms: Mapping[str, Arm], params: Verdict) -> list[Claim]:
    """Compare the candidate on the domain with the Instruct and, if present, both direct arms."""
    names = rivals(arms)
    tasks = arms[CANDIDATE].tasks("domain")
    comparisons = [_Comparison(arms, rival, tasks, params) for rival in names]
    p_values = [p_greater(c.differences, params.resamples, params.seed) for c in comparisons]
    alpha = params.alpha / len(names)  # Holm's first step, the strictest
    claims = []
    for c, p, p_adjusted in zip(comparisons, p_values, holm(p_values), strict=True):
        outcome, needed = _superiority_outcome(c, p_adjusted, alpha, params)
        sentence = f"{c.sentence('domain')}, p {_p(p_adjusted)}: {outcome}" + (
            f" ({c.n}; about {needed} would show a gain of {params.worthwhile:g})" if needed else ""
        )
        claims.append(c.claim("superiority", outcome, sentence, needed, p, p_adjusted))
    return claims


def _superiority_outcome(
    c: "_Comparison", p_adjusted: float, alpha: float, params: Verdict
) -> tuple[Outcome, int | None]:
    """The outcome and, if the items are too few, about how many would settle it; `alpha` is that of one test."""
    low, high = c.interval
    if -params.worthwhile < low and high < params.worthwhile:
        return "tie", None
    if high < 0:
        return "worse", None
    if low > 0 and p_adjusted <= params.alpha:
        return "better", None
    if high < params.worthwhile:  # a gain worth shipping is excluded
        return "tie", None
    needed = items_to_detect(c.differences, c.ranges, params.worthwhile, alpha)
    return ("tie", None) if needed <= c.n else ("too few items", needed)


def non_inferiority(arms: Mapping[str, Arm], params: Verdict) -> list[Claim]:
    """Compare the candidate with the Instruct on each guard task: a loss of `margin` or more must be excluded."""
    claims = []
    for task in arms[CANDIDATE].tasks("guard"):
        c = _Comparison(arms, "instruct", [task], params)
        outcome, needed = _non_inferiority_outcome(c, params.margin)
        sentence = f"{c.sentence(f'guard {task}')}, margin {params.margin:g}: {outcome}" + (
            f" ({c.n}; about {needed} would settle it)" if needed else ""
        )
        claims.append(c.claim("non-inferiority", outcome, sentence, needed))
    return claims


def _non_inferiority_outcome(c: "_Comparison", margin: float) -> tuple[Outcome, int | None]:
    """The outcome and, if the items are too few, about how many would settle it."""
    low, high = c.interval
    if low > -margin:
        return "passed", None
    if high < -margin:
        return "harmed", None
    return "too few items", _items_to_settle(c, margin)


def decide(claims: Sequence[Claim]) -> Decision:
    """`promote` when every claim holds, `hold` when one is refuted or tied, else `undecided`."""
    outcomes = {claim.outcome for claim in claims}
    if outcomes & {"worse", "tie", "harmed"}:
        return "hold"
    return "undecided" if "too few items" in outcomes else "promote"


def rivals(arms: Iterable[str]) -> list[str]:
    """The arms that the candidate must beat on the domain. Arms of further routes are not among them."""
    return [name for name in arms if name in RIVALS]


class _Comparison:
    """The candidate minus one rival on some tasks, item by item."""

    def __init__(self, arms: Mapping[str, Arm], rival: str, tasks: list[str], params: Verdict) -> None:
        candidate, other = arms[CANDIDATE], arms[rival]
        self.rival, self.tasks = rival, tasks
        self.means = [mean_of_tasks([item_scores(arm, task) for task in tasks]) for arm in (candidate, other)]
        self.differences = [item_scores(candidate, task) - item_scores(other, task) for task in tasks]
        self.difference = mean_of_tasks(self.differences)
        self.n = sum(d.size for d in self.differences)
        self.ranges = [_largest(arms, task, d) for task, d in zip(tasks, self.differences, strict=True)]
        self.interval = (0.0, 0.0)  # the same model with the same scores: no difference, even with few items
        if candidate.model_digest != other.model_digest or any(d.any() for d in self.differences):
            self.interval = interval(self.differences, self.ranges, LEVEL, params.resamples, params.seed)

    def sentence(self, subject: str) -> str:
        candidate, other = self.means
        low, high = self.interval
        return (
            f"{subject}: {CANDIDATE} {candidate:.3f} against {self.rival} {other:.3f}, "
            f"{self.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        )

    def claim(
        self,
        kind: Kind,
        outcome: Outcome,
        reason: str,
        items_needed: int | None,
        p: float | None = None,
        p_adjusted: float | None = None,
    ) -> Claim:
        return Claim(
            claim=kind,
            arm=CANDIDATE,
            against=self.rival,
            role="domain" if kind == "superiority" else "guard",
            tasks=self.tasks,
            n=self.n,
            difference=self.difference,
            interval=self.interval,
            p=p,
            p_adjusted=p_adjusted,
            outcome=outcome,
            items_needed=items_needed,
            by_task={task: mean_of_tasks([d]) for task, d in zip(self.tasks, self.differences, strict=True)},
            reason=reason,
        )


def item_scores(arm: Arm, task: str) -> Items:
    """Scores in the order of the item digests, which is the same for every arm."""
    by_item = arm.scores[task]
    return np.array([by_item[item] for item in sorted(by_item)], dtype=np.float64)


def score_range(arms: Mapping[str, Arm], task: str) -> tuple[float, float]:
    """[0, 1] if it contains every score, as for accuracies; otherwise the lowest and highest score over all arms."""
    scores = np.concatenate([item_scores(arm, task) for arm in arms.values()])
    low, high = float(scores.min()), float(scores.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _largest(arms: Mapping[str, Arm], task: str, differences: Items) -> tuple[float, float]:
    """The range of differences of an item: -1 to 1 for scores in [0, 1], else plus or minus the largest observed."""
    largest = 1.0 if score_range(arms, task) == (0.0, 1.0) else float(np.abs(differences).max())
    return -largest, largest


def _items_to_settle(c: _Comparison, margin: float) -> int:
    """The number of items at which the interval no longer contains the margin.

    Assumes the same difference, and a width that shrinks with the square root of the number of items.
    """
    low, high = c.interval
    half = c.difference - low if c.difference > -margin else high - c.difference
    gap = max(abs(c.difference + margin), half / 100)  # at the margin no number suffices: at most 10 000 times as many
    return max(c.n + 1, math.ceil(c.n * (half / gap) ** 2))


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"
