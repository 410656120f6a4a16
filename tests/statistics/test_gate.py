"""The whole gate: how often a real gain ships, and how often harm slips through."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from shadowft_core.verdict.statistics import Sample
from tests.statistics.worlds import (
    ABLE,
    CEILING,
    MIDDLE,
    OPEN,
    PARAMS,
    SIGN,
    Rng,
    at_least,
    at_most,
    differences,
    gated,
    open_scale,
)

MARGIN, EACH, LEVEL = PARAMS.margin, PARAMS.margin_each, 0.01


def promoted(
    worlds: int, items: int, gain: float, guards: Sequence[tuple[int, float]] = (), **how: tuple[float, float]
) -> int:
    rng = np.random.default_rng(3)
    return sum(gated(rng, items, gain, guards, **how) == "promote" for _ in range(worlds))


@pytest.mark.statistics
def test_an_unharmed_gain_ships() -> None:
    found = promoted(300, 1000, 0.05, [(1500, 0.0)] * 4)
    assert at_least(found, 300, 0.8, "domain 1000 +5, guards 4 x 1500 unharmed, mean 0.8: promoted")
    hard = promoted(300, 1000, 0.05, [(1500, 0.0)] * 4, difficulty=MIDDLE)
    assert at_least(hard, 300, 0.7, "the same, guards with mean 0.5 (see the text): promoted")
    assert at_least(promoted(300, 10_000, 0.03), 300, 0.8, "domain 10000 +3, no guards: promoted")


@pytest.mark.statistics
@pytest.mark.parametrize("difficulty", [ABLE, MIDDLE])
@pytest.mark.parametrize("harmed", [1, 4])
def test_a_harmed_guard_passes_in_at_most_1_percent(harmed: int, difficulty: tuple[float, float]) -> None:
    guards = [(1500, -0.05)] * harmed + [(1500, 0.0)] * (4 - harmed)
    found = promoted(300, 1000, 0.05, guards, difficulty=difficulty)
    mean = difficulty[0] / sum(difficulty)
    assert at_most(found, 300, 0.01, f"domain 1000 +5, {harmed} of 4 guards x 1500 -5, mean {mean}: promoted")


def test_a_large_gain_ships_and_large_harm_does_not() -> None:
    assert promoted(20, 600, 0.12, [(1500, 0.0)] * 2) >= 18
    assert promoted(20, 600, 0.12, [(1500, 0.0), (1500, -0.1)]) == 0


def passing(make: Callable[[Rng], Sample], bound: float, level: float, worlds: int) -> int:
    rng = np.random.default_rng(4)
    return sum(make(rng).p_above(bound) <= level for _ in range(worlds))


def only_losses(rng: Rng, n: int, loss: float) -> Sample:
    """The Instruct is always right: nothing can be won, and the difference is as skewed as it can be."""
    return Sample([-(rng.random(n) < loss).astype(float)], [SIGN])


@pytest.mark.statistics
@pytest.mark.parametrize("n", [100, 300, 1000, 3000])
def test_a_guard_at_the_margin_passes_in_at_most_the_nominal_share(n: int) -> None:
    for bound, level in ((MARGIN, PARAMS.alpha), (EACH, LEVEL)):
        found = passing(lambda rng, m=bound: only_losses(rng, n, m), -bound, level, 2000)
        assert at_most(found, 2000, level, f"at margin {bound:g}, Instruct at the ceiling, n {n}: passed")
        for difficulty in (CEILING, ABLE):
            mean = difficulty[0] / sum(difficulty)
            found = passing(lambda rng, m=bound, d=difficulty: differences(rng, [n], -m, d), -bound, level, 2000)
            assert at_most(found, 2000, level, f"at margin {bound:g}, mean {mean}, n {n}: passed")


@pytest.mark.statistics
def test_four_guards_at_the_margin_pass_together_in_at_most_the_nominal_share() -> None:
    for n in (100, 300, 1500):
        found = passing(lambda rng, n=n: differences(rng, [n] * 4, -MARGIN, CEILING), -MARGIN, PARAMS.alpha, 2000)
        assert at_most(found, 2000, PARAMS.alpha, f"4 guards x {n} at margin {MARGIN:g}, mean 0.98: passed")


@pytest.mark.statistics
@pytest.mark.parametrize("shape", OPEN)
@pytest.mark.parametrize("n", [30, 100, 300])
def test_an_open_scale_at_the_margin_passes_in_at_most_the_nominal_share(shape: str, n: int) -> None:
    for level in (PARAMS.alpha, LEVEL):
        found = passing(lambda rng: open_scale(rng, shape, n, -0.5), -0.5, level, 2000)
        assert at_most(found, 2000, level, f"at the margin, {shape}, n {n}, level {level:g}: passed")


def test_some_guards_at_the_margin() -> None:
    found = passing(lambda rng: only_losses(rng, 300, MARGIN), -MARGIN, PARAMS.alpha, 300)
    assert at_most(found, 300, PARAMS.alpha)
    assert found > 0, "a test that never passes proves nothing"
    assert at_most(passing(lambda rng: open_scale(rng, "-lognormal", 30, -0.5), -0.5, 0.01, 300), 300, 0.01)


@pytest.mark.statistics
def test_what_passes_with_guards_of_300_items() -> None:
    """The table of docs/verdict.md; of each row, the bounds that must hold."""
    for change, share in ((0.0, 0.0), (-0.02, 0.0), (-0.03, 0.0), (-0.05, 0.01), (-0.08, 0.01), (-0.1, 0.01)):
        one = promoted(200, 1000, 0.1, [(300, change)] + [(300, 0.0)] * 3)
        every = promoted(200, 1000, 0.1, [(300, change)] * 4)
        print(f"| guards of 300, {change:+.2f} | one harmed: {one} of 200 | all harmed: {every} of 200 |")
        assert change > -0.05 or at_most(max(one, every), 200, share)
