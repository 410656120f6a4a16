"""One arm minus another on some tasks, item by item, and the thresholds in the unit of each task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from shadowft_core.params import Verdict
from shadowft_core.verdict.scores import Arm
from shadowft_core.verdict.statistics import Items, Sample, mean_of_tasks

Limit = Literal["margin", "margin_each", "worthwhile"]
LEVEL = 0.95  # of every interval
SHARES = (0.0, 1.0)  # range of scores that are shares of right answers


class Comparison:
    """`arm` minus `against` on `tasks`.

    If the tasks have different thresholds for `kind`, differences are in units of them, and `limit` is 1; else they are
    in score units, and `limit` is the threshold that all have.
    """

    def __init__(
        self, arms: Mapping[str, Arm], arm: str, against: str, tasks: Sequence[str], params: Verdict, kind: Limit
    ) -> None:
        first, second = arms[arm], arms[against]
        self.arm, self.against, self.tasks = arm, against, list(tasks)
        limits = [threshold(params, first.metrics[task], kind) for task in tasks]
        self.in_units = len(set(limits)) > 1
        self.limit = 1.0 if self.in_units else limits[0]
        self.kind = kind
        units = limits if self.in_units else [1.0] * len(limits)
        pairs = [(item_scores(first, task), item_scores(second, task)) for task in tasks]
        self.means = [mean_of_tasks(scores) for scores in zip(*pairs, strict=True)]
        differences = [mine - other for mine, other in pairs]
        self.by_task = {task: mean_of_tasks([d]) for task, d in zip(tasks, differences, strict=True)}
        shares = [range_of(scores) == SHARES for scores in pairs]
        ends = [(-1.0, 1.0) if share else _largest(d) for share, d in zip(shares, differences, strict=True)]
        self.sample = Sample(
            [d / unit for d, unit in zip(differences, units, strict=True)],
            [(low / unit, high / unit) for (low, high), unit in zip(ends, units, strict=True)],
            clusters((first, second), tasks),
            open_scale=not all(shares),
        )
        self.same = first.model_digest == second.model_digest and not any(d.any() for d in differences)
        self.n, self.clusters = self.sample.n, self.sample.num_clusters
        self.difference = self.sample.mean
        # the same model with the same scores differs by nothing, however few the items are
        self.interval = (0.0, 0.0) if self.same else self.sample.interval(LEVEL)

    def p_better(self, params: Verdict) -> float:
        """One-sided p value: is `arm` better? 1 for the same model with the same scores."""
        return 1.0 if self.same else self.sample.p_better(params.resamples, params.seed)

    def sentence(self, subject: str) -> str:
        """The difference in words, such as `domain: a 0.800 against b 0.100, +0.700 [+0.650, +0.750]`."""
        low, high = self.interval
        difference = f"{self.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        if self.in_units:
            return f"{subject}: {self.arm} minus {self.against} in units of each task's {self.kind}, {difference}"
        mine, other = self.means
        return f"{subject}: {self.arm} {mine:.3f} against {self.against} {other:.3f}, {difference}"


def threshold(params: Verdict, metric: str, kind: Limit) -> float:
    """A threshold of `verdict` in the unit of this metric."""
    found: float = getattr(params.metrics.get(metric, params), kind)
    return found


def item_scores(arm: Arm, task: str) -> Items:
    """Scores in the order of the item digests, which is the same for every arm."""
    by_item = arm.scores[task]
    return np.array([by_item[item] for item in sorted(by_item)], dtype=np.float64)


def score_range(arms: Iterable[Arm], task: str) -> tuple[float, float]:
    """The range of the scores of these arms (see `range_of`)."""
    return range_of([item_scores(arm, task) for arm in arms])


def range_of(scores: Sequence[Items]) -> tuple[float, float]:
    """[0, 1] if it contains every score, as for accuracies; otherwise the lowest and the highest score."""
    low, high = min(float(s.min()) for s in scores), max(float(s.max()) for s in scores)
    return SHARES if low >= 0 and high <= 1 else (low, high)


def clusters(arms: Iterable[Arm], tasks: Sequence[str]) -> list[list[tuple[str, ...]]]:
    """For each task, the cluster of each item, in the order of `item_scores`.

    An item without one is its own cluster. One cluster may have items of several tasks.
    """
    known = [arm for arm in arms if any(arm.clusters.values())]
    named = known[0].clusters if known else {}
    scores = next(iter(arms)).scores
    return [
        [(found,) if (found := named.get(task, {}).get(item)) else (task, item) for item in sorted(scores[task])]
        for task in tasks
    ]


def _largest(differences: Items) -> tuple[float, float]:
    """Plus or minus the largest difference observed: the range on an open scale."""
    largest = float(np.abs(differences).max())
    return -largest, largest
