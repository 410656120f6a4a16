"""Two ways to tune that are equally good, each trained with a few seeds: how often one is called better."""

import numpy as np
import pytest
from scipy.special import ndtr

from shadowft_core.verdict.statistics import Items, Sample, mean_of_tasks
from tests.statistics.worlds import MIDDLE, PARAMS, RHO, SIGN, Rng, at_least, at_most


def seeds_of(rng: Rng, seeds: int, n: int, spread: float, gain: float = 0.0) -> Items:
    """Differences of two arms, shape (seeds, items). Each training of an arm is better or worse than another by a
    Gaussian amount of standard deviation `spread`, in probits; `gain` is that of the second arm."""
    p = rng.beta(*MIDDLE, n)
    common = np.sqrt(RHO) * rng.normal(size=n)
    luck = spread * rng.normal(size=(2, seeds, 1))
    luck[1] += gain
    noise = np.sqrt(1 - RHO) * rng.normal(size=(2, seeds, n))
    first, second = (ndtr(common + noise - luck) < p).astype(float)
    return np.asarray(second - first)


def pooled(differences: Items) -> Sample:
    by_seed = [mean_of_tasks([one]) for one in differences]
    return Sample([differences.mean(axis=0)], [SIGN], seeds=by_seed)


def better(worlds: int, *world: float | int, alpha: float = PARAMS.alpha) -> int:
    rng, found = np.random.default_rng(6), 0
    for _ in range(worlds):
        sample = pooled(seeds_of(rng, *world))  # type: ignore[arg-type]
        found += sample.p_above(0.0) <= alpha and sample.p_better(999, 0) <= alpha  # the second is never smaller
    return found


@pytest.mark.statistics
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize(("seeds", "n"), [(2, 300), (3, 100), (3, 300), (3, 1000), (5, 300)])
def test_a_way_that_is_no_better_is_better_in_at_most_alpha(seeds: int, n: int, spread: float) -> None:
    found = better(2000, seeds, n, spread)
    assert at_most(found, 2000, PARAMS.alpha, f"null, {seeds} seeds that differ by {spread:g}, n {n}: better")


@pytest.mark.statistics
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.4])
def test_intervals_over_seeds_cover_the_truth(spread: float) -> None:
    for seeds, n in ((2, 300), (3, 300), (5, 300)):
        rng, found = np.random.default_rng(7), 0
        for _ in range(1500):
            low, high = pooled(seeds_of(rng, seeds, n, spread)).interval(0.95)
            found += low <= 0 <= high
        assert at_least(found, 1500, 0.93, f"covered: {seeds} seeds that differ by {spread:g}, n {n}")


@pytest.mark.statistics
def test_a_real_gain_is_seen_over_seeds() -> None:
    found = better(300, 3, 300, 0.05, 0.4)
    assert at_least(found, 300, 0.8, "3 seeds that differ by 0.05, n 300, a gain of 0.4 probits: better")


def test_some_ways_that_are_no_better() -> None:
    """Three seeds, 300 items. Without the part between seeds, two in five of these worlds would be wrong."""
    found = better(300, 3, 300, 0.3)
    assert at_most(found, 300, PARAMS.alpha)
    assert found > 0, "a test that never rejects proves nothing"
    rng = np.random.default_rng(6)
    items_alone = sum(Sample([seeds_of(rng, 3, 300, 0.3).mean(axis=0)], [SIGN]).p_above(0) <= 0.05 for _ in range(300))
    assert not at_most(items_alone, 300, PARAMS.alpha)
    assert better(20, 3, 300, 0.05, 1.0) == 20
