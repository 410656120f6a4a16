"""Paired statistics on item scores: pure and seeded. The order and the names of the items do not matter.

The statistic is the mean of the task means: tasks are strata. Items of one cluster are not independent, so they are
summed first. docs/verdict.md explains the formulas, and has the simulations that chose them.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowft_core.verdict.spread import Spread

Items = NDArray[np.float64]

POWER = 0.8
PADS = 2  # observations that are added at each end of the range
OPEN_SKEW = 2.0  # small samples of heavy tails show about half of their skewness
_CELLS = 4_000_000  # resampled numbers in memory at once: 32 MB


def mean_of_tasks(tasks: Sequence[Items]) -> float:
    """Mean of the task means, so that every task has the same weight."""
    return math.fsum(math.fsum(items) / items.size for items in tasks) / len(tasks)


@dataclass(frozen=True)
class Moments:
    """Of `size` observations whose mean is the statistic."""

    mean: float
    variance: float  # of an observation
    third: float  # central moment of an observation
    size: float

    def padded(self, low: float, high: float, times: float) -> "Moments":
        """The same with `times` observations added at `low` and at `high`."""
        total = self.size + 2 * times
        mean = (self.size * self.mean + times * (low + high)) / total
        shift = self.mean - mean
        second = self.size * (self.variance + shift**2)
        third = self.size * (self.third + 3 * shift * self.variance + shift**3)
        for end in (low, high):
            second += times * (end - mean) ** 2
            third += times * (end - mean) ** 3
        return Moments(mean, second / total, third / total, total)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.variance / self.size)

    @property
    def skewness(self) -> float:
        """Of the mean."""
        return self.third / self.variance**1.5 / math.sqrt(self.size) if self.variance > 0 else 0.0


class Sample:
    """Scores of one arm, or differences of two arms on the same items, by task.

    `tasks[t]` has shape (items of t,); `ends[t]` are the least and the largest value that an item of t can have;
    `clusters[t]` names the cluster of each item (default: each its own), of which one can have items of several tasks.
    `open_scale`: the ends are only the largest values seen, so the correction for skewness is doubled.

    `seeds`, at least two, are the means of single training seeds if `tasks` are means over them. Then the mean has two
    parts of variance: between items, that of `tasks`; between seeds, s^2 / S, where s^2 is the variance of the S means,
    with S - 1 degrees of freedom. These are the mean squares of a two-way layout with random seeds and items (Dorfman,
    Berbaum and Metz 1992), but the mean square of their interaction, which is in both parts, is not subtracted, so the
    sum is too large rather than too small.
    """

    def __init__(
        self,
        tasks: Sequence[Items],
        ends: Sequence[tuple[float, float]],
        clusters: Sequence[Sequence[Hashable]] | None = None,
        *,
        open_scale: bool = False,
        seeds: Sequence[float] = (),
    ) -> None:
        self.n = sum(items.size for items in tasks)
        self.mean = mean_of_tasks(tasks)
        self._low = math.fsum(low for low, _ in ends) / len(ends)
        self._high = math.fsum(high for _, high in ends) / len(ends)
        self._open_scale = open_scale
        index, self.num_clusters, of_task = numbered([items.size for items in tasks], clusters)
        values = np.concatenate(tasks)
        order = np.argsort(values, kind="stable")  # sums do not depend on the order of the items
        sizes = np.repeat([items.size for items in tasks], [items.size for items in tasks])
        weights = 1 / (sizes * len(tasks))
        means = np.repeat([math.fsum(items) / items.size for items in tasks], [items.size for items in tasks])
        # as the sum of squares about a mean is divided by n - 1
        spread = np.repeat([math.sqrt(c / max(c - 1, 1)) for c in of_task], [items.size for items in tasks])

        def by_cluster(parts: Items) -> Items:
            return np.sort(np.bincount(index[order], parts[order], minlength=self.num_clusters).astype(np.float64))

        self._sums = by_cluster(weights * values)  # they add up to the mean
        residuals = by_cluster(weights * (values - means) * spread)
        shares = by_cluster(weights)
        size, self._freedom = effective(shares)
        self._moments = Moments(
            self.mean, size * float(np.sum(residuals**2)), size**2 * float(np.sum(residuals**3)), size
        )
        binary = not open_scale and bool(np.isin(np.abs(values), (0.0, self._high)).all())
        self._exact = binary and len(tasks) == 1 and self.num_clusters == self.n and not seeds
        self._between = [(float(np.var(seeds, ddof=1)) / len(seeds), len(seeds) - 1.0)] if seeds else []

    def _spread(self, padded: Moments) -> Spread:
        return Spread([(padded.error**2, self._freedom), *self._between])

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided t interval of the mean, from padded moments. The mean itself is always inside.

        All items together are padded, not each task, with two observations at each end of the range: "plus four"
        (Agresti and Caffo 2000). So a few items that all agree never look certain.
        """
        padded = self._moments.padded(self._low, self._high, PADS)
        spread = self._spread(padded)
        half = spread.quantile((1 + level) / 2) * spread.error
        low, high = min(padded.mean - half, self.mean), max(padded.mean + half, self.mean)
        return max(low, self._low), min(high, self._high)

    def p_above(self, bound: float) -> float:
        """One-sided p value: is the mean above `bound`?

        The larger of two p values of a t statistic from padded moments: without and with Hall's transformation (1992),
        which removes the bias that skewness causes. A skewness that would lower p is ignored.
        """
        low, high = self._low, self._high
        if self._open_scale:  # no centre of the scale: the padding is about the bound, and pulls towards it
            reach = max(abs(low - bound), abs(high - bound))
            low, high = bound - reach, bound + reach
        padded = self._moments.padded(low, high, PADS)
        spread = self._spread(padded)
        if spread.error == 0:
            return 0.0 if self.mean > bound else 1.0
        t = (padded.mean - bound) / spread.error
        skewness = padded.skewness * (padded.error / spread.error) ** 3  # seeds are taken as symmetric
        a = (OPEN_SKEW if self._open_scale else 1.0) * min(skewness, 0.0)
        corrected = t + a * (t * t / 3 + 1 / 6) + a * a * t**3 / 27
        return spread.p_value(min(t, corrected))

    def p_better(self, resamples: int, seed: int) -> float:
        """One-sided p value of the hypothesis that no arm is better: is the mean above zero?

        The larger p value of `p_above` and of the permutation test that exchanges the arms in whole clusters. For one
        task of 0/1 scores whose items are their own clusters the permutation test is McNemar's exact test, and stands
        alone, if there is one seed. Differences that are equal for another reason do not: the loss that outweighs them
        may not be seen yet.
        """
        moved = self._sums[self._sums != 0]
        if moved.size == 0:
            return 1.0
        equal = np.unique(np.abs(moved)).size == 1  # exchanges are tosses of a coin, and the number of heads decides
        p = _p_of_tosses(moved) if equal else _p_of_exchanges(moved, resamples, seed)
        return p if self._exact else max(p, self.p_above(0.0))

    def items_to_detect(self, effect: float, alpha: float) -> int:
        """The number of items, in the present mix, with which a one-sided test at `alpha` detects a mean that is
        `effect` above its bound, with a power of 80 %.

        Solves (n + 4) * effect = z * sqrt(n * variance + squares of the padding) for n, with z = z_alpha + z_power. The
        variance is that of the items with half an observation added at each end.
        """
        from scipy.special import ndtri

        z = float(ndtri(1 - alpha) + ndtri(POWER))
        half_range = (self._high - self._low) / 2
        variance = self._moments.padded(self.mean - half_range, self.mean + half_range, 0.5).variance
        pads, squares = 2 * PADS, 2 * PADS * half_range**2
        b, c = z * z * variance, z * z * (squares - pads * variance)
        total = (b + math.sqrt(max(b * b + 4 * effect * effect * c, 0.0))) / (2 * effect * effect)
        return math.ceil(max(total - pads, 1.0) * self.n / self._moments.size)


def _p_of_tosses(moved: Items) -> float:
    """The probability of at most so many losses, if each is as probable as a win."""
    from scipy.special import bdtr

    return float(bdtr(int((moved < 0).sum()), moved.size, 0.5))


def _p_of_exchanges(moved: Items, resamples: int, seed: int) -> float:
    """One-sided p value of a sum if all signs are equally probable: of all exchanges if they are few, else of some.

    The latter is never below 1 / (resamples + 1), which is more than a late look may spend. But a sum of random signs
    exceeds t standard deviations with a probability of at most P(N > t) / (4 P(N > sqrt(2))) (Bentkus and Dzindzalieta
    2015), so that bounds p, too.
    """
    from scipy.special import ndtr
    from scipy.stats import permutation_test

    found = permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _CELLS // moved.size),
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    t = moved.sum() / math.sqrt(float(np.sum(moved**2)))
    return min(float(found.pvalue), float(ndtr(-t) / (4 * ndtr(-math.sqrt(2)))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): reject while `adjusted <= alpha`, family-wise error at most alpha."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def effective(shares: Items) -> tuple[float, float]:
    """Of clusters with these weights, which add up to 1: as many observations as would be as precise (Kish 1965), and
    the degrees of freedom with the padding (after Satterthwaite 1946)."""
    squares = float(np.sum(shares**2))
    return 1 / squares, squares**2 / float(np.sum(shares**4)) + 2 * PADS - 1


def numbered(
    sizes: Sequence[int], clusters: Sequence[Sequence[Hashable]] | None
) -> tuple[NDArray[np.int64], int, list[int]]:
    """Of tasks with so many items: the number of each item's cluster, the number of clusters, and that in each task."""
    if clusters is None:
        return np.arange(sum(sizes)), sum(sizes), list(sizes)
    place: dict[Hashable, int] = {}
    index = np.array([place.setdefault(name, len(place)) for names in clusters for name in names])
    return index, len(place), [len(set(names)) for names in clusters]
