"""The spread of an estimate that has several independent parts, such as items and training seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TINY = 1e-300  # smaller p values are given as this


@dataclass(frozen=True)
class Spread:
    """Parts of the variance of one estimate, each `(variance, degrees of freedom)`.

    With several parts, the quantile of the standardised estimate is the mean of the t quantiles of the parts, weighted
    by their variances (Cochran and Cox 1950, for two means with unequal variances). Unlike Satterthwaite's degrees of
    freedom (1946) it keeps the level with two or three seeds: docs/verdict.md has the simulations.
    """

    parts: Sequence[tuple[float, float]]

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(math.fsum(variance for variance, _ in self.parts))

    def quantile(self, p: float) -> float:
        """The value that the standardised estimate exceeds with probability 1 - p."""
        from scipy.special import stdtrit

        kept = [(variance, freedom) for variance, freedom in self.parts if variance > 0] or self.parts[:1]
        if len(kept) == 1:
            return float(stdtrit(kept[0][1], p))
        total = math.fsum(variance for variance, _ in kept)
        return math.fsum(variance * float(stdtrit(freedom, p)) for variance, freedom in kept) / total

    def p_value(self, t: float) -> float:
        """The probability that the standardised estimate exceeds `t`: the inverse of `quantile`."""
        from scipy.optimize import brentq
        from scipy.special import stdtr

        kept = [freedom for variance, freedom in self.parts if variance > 0] or [self.parts[0][1]]
        if len(kept) == 1:
            return float(stdtr(kept[0], -t))
        if t < 0:
            return 1 - self.p_value(-t)
        low, high = (max(float(stdtr(freedom, -t)), TINY) for freedom in (max(kept), min(kept)))
        if self.quantile(low) >= -t:  # also t = 0
            return low
        if self.quantile(high) <= -t:
            return high
        return math.exp(float(brentq(lambda log: self.quantile(math.exp(log)) + t, math.log(low), math.log(high))))
