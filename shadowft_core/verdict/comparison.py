"""One arm minus another on some tasks, item by item, and the thresholds in the unit of each task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from shadowft_core.params import Verdict
from shadowft_core.verdict.scores import CHAMPIONS, Arm
from shadowft_core.verdict.statistics import Items, Sample, mean_of_tasks

Limit = Literal["margin", "margin_each", "worthwhile"]
LEVEL = 0.95  # of every interval
SHARES = (0.0, 1.0)  # range of scores that are shares of right answers
NEAR, TINY = 1e-9, 1e-12  # scores that differ by this share, or this much, differ only by float rounding


class Comparison:
    """`arm` minus `against` on `tasks`.

    With `pooled`, differences and means are means over the training seeds of the two arms, which are paired in order,
    and `by_seed` has the difference of each pair; the Instruct and champions are the same model beside each seed. If
    arms have other numbers of seeds, only the first of each is compared, as it is without `pooled`.

    If the tasks have different thresholds for `kind`, differences are in units of them, and `limit` is 1; else they are
    in score units, and `limit` is the threshold that all have.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        arm: str,
        against: str,
        tasks: Sequence[str],
        params: Verdict,
        kind: Limit,
        *,
        pooled: bool = False,
    ) -> None:
        first, second = arms[arm], arms[against]
        self.arm, self.against, self.tasks = arm, against, list(tasks)
        limits = [threshold(params, first.metrics[task], kind) for task in tasks]
        self.in_units = len(set(limits)) > 1
        self.limit = 1.0 if self.in_units else limits[0]
        self.kind = kind
        units = limits if self.in_units else [1.0] * len(limits)
        runs = runs_of(first, second) if pooled else [(first, second)]
        pairs = [(_over(runs, 0, task), _over(runs, 1, task)) for task in tasks]
        self.means = [mean_of_tasks(scores) for scores in zip(*pairs, strict=True)]
        differences = [_apart(mine, other) for mine, other in pairs]
        self.by_task = {task: mean_of_tasks([d]) for task, d in zip(tasks, differences, strict=True)}
        seen = [[item_scores(one, task) for pair in runs for one in pair] for task in tasks]
        closed = [range_of(scores) == SHARES or np.unique(scores).size == 2 for scores in seen]
        largest = [_largest(*one) for one in zip(seen, differences, closed, strict=True)]
        self.by_seed = _by_seed(runs, tasks, units)
        self.sample = Sample(
            [d / unit for d, unit in zip(differences, units, strict=True)],
            [(-end / unit, end / unit) for end, unit in zip(largest, units, strict=True)],
            clusters((first, second), tasks),
            open_scale=not all(closed),
            seeds=list(self.by_seed.values()),
        )
        same_models = all(mine.model_digest == other.model_digest for mine, other in runs)
        self.same = same_models and not any(d.any() for d in differences)
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
        if self.by_seed:
            subject += f", mean of {len(self.by_seed)} seeds"
        difference = f"{self.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        if self.in_units:
            return f"{subject}: {self.arm} minus {self.against} in units of each task's {self.kind}, {difference}"
        mine, other = self.means
        return f"{subject}: {self.arm} {mine:.3f} against {self.against} {other:.3f}, {difference}"


def runs_of(first: Arm, second: Arm) -> list[tuple[Arm, Arm]]:
    """The arms of each training seed, in pairs; only those of the first seed if they cannot be paired."""
    one, other = first.runs, second.runs
    if len(one) != len(other):
        fixed = ("instruct", *CHAMPIONS)
        one, other = (
            arm.runs * (many if arm.name in fixed else 1) for arm, many in ((first, len(other)), (second, len(one)))
        )
    return list(zip(one, other, strict=True)) if len(one) == len(other) else [(first, second)]


def threshold(params: Verdict, metric: str, kind: Limit) -> float:
    """A threshold of `verdict` in the unit of this metric."""
    found: float = getattr(params.metrics.get(metric, params), kind)
    return found


def _over(runs: Sequence[tuple[Arm, Arm]], side: int, task: str) -> Items:
    """Scores of one side of a comparison, as means over the seeds."""
    scores = [item_scores(pair[side], task) for pair in runs]
    return scores[0] if len(scores) == 1 else np.mean(scores, axis=0)


def _by_seed(runs: Sequence[tuple[Arm, Arm]], tasks: Sequence[str], units: Sequence[float]) -> dict[str, float]:
    """The difference of each pair of seeds; empty if there is one pair."""
    if len(runs) == 1:
        return {}
    found = {}
    for mine, other in runs:
        seeds = dict.fromkeys(str(arm.seed) for arm in (mine, other) if arm.seed is not None)
        scaled = zip(tasks, units, strict=True)
        differences = [_apart(item_scores(mine, task), item_scores(other, task)) / unit for task, unit in scaled]
        found["/".join(seeds)] = mean_of_tasks(differences)
    return found


def item_scores(arm: Arm, task: str) -> Items:
    """Scores in the order of the item digests, which is the same for every arm."""
    by_item = arm.scores[task]
    return np.array([by_item[item] for item in sorted(by_item)], dtype=np.float64)


def score_range(arms: Iterable[Arm], task: str) -> tuple[float, float]:
    """The range of the scores of these arms (see `range_of`)."""
    return range_of([item_scores(arm, task) for arm in arms])


def range_of(scores: Sequence[Items]) -> tuple[float, float]:
    """[0, 1] if it contains every score, as for accuracies; otherwise the lowest and the highest score. If all are
    equal, from there to 0: scores that agree may still not be all that are possible."""
    low, high = min(float(s.min()) for s in scores), max(float(s.max()) for s in scores)
    if low >= 0 and high <= 1:
        return SHARES
    return (min(low, 0.0), max(high, 0.0)) if np.isclose(low, high, rtol=NEAR, atol=TINY) else (low, high)


def clusters(arms: Iterable[Arm], tasks: Sequence[str]) -> list[list[tuple[str, ...]]]:
    """For each task, the cluster of each item, in the order of `item_scores`.

    An item without one is its own cluster. One cluster may have items of several tasks.
    """
    arms = list(arms)
    named = {task: names for arm in arms for task, names in arm.clusters.items() if names}
    scores = arms[0].scores
    return [
        [(found,) if (found := named.get(task, {}).get(item)) else (task, item) for item in sorted(scores[task])]
        for task in tasks
    ]


def _apart(mine: Items, other: Items) -> Items:
    """The differences. Scores that differ only by rounding are equal: it is no gain, on however many items."""
    return np.where(np.isclose(mine, other, rtol=NEAR, atol=TINY), 0.0, mine - other)


def _largest(scores: Sequence[Items], differences: Items, closed: bool) -> float:
    """The largest possible difference. On an open scale that is the largest one seen. If at least half are 0, that is
    no guide, as with 0/1 scores that are all right; then it is the largest among the scores and 0."""
    if not closed and 2 * np.count_nonzero(differences) > differences.size:
        return float(np.abs(differences).max())
    low, high = range_of(scores)
    return max(high - low, abs(low), abs(high))
