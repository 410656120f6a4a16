"""Paired statistics on item scores: pure and seeded. The order and the names of the items do not matter.

Tasks are strata: the statistic is the mean of the task means, and items are resampled within their task. A task is a
float64 array of shape (items,): the scores of one arm, or the differences of two arms on the same items.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Items = NDArray[np.float64]

POWER = 0.8
_CELLS = 4_000_000  # resampled numbers in memory at once: 32 MB


def mean_of_tasks(tasks: Sequence[Items]) -> float:
    """Mean of the task means, so that every task has the same weight."""
    return math.fsum(math.fsum(items) / items.size for items in tasks) / len(tasks)


def interval(
    tasks: Sequence[Items], ranges: Sequence[tuple[float, float]], level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Two-sided percentile bootstrap interval of the mean of the task means.

    If all items agree, a plain bootstrap has width zero, even with few items. So each task is first padded with two
    items at the low and two at the high end of its range: the "plus four" interval (Agresti and Caffo 2000; for paired
    scores Bonett and Price 2012 add one of each). The estimate is never padded, and is always inside the interval.
    """
    rng = np.random.default_rng(seed)
    totals = np.zeros(resamples)
    for items, ends in zip(tasks, ranges, strict=True):
        values, counts = np.unique(_padded(items, ends), return_counts=True)
        n = int(counts.sum())
        step = max(1, _CELLS // values.size)
        for start in range(0, resamples, step):
            rows = totals[start : start + step]
            rows += (rng.multinomial(n, counts / n, size=rows.size) * values).sum(axis=1) / n
    low, high = (float(q) for q in np.quantile(totals / len(tasks), [(1 - level) / 2, (1 + level) / 2]))
    centre = mean_of_tasks(tasks)
    return min(low, centre), max(high, centre)


def p_greater(differences: Sequence[Items], resamples: int, seed: int) -> float:
    """One-sided p value of the paired sign-flip permutation test: is the mean of the task means above zero?

    Items without a difference have no information about the sign and are left out. If all others have the same absolute
    weight (one task, scores 0 and 1), the flips are coin tosses, and the exact binomial applies: McNemar's exact test.
    """
    from scipy.stats import binomtest, permutation_test

    weighted = np.sort(np.concatenate([d / (d.size * len(differences)) for d in differences]))
    weighted = weighted[weighted != 0]
    if weighted.size == 0:
        return 1.0
    if np.unique(np.abs(weighted)).size == 1:
        wins = int((weighted > 0).sum())
        return float(binomtest(wins, weighted.size, 0.5, alternative="greater").pvalue)
    result = permutation_test(
        (weighted,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _CELLS // weighted.size),
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): reject while `adjusted <= alpha`, family-wise error at most alpha."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def items_to_detect(
    differences: Sequence[Items], ranges: Sequence[tuple[float, float]], gain: float, alpha: float
) -> int:
    """The number of items, in the present mix of tasks, with which a one-sided test at `alpha` detects a true `gain`.

    The power is 80 %.

    Normal approximation `n * se^2 * (z_alpha + z_power)^2 / gain^2`, se from the padded differences (see `interval`).
    """
    from scipy.stats import norm

    error = math.fsum(
        float(padded.var(ddof=1)) / padded.size
        for padded in (_padded(d, ends) for d, ends in zip(differences, ranges, strict=True))
    )
    n = sum(d.size for d in differences)
    z = float(norm.isf(alpha) + norm.ppf(POWER))
    return math.ceil(n * error / len(differences) ** 2 * (z / gain) ** 2)


def _padded(items: Items, ends: tuple[float, float]) -> Items:
    return np.sort(np.concatenate([items, np.repeat(np.asarray(ends, dtype=np.float64), 2)]))
