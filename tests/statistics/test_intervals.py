"""How often 95 % intervals cover the truth, and whether the number of items that a claim asks for suffices."""

from collections.abc import Callable

import numpy as np
import pytest

from shadowft_core.verdict.statistics import Sample
from tests.statistics.worlds import (
    ABLE,
    CEILING,
    MIDDLE,
    OPEN,
    SHARE,
    SIGN,
    Rng,
    at_least,
    at_most,
    differences,
    open_scale,
)


def arm(rng: Rng, sizes: list[int], p: float) -> Sample:
    return Sample([(rng.random(n) < p).astype(float) for n in sizes], [SHARE] * len(sizes))


def harmed(rng: Rng, n: int, loss: float) -> Sample:
    return Sample([-(rng.random(n) < loss).astype(float)], [SIGN])


Case = tuple[Callable[[Rng], Sample], float, bool]  # a world, the truth, whether at most 97 % may be covered
CASES: dict[str, Case] = {}
for n in (30, 100, 300, 1000):
    for p in (0.98, 0.9, 0.5):
        CASES[f"one arm, n {n}, p {p}"] = lambda rng, n=n, p=p: arm(rng, [n], p), p, n >= 300 and p < 0.9
    for d in (MIDDLE, ABLE, CEILING):
        name = f"difference, n {n}, mean {d[0] / sum(d):g}"
        CASES[name] = lambda rng, n=n, d=d: differences(rng, [n], 0.0, d), 0.0, n >= 300 and d != CEILING
for sizes in ([30] * 4, [30] * 10, [300] * 4, [50, 300, 1000]):
    for p in (0.99, 0.98, 0.8):
        name = f"one arm, tasks {sizes}, p {p}"
        CASES[name] = lambda rng, s=sizes, p=p: arm(rng, s, p), p, max(sizes) >= 300 and p < 0.9
    for d in (MIDDLE, CEILING):
        name = f"difference, tasks {sizes}, mean {d[0] / sum(d):g}"
        CASES[name] = lambda rng, s=sizes, d=d: differences(rng, s, 0.0, d), 0.0, max(sizes) >= 300 and d == MIDDLE
for n in (30, 100, 300):
    CASES[f"only losses, n {n}"] = lambda rng, n=n: harmed(rng, n, 0.05), -0.05, False
    for shape in OPEN:
        CASES[f"{shape}, n {n}"] = lambda rng, s=shape, n=n: open_scale(rng, s, n), 0.0, False


def covered(make: Callable[[Rng], Sample], truth: float, worlds: int) -> int:
    rng, found = np.random.default_rng(5), 0
    for _ in range(worlds):
        low, high = make(rng).interval(0.95)
        found += low <= truth <= high
    return found


@pytest.mark.statistics
@pytest.mark.parametrize("case", CASES)
def test_95_percent_intervals_cover_93_to_97_percent(case: str) -> None:
    make, truth, exact = CASES[case]
    found = covered(make, truth, 1500)
    assert at_least(found, 1500, 0.93, f"covered: {case}")
    assert not exact or at_most(found, 1500, 0.97, f"covered: {case}")


@pytest.mark.parametrize(
    "case", ["one arm, n 30, p 0.98", "one arm, tasks [30, 30, 30, 30], p 0.98", "difference, n 300, mean 0.5"]
)
def test_some_intervals_cover_the_truth(case: str) -> None:
    found = covered(*CASES[case][:2], 200)
    assert at_least(found, 200, 0.93)
    assert not CASES[case][2] or at_most(found, 200, 0.97)


Needed = tuple[Callable[[Rng, int, float], Sample], int, float, float, bool]  # world, tasks, effect, level, superiority
NEEDED: dict[str, Needed] = {
    "domain": (lambda rng, n, gain: differences(rng, [n], gain), 1, 0.05, 0.04, True),
    "domain, mean 0.8": (lambda rng, n, gain: differences(rng, [n], gain, ABLE), 1, 0.05, 0.04, True),
    "each guard": (lambda rng, n, _: differences(rng, [n], 0.0, ABLE), 1, 0.05, 0.01, False),
    "each guard, mean 0.98": (lambda rng, n, _: differences(rng, [n], 0.0, CEILING), 1, 0.05, 0.01, False),
    "4 guards together": (lambda rng, n, _: differences(rng, [n] * 4, 0.0, ABLE), 4, 0.03, 0.05, False),
}


def shown(case: str, n: int, worlds: int) -> float:
    """The share of worlds in which `n` items show the effect."""
    make, tasks, effect, level, gain = NEEDED[case]
    rng, found = np.random.default_rng(6), 0
    for _ in range(worlds):
        sample = make(rng, n // tasks, effect)
        found += (sample.p_better(999, 0) if gain else sample.p_above(-effect)) <= level
    return found / worlds


@pytest.mark.statistics
@pytest.mark.parametrize("case", NEEDED)
def test_the_number_of_items_needed_is_right_within_a_factor_of_1_3(case: str) -> None:
    """Estimated from 200 items per task, the median over 200 samples: with 1/1.3 of that number the power is below
    80 %, with 1.3 times that number it is above."""
    make, _, effect, level, _ = NEEDED[case]
    rng = np.random.default_rng(7)
    told = int(np.median([make(rng, 200, 0.0).items_to_detect(effect, level) for _ in range(200)]))
    fewer, same, more = (shown(case, round(told * factor), 800) for factor in (1 / 1.3, 1, 1.3))
    print(f"| items needed, {case}: {told} told | power {fewer:.3f}, {same:.3f}, {more:.3f} | at 1/1.3, 1, 1.3 times |")
    assert fewer < 0.8 < more
