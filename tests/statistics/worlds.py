"""Simulated worlds: scores of which the truth is known, and the bounds of what may be seen in them.

`make test-statistics` prints what was seen, for the table of docs/verdict.md.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtr
from scipy.stats import binom

from shadowft_core.params import Verdict
from shadowft_core.verdict import Decision, claims, decide
from shadowft_core.verdict.scores import Arm
from shadowft_core.verdict.statistics import Items, Sample
from tests.fixtures.arms import CANDIDATE, arm

SHARE, SIGN = (0.0, 1.0), (-1.0, 1.0)
MIDDLE, ABLE, CEILING = (2.0, 2.0), (4.0, 1.0), (49.0, 1.0)
"""Beta distributions of difficulties, with means 0.5, 0.8 and 0.98"""
RHO = 0.6  # correlation of the Gaussian copula between two arms on one item
PARAMS = Verdict(resamples=999)
Rng = np.random.Generator


def answers(rng: Rng, n: int, gain: float = 0.0, difficulty: tuple[float, float] = MIDDLE) -> tuple[Items, Items]:
    """0/1 scores of two arms on `n` items. The mean of the second is higher by `gain` (lower, if negative): the
    probability of each item moves towards 1 (or 0) by the same share of its distance."""
    p = rng.beta(*difficulty, n)
    mean = difficulty[0] / sum(difficulty)
    q = p + gain * ((1 - p) / (1 - mean) if gain > 0 else p / mean)
    common = np.sqrt(RHO) * rng.normal(size=n)
    noise = np.sqrt(1 - RHO) * rng.normal(size=(2, n))
    return (ndtr(common + noise[0]) < p).astype(float), (ndtr(common + noise[1]) < q).astype(float)


def differences(rng: Rng, sizes: Sequence[int], gain: float = 0.0, difficulty: tuple[float, float] = MIDDLE) -> Sample:
    """Second minus first arm on tasks of these sizes."""
    pairs = [answers(rng, n, gain, difficulty) for n in sizes]
    return Sample([second - first for first, second in pairs], [SIGN] * len(sizes))


def passages(rng: Rng, num: int, questions: int, shared: float) -> Sample:
    """Equal arms on passages with several questions each; `shared` is how much an arm's answers to one have in common,
    1 for copies of one question."""
    cluster = np.repeat(np.arange(num), questions)
    p = rng.beta(*MIDDLE, num)[cluster]
    of_passage = np.sqrt(shared) * rng.normal(size=(2, num))[:, cluster]
    own = np.sqrt(1 - shared) * rng.normal(size=(2, cluster.size))
    first, second = (ndtr(of_passage + own) < p).astype(float)
    return Sample([second - first], [SIGN], [cluster.tolist()])


OPEN: dict[str, Callable[[Rng, int], Items]] = {
    "t3": lambda rng, n: rng.standard_t(3, n),
    "-Exp": lambda rng, n: 1 - rng.exponential(1, n),
    "-lognormal": lambda rng, n: np.exp(0.5) - rng.lognormal(0, 1, n),
    "-lognormal(0.5)": lambda rng, n: np.exp(0.125) - rng.lognormal(0, 0.5, n),
}
"""differences with mean 0 on an open scale"""


def open_scale(rng: Rng, shape: str, n: int, mean: float = 0.0) -> Sample:
    d = OPEN[shape](rng, n) + mean
    largest = float(np.abs(d).max())
    return Sample([d], [(-largest, largest)], open_scale=True)


def gated(
    rng: Rng,
    items: int,
    gain: float,
    guards: Sequence[tuple[int, float]] = (),
    difficulty: tuple[float, float] = ABLE,
) -> Decision:
    """The decision at a first look without a champion. `guards`: items and true gain of each."""
    tasks = {"domain": ("domain", answers(rng, items, gain))}
    tasks |= {f"guard {k}": ("guard", answers(rng, n, change, difficulty)) for k, (n, change) in enumerate(guards)}
    arms: dict[str, Arm] = {
        name: arm(name, {task: (role, pair[side]) for task, (role, pair) in tasks.items()})
        for side, name in enumerate(("instruct", CANDIDATE))
    }
    return decide(claims.gate(arms, CANDIDATE, PARAMS, 0.8 * PARAMS.alpha))


def at_most(count: int, worlds: int, bound: float, what: str = "") -> bool:
    """False if the 99 % interval of count / worlds (Clopper and Pearson 1934) is above `bound`."""
    print(f"| {what} | {count} of {worlds} = {count / worlds:.4f} | at most {bound:g} |")
    return count == 0 or float(binom.sf(count - 1, worlds, bound)) > 0.005


def at_least(count: int, worlds: int, bound: float, what: str = "") -> bool:
    """False if the 99 % interval of count / worlds (Clopper and Pearson 1934) is below `bound`."""
    print(f"| {what} | {count} of {worlds} = {count / worlds:.4f} | at least {bound:g} |")
    return count == worlds or float(binom.cdf(count, worlds, bound)) > 0.005
