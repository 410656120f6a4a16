"""Paired statistics on item scores: pure and seeded. The order and the names of the items do not matter.

Tasks are strata: the statistic is the mean of the task means. Items of one cluster are not independent.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.float64]

POWER = 0.8


def mean_of_tasks(tasks: Sequence[Items]) -> float:
    """Mean of the task means, so that every task has the same weight."""
    return math.fsum(math.fsum(items) / items.size for items in tasks) / len(tasks)


class Sample:
    """Scores of one arm, or differences of two arms on the same items, by task.

    `tasks[t]` has shape (items of t,); `ends[t]` are the least and the largest value that an item of t can have;
    `clusters[t]` names the cluster of each item, of which one can have items of several tasks.
    """

    def __init__(
        self,
        tasks: Sequence[Items],
        ends: Sequence[tuple[float, float]],
        clusters: Sequence[Sequence[Hashable]] | None = None,
    ) -> None:
        self.tasks = tasks
        self.n = sum(items.size for items in tasks)
        self.mean = mean_of_tasks(tasks)
        self.low = math.fsum(low for low, _ in ends) / len(ends)
        self.high = math.fsum(high for _, high in ends) / len(ends)
        flat: list[Hashable] = [name for names in clusters for name in names] if clusters else list(range(self.n))
        place: dict[Hashable, int] = {}
        index = np.array([place.setdefault(name, len(place)) for name in flat])
        self.num_clusters = len(place)
        values = np.concatenate(tasks)
        order = np.argsort(values, kind="stable")  # sums do not depend on the order of the items
        weights = np.concatenate([np.full(items.size, 1 / (items.size * len(tasks))) for items in tasks])
        means = np.concatenate([np.full(items.size, math.fsum(items) / items.size) for items in tasks])
        spread = np.concatenate(
            [np.full(items.size, math.sqrt(items.size / max(items.size - 1, 1))) for items in tasks]
        )

        def by_cluster(parts: Items) -> Items:
            return np.sort(np.bincount(index[order], parts[order], minlength=self.num_clusters).astype(np.float64))

        self.sums = by_cluster(weights * values)  # they add up to the mean
        self.residuals = by_cluster(weights * (values - means) * spread)
        self.size = 1 / float(np.sum(by_cluster(weights) ** 2))  # clusters of equal weight that would be as precise
        self.single = len(tasks) == 1 and self.num_clusters == self.n
        self._p: dict[float, float] = {}

    def _padded(self) -> tuple[float, float, float]:
        """Mean, variance of an observation and number of observations, with two at each end of the range added."""
        n = self.size
        variance = n * float(np.sum(self.residuals**2))
        total = n + 4
        mean = (n * self.mean + 2 * self.low + 2 * self.high) / total
        squares = n * (variance + (self.mean - mean) ** 2) + 2 * (self.low - mean) ** 2 + 2 * (self.high - mean) ** 2
        return mean, squares / total, total

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided interval of the mean.

        The whole is padded with two observations at each end of its range, so that a few items that all agree never
        look certain: "plus four" (Agresti and Caffo 2000). The mean itself is always inside.
        """
        from scipy.stats import t

        mean, variance, total = self._padded()
        half = float(t.ppf((1 + level) / 2, max(self.num_clusters + 3, 1))) * math.sqrt(variance / total)
        low, high = min(mean - half, self.mean), max(mean + half, self.mean)
        return max(low, self.low), min(high, self.high)

    def p_above(self, bound: float) -> float:
        """One-sided p value: is the mean above `bound`?"""
        if bound not in self._p:
            self._p[bound] = self._p_above(bound)
        return self._p[bound]

    def _p_above(self, bound: float) -> float:
        from scipy.stats import binomtest, t

        moved = self.sums[self.sums != 0]
        if bound == 0 and moved.size == 0:
            return 1.0
        if bound == 0 and self.single and np.unique(np.abs(moved)).size == 1:
            return float(binomtest(int((moved > 0).sum()), moved.size, 0.5, alternative="greater").pvalue)
        mean, variance, total = self._padded()
        return float(t.sf((mean - bound) / math.sqrt(variance / total), self.num_clusters + 3))

    def items_to_detect(self, effect: float, alpha: float) -> int:
        """The number of items, in the present mix, with which a one-sided test at `alpha` detects a true distance
        `effect` from its bound. The power is 80 %.
        """
        from scipy.stats import norm

        _, variance, total = self._padded()
        z = float(norm.isf(alpha) + norm.ppf(POWER))
        return math.ceil(self.n * variance / total * (z / effect) ** 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): reject while `adjusted <= alpha`, family-wise error at most alpha."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
