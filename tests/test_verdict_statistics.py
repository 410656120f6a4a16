"""The statistics of the verdict, against values by hand and a published example."""

import numpy as np
import pytest
from scipy.stats import binom

from shadowft_core.verdict.statistics import Sample, holm, mean_of_tasks

SIGN = [(-1.0, 1.0)]


def test_holm_equals_values_computed_by_hand() -> None:
    """Sorted .005 .01 .03 .04, times 4 3 2 1 = .02 .03 .06 .04; never below an earlier one: .02 .03 .06 .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]


def test_mcnemar_is_the_exact_binomial() -> None:
    """Agresti, Categorical Data Analysis: approval of the prime minister, 86 and 150 of 1600 changed their mind."""
    d = np.repeat([1.0, -1.0, 0.0], [150, 86, 1364])
    exact = sum(binom.pmf(k, 236, 0.5) for k in range(150, 237))
    assert Sample([d], SIGN).p_better(999, 0) == pytest.approx(exact, rel=1e-9)
    assert exact == pytest.approx(1.86e-5, rel=0.02)
    assert Sample([np.repeat([1.0, 0.0], [5, 20])], SIGN).p_better(999, 0) == pytest.approx(1 / 32)
    assert Sample([np.repeat([1.0, -1.0], [9, 1])], SIGN).p_better(999, 0) == pytest.approx(11 / 1024)


def test_a_long_task_weighs_as_much_as_a_short_one() -> None:
    assert mean_of_tasks([np.ones(1000), np.zeros(10)]) == 0.5
    low, high = Sample([np.ones(1000), np.zeros(1000)], [(0.0, 1.0)] * 2).interval(0.95)
    assert 0.49 < low <= 0.5 <= high < 0.51  # within tasks nothing varies
