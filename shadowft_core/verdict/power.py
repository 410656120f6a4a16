"""What a verdict can show, before anything is trained: the power of the claims of the gate, from numbers of items.

The formulas are those of the gate (statistics.py), with the moments that the differences are expected to have in place
of those that were seen. docs/verdict.md says what is assumed. `tests/statistics` compares them with simulated verdicts.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from shadowft_core.params import Verdict
from shadowft_core.verdict.looks import alpha_of
from shadowft_core.verdict.statistics import OPEN_SKEW, PADS, POWER, Items, Moments, effective, numbered

DIFFER = (
    0.25  # share of 0/1 items on which two equal arms differ: what 1,500 items at a mean of 0.5 show (docs/verdict.md)
)
TOGETHER = 0.5  # correlation of the differences of two items of one cluster
GAIN = 0.5  # standard deviations of a worthwhile gain on an open scale: a medium effect (Cohen 1988)
REACH = 3.0  # standard deviations of the largest difference on an open scale
PER_BYTE = "logprob_per_byte"  # the metric of evaluate that is no share
_WORLDS = 100_000  # of `pass_together`
_MOST = 1 << 30  # items

Kind = Literal["right or wrong", "share", "open"]


@dataclass(frozen=True)
class Spread:
    """How the differences of two equal arms on the items of a task spread.

    `square` is their mean square: of scores that are 0 or 1 (`right or wrong`), the share of items on which the arms
    differ. `reach` is the largest difference, `third` the mean cube on an open scale, `together` the correlation in a
    cluster, `room` the largest gain that the level of the Instruct leaves.
    """

    square: float
    kind: Kind = "right or wrong"
    reach: float = 1.0
    third: float = 0.0
    together: float = TOGETHER
    room: float = 1.0

    def variance(self, gain: float) -> float:
        """Of a difference with the mean `gain`.

        A gain on 0/1 items multiplies the odds of wins against losses and leaves their product, as if each item had
        its own difficulty (Rasch 1960): the arms then differ on sqrt(square^2 + gain^2) of the items.
        """
        return self.discordant(gain) - gain**2 if self.kind == "right or wrong" else self.square

    def discordant(self, gain: float) -> float:
        """The share of 0/1 items on which the arms differ."""
        return min(math.hypot(self.square, gain), 1.0)


def spread_of(differences: Items, clusters: Sequence[Hashable], *, open_scale: bool, room: float = 1.0) -> Spread:
    """The spread of two arms without the gain that one has here. `differences` has shape (items,)."""
    mean = math.fsum(differences) / differences.size
    centred = differences - mean
    binary = not open_scale and bool(np.isin(differences, (-1.0, 0.0, 1.0)).all())
    kind: Kind = "open" if open_scale else "right or wrong" if binary else "share"
    square = math.fsum(differences**2) / differences.size
    variance = math.fsum(centred**2) / differences.size
    index, count, _ = numbered([differences.size], [clusters])
    sums, sizes = np.bincount(index, centred, count), np.bincount(index, minlength=count)
    pairs = math.fsum(sizes * (sizes - 1.0))
    together = (math.fsum(sums**2) - math.fsum(centred**2)) / (pairs * variance) if pairs and variance else 0.0
    return Spread(
        square=math.sqrt(max(square**2 - mean**2, 0.0)) if binary else variance,
        kind=kind,
        reach=float(np.abs(differences).max()) if open_scale else 1.0,
        third=math.fsum(centred**3) / differences.size if open_scale else 0.0,
        together=min(max(together, 0.0), 1.0),
        room=room,
    )


@dataclass(frozen=True)
class Task:
    """The items of a task: the cluster of each, and the unit in which differences are counted."""

    clusters: Sequence[Hashable]
    spread: Spread = Spread(DIFFER)
    unit: float = 1.0


class Design:
    """The mean over these tasks of the differences of two arms, before it is measured. `n` is the number of items."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)
        sizes = [len(task.clusters) for task in tasks]
        self.n = sum(sizes)
        self._index, self.clusters, _ = numbered(sizes, [task.clusters for task in tasks])
        self._weights = np.repeat([1 / (size * len(sizes)) for size in sizes], sizes)
        self._size, self._freedom = effective(np.bincount(self._index, self._weights, self.clusters).astype(np.float64))
        self.open_scale = any(task.spread.kind == "open" for task in tasks)
        self._one_item = float(self._weights.max()) if all(t.spread.kind == "right or wrong" for t in tasks) else 0.0
        self._reach = math.fsum(task.spread.reach / task.unit for task in tasks) / len(tasks)
        self._exact = len(tasks) == 1 and self.clusters == self.n and tasks[0].spread.kind == "right or wrong"
        self.room = min(task.spread.room / task.unit for task in tasks)
        """the largest gain that all tasks have room for"""

    def deviation(self, gain: float = 0.0) -> float:
        """Standard deviation of the mean difference, if its mean is `gain`."""
        return math.sqrt(self._variance(gain) / self._size)

    def above(self, bound: float, gain: float, level: float, factor: float = 1.0) -> float:
        """The probability that a mean of `gain` is shown to be above `bound` at `level`, with `factor` times as many
        items. The critical value is that of the p value of a claim, `Sample.p_above`."""
        from scipy.special import ndtr, stdtrit

        size = self._size * factor
        seen = Moments(gain, self._variance(gain), self._third, size)
        low, high = -self._reach, self._reach
        if self.open_scale:
            low, high = bound - max(high - bound, bound - low), bound + max(high - bound, bound - low)
        padded = seen.padded(low, high, PADS)
        if padded.error == 0:
            return float(gain > bound)
        fixed = 2 * PADS - 1
        critical = float(stdtrit((self._freedom - fixed) * factor + fixed, 1 - level))
        if (a := (OPEN_SKEW if self.open_scale else 1.0) * min(padded.skewness, 0.0)) < 0:
            critical = max(critical, 3 / a * (float(np.cbrt(1 + a * (critical - a / 6))) - 1))  # Hall's, inverted
        ahead = (padded.mean - bound) / padded.error - critical
        spread = seen.error * size / padded.size / padded.error  # standard deviation of the t statistic
        return float(ndtr(ahead / spread)) if spread else float(ahead >= 0)

    def better(self, gain: float, level: float, factor: float = 1.0) -> float:
        """The probability that `gain` is shown at `level`: by McNemar's exact test where the gate uses that, else by
        `above` and the permutation test, whose errors are those of a mean of 0."""
        from scipy.special import ndtr, ndtri

        if self._exact:
            return self._mcnemar(gain, level, round(self.n * factor))
        variance, size = self._variance(gain), self._size * factor
        if variance == 0:
            return self.above(0.0, gain, level, factor)
        ahead = gain - float(ndtri(1 - level)) * math.sqrt((variance + gain**2) / size)
        return min(float(ndtr(ahead / math.sqrt(variance / size))), self.above(0.0, gain, level, factor))

    def smallest_gain(self, level: float, power: float = POWER) -> float | None:
        """The smallest gain that is shown with this probability; None if no gain in `room` is."""
        low, high = 0.0, min(self.room, self.deviation() or self.room)
        while self.better(high, level) < power:
            if high >= self.room or power >= 1:
                return None
            low, high = high, min(2 * high, self.room)
        while high - low > 1e-4 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.better(middle, level) >= power else (middle, high)
        return high

    def needed_to_show(self, gain: float, level: float, power: float = POWER) -> int | None:
        """The number of items, in the present mix, that show `gain` with this probability; None if there is no room."""
        if gain > self.room:
            return None
        return self._needed(lambda factor: self.better(gain, level, factor) >= power)

    def needed_to_pass(self, margin: float, level: float, power: float) -> int | None:
        """The number of items, in the present mix, with which an arm without a loss passes."""
        return self._needed(lambda factor: self.above(-margin, 0.0, level, factor) >= power)

    def seen_above(self, bound: float, gain: float, factor: float = 1.0) -> float:
        """The probability that the mean difference that is seen, without any test, is above `bound`."""
        from scipy.special import ndtr

        deviation = self.deviation(gain) / math.sqrt(factor)
        return float(ndtr((gain - bound) / deviation)) if deviation else float(gain > bound)

    def ahead(self, gain: float, factor: float = 1.0) -> float:
        """The probability that an arm with this gain is ahead by more than one 0/1 item, as `select` asks of it."""
        return self.seen_above(self._one_item / factor, gain, factor)

    def needed_to_be_ahead(self, gain: float) -> int | None:
        """The number of items, in the present mix, that put an arm with this gain ahead with a probability of 0.8."""
        return self._needed(lambda factor: self.ahead(gain, factor) >= POWER)

    def _needed(self, enough: Callable[[float], bool]) -> int | None:
        low, high = 0, 1
        while not enough(high / self.n):
            low, high = high, 2 * high
            if high > _MOST:
                return None
        while high - low > max(1, high // 500):
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle / self.n) else (middle, high)
        return high

    def _variance(self, gain: float) -> float:
        """Of one of `_size` observations: items of a cluster have a part of their difference in common."""
        own, common = np.zeros(self.n), np.zeros(self.n)
        start = 0
        for task in self._tasks:
            part = slice(start, start := start + len(task.clusters))
            variance = task.spread.variance(gain * task.unit) / task.unit**2
            own[part] = (1 - task.spread.together) * variance
            common[part] = math.sqrt(task.spread.together * variance)
        if self.clusters == self.n:
            return self._size * float(np.sum(self._weights**2 * (own + common**2)))
        sums = np.bincount(self._index, self._weights * common, self.clusters)
        return self._size * float(np.sum(self._weights**2 * own) + np.sum(sums**2))

    @cached_property
    def _third(self) -> float:
        thirds = [np.full(len(task.clusters), task.spread.third / task.unit**3) for task in self._tasks]
        return self._size**2 * float(np.sum(self._weights**3 * np.concatenate(thirds)))

    def _mcnemar(self, gain: float, level: float, n: int) -> float:
        """The power of McNemar's exact test on `n` items, over all numbers of items on which the arms differ."""
        from scipy.special import bdtr, bdtrik, gammaln, xlog1py, xlogy

        differ = self._tasks[0].spread.discordant(gain)
        if differ == 0:
            return 0.0
        around = 8 * math.sqrt(n * differ * (1 - differ)) + 8
        counts = np.arange(max(1, math.floor(n * differ - around)), min(n, math.ceil(n * differ + around)) + 1)
        chance = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
        chance = np.exp(chance + xlogy(counts, differ) + xlog1py(n - counts, -differ))
        losses = np.round(bdtrik(level, counts, 0.5)) + 1  # how many may be lost, or one or two more
        for _ in range(3):
            losses -= (losses >= 0) & (bdtr(np.maximum(losses, 0), counts, 0.5) > level)
        wins = bdtr(np.maximum(losses, 0), counts, (differ - gain) / (2 * differ))
        return float(np.sum(chance[losses >= 0] * wins[losses >= 0]))


def pass_together(alone: Sequence[float], together: float, parts: Sequence[float]) -> float:
    """The probability that all guards pass, each and together, if they are independent of each other.

    `alone` are the probabilities that each passes, `together` that of the claim about all, and `parts` the standard
    deviation that each adds to the mean of that claim.
    """
    from scipy.special import ndtri

    seen = np.random.default_rng(0).standard_normal((_WORLDS, len(alone)))
    whole = seen @ np.array(parts) / (math.sqrt(math.fsum(part**2 for part in parts)) or 1.0)
    return float(np.mean((seen >= -ndtri(np.array(alone))).all(axis=1) & (whole >= -float(ndtri(together)))))


def assumed_spread(differ: float = DIFFER, worthwhile: float | None = None, level: float | None = None) -> Spread:
    """The spread where nothing was measured: on an open scale by its `worthwhile`, else of 0/1 scores.

    `differ` is the share of items on which two equal arms differ; if `level`, the Instruct's mean, is near 0 or 1, it
    is smaller, in proportion to the variance of its scores.
    """
    if worthwhile is not None:
        deviation = worthwhile / GAIN
        return Spread(deviation**2, "open", REACH * deviation, room=math.inf)
    return Spread(differ) if level is None else Spread(4 * level * (1 - level) * differ, room=1 - level)


def too_few(role: Literal["dev", "test"], sizes: Mapping[str, int], open_scale: Set[str], params: Verdict) -> str:
    """A warning if so many items of the domain can probably not decide; empty if they can.

    Dev items can choose if an arm with a gain of `worthwhile` is ahead of the Instruct on them by more than one item
    with a probability of 0.8. Test items can decide if such a gain is shown at the first look with that probability.
    The spread is `assumed_spread`. `sizes` are items by task, `open_scale` the tasks scored by log-likelihood.
    """
    gain = params.metrics[PER_BYTE].worthwhile if PER_BYTE in params.metrics and open_scale else params.worthwhile
    if len(open_scale) not in (0, len(sizes)):
        return ""  # different units
    spread = assumed_spread(worthwhile=gain if open_scale else None)
    design = Design([Task([(name, item) for item in range(n)], spread) for name, n in sizes.items()])
    level = alpha_of(params.alpha, 1)
    found = design.ahead(gain) if role == "dev" else design.better(gain, level)
    if found >= POWER:
        return ""
    needed = design.needed_to_be_ahead(gain) if role == "dev" else design.needed_to_show(gain, level)
    what = "put an arm that gains {} ahead" if role == "dev" else "show a gain of {}"
    return (
        f"{design.n} {role} items of {', '.join(sizes):.200} {what.format(f'{gain:g}')} with a probability of only "
        f"{found:.2f}; about {needed} would do so with {POWER:g}; `shadowft power` says what can be decided"
    )
