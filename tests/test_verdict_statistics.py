"""The statistics of the verdict, against values by hand, a published example and simulations."""

import numpy as np
import pytest
from scipy.stats import binom

from shadowft_core.verdict.statistics import holm, interval, items_to_detect, mean_of_tasks, p_greater

SIGN = [(-1.0, 1.0)]


@pytest.mark.parametrize("n", [30, 60, 100, 130, 200, 300, 400, 800])
def test_a_guard_at_its_margin_passes_at_most_alpha(n: int) -> None:
    """Computed, not simulated: items are lost with probability `margin` and never won, the most skewed case."""
    margin, passing = 0.03, 0
    for lost in range(n):
        items = [np.repeat([-1.0, 0.0], [lost, n - lost])]
        if interval(items, SIGN, 0.95, 9999, 0)[0] <= -margin:
            break
        passing += 1
    assert binom.cdf(passing - 1, n, margin) <= 0.05


@pytest.mark.parametrize(("losses", "wins"), [(0.02, 0.10), (0.3, 0.3), (0.0, 0.02)])
def test_intervals_cover_the_truth(losses: float, wins: float) -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        d = rng.choice([-1.0, 0.0, 1.0], size=80, p=[losses, 1 - losses - wins, wins])
        low, high = interval([d], SIGN, 0.95, 999, 0)
        covered += low <= wins - losses <= high
    assert covered >= binom.ppf(0.001, 400, 0.95)


def test_holm_equals_values_computed_by_hand() -> None:
    """Sorted .005 .01 .03 .04, times 4 3 2 1 = .02 .03 .06 .04; never below an earlier one: .02 .03 .06 .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]


def test_mcnemar_is_the_exact_binomial() -> None:
    """Agresti, Categorical Data Analysis: approval of the prime minister, 86 and 150 of 1600 changed their mind."""
    d = np.repeat([1.0, -1.0, 0.0], [150, 86, 1364])
    exact = sum(binom.pmf(k, 236, 0.5) for k in range(150, 237))
    assert p_greater([d], 999, 0) == pytest.approx(exact, rel=1e-9)
    assert exact == pytest.approx(1.86e-5, rel=0.02)
    assert p_greater([np.repeat([1.0, 0.0], [5, 20])], 999, 0) == pytest.approx(1 / 32)
    assert p_greater([np.repeat([1.0, -1.0], [9, 1])], 999, 0) == pytest.approx(11 / 1024)


def test_few_items_are_permuted_exhaustively() -> None:
    """Of the 8 signs of (1, 2, 4) the sums 7 and 5 reach 5: p = 2/8."""
    assert p_greater([np.array([-1.0, 2.0, 4.0])], 999, 0) == pytest.approx(2 / 8)


def test_a_long_task_weighs_as_much_as_a_short_one() -> None:
    assert mean_of_tasks([np.ones(1000), np.zeros(10)]) == 0.5
    low, high = interval([np.ones(1000), np.zeros(1000)], [(0.0, 1.0)] * 2, 0.95, 999, 0)
    assert 0.49 < low <= 0.5 <= high < 0.51  # resampled inside tasks: only the padding moves it


def test_needed_items_give_the_promised_power() -> None:
    rng = np.random.default_rng(5)
    p = [0.1, 0.75, 0.15]
    pilot = rng.choice([-1.0, 0.0, 1.0], size=4000, p=p)
    n = items_to_detect([pilot], SIGN, 0.05, 0.05)
    found = sum(p_greater([rng.choice([-1.0, 0.0, 1.0], size=n, p=p)], 999, 0) <= 0.05 for _ in range(400))
    low, high = binom.ppf([0.001, 0.999], 400, 0.8)
    assert low - 16 <= found <= high + 16  # 16 of 400: normal approximation and a pilot of finite size
