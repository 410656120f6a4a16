"""The statistics of the verdict, against values by hand and a published example."""

import numpy as np
import pytest
from scipy.stats import binom, norm, t

from shadowft_core.verdict.statistics import Sample, holm, mean_of_tasks
from tests.fixtures.arms import CANDIDATE, CLEAR, PARAMS, arena, decided, five

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


def padded(d: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, error, skewness of the mean and degrees of freedom, by the formulas of docs/verdict.md on real items."""
    n = d.size
    centred = (d - d.mean()) * np.sqrt(n / (n - 1))  # has the variance that is divided by n - 1
    whole = np.concatenate([centred + d.mean(), [-1, -1, 1, 1]])
    mean, sigma = whole.mean(), whole.std()
    skewness = ((whole - mean) ** 3).mean() / sigma**3 / np.sqrt(n + 4)
    return float(mean), float(sigma / np.sqrt(n + 4)), float(skewness), n + 3


def test_the_interval_is_a_95_percent_t_interval_of_padded_items() -> None:
    d = np.repeat([1.0, -1.0, 0.0], [30, 18, 152])
    mean, error, _, freedom = padded(d)
    low, high = Sample([d], SIGN).interval(0.95)
    half = t.ppf(0.975, freedom) * error
    assert (low, high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    found = decided(arena({"instruct": np.maximum(-d, 0.0), CANDIDATE: np.maximum(d, 0.0)}))["claims"][0]
    assert found["interval"] == (pytest.approx(low), pytest.approx(high))


def test_the_p_value_of_a_guard_is_that_of_the_skewed_t_statistic() -> None:
    d = np.repeat([-1.0, 0.0], [4, 396])
    mean, error, skewness, freedom = padded(d)
    plain = (mean + 0.03) / error
    a = min(skewness, 0.0)
    assert a < 0
    corrected = plain + a * (plain**2 / 3 + 1 / 6) + a**2 * plain**3 / 27
    assert corrected < plain, "losses alone are skewed to the left"
    assert Sample([d], SIGN).p_above(-0.03) == pytest.approx(t.sf(corrected, freedom), rel=1e-9)
    mirrored = Sample([-d], SIGN)
    mean, error, skewness, freedom = padded(-d)
    assert mirrored.p_above(-0.03) == pytest.approx(t.sf((mean + 0.03) / error, freedom)), "no credit for wins"


@pytest.mark.parametrize("lost", range(0, 12, 2))
def test_a_guard_passes_if_and_only_if_p_at_its_margin_is_at_most_its_level(lost: int) -> None:
    kept = (np.arange(400) >= lost).astype(float)
    _, every, each = decided(arena(five(CLEAR), {CANDIDATE: kept}))["claims"][:3]
    sample = Sample([kept - 1], SIGN)
    for claim, margin, level in ((every, 0.03, 0.05), (each, 0.05, 0.01)):
        assert claim["p"] == pytest.approx(sample.p_above(-margin))
        assert (claim["outcome"] == "passed") == (claim["p"] <= level)
        assert (claim["margin"], claim["alpha"]) == (margin, level)
    assert lost > 2 or (every["outcome"], each["outcome"]) == ("passed", "passed")
    assert lost < 8 or every["outcome"] == "too few items"


def test_items_needed_solve_their_equation() -> None:
    d = np.repeat([1.0, -1.0, 0.0], [10, 10, 80])
    needed = Sample([d], SIGN).items_to_detect(0.05, 0.04)
    z = norm.isf(0.04) + norm.ppf(0.8)
    variance = (100 * (0.2 * 100 / 99) + 1) / 101  # half an observation at each end
    assert needed == pytest.approx((z / 0.05) ** 2 * variance, rel=0.03)
    assert (needed + 4) * 0.05 == pytest.approx(z * np.sqrt(needed * variance + 4), rel=1e-3)
    lower = Sample([d], SIGN).items_to_detect(0.025, 0.04)
    assert lower == pytest.approx(4 * needed, rel=0.02)


def test_half_the_effect_is_named_when_the_items_suffice_for_the_whole() -> None:
    d = np.repeat([1.0, -1.0, 0.0], [60, 45, 895])  # 0.015 of 1000 items
    params = PARAMS.model_copy(update={"worthwhile": 0.03})
    found = decided(arena({"instruct": np.maximum(-d, 0.0), CANDIDATE: np.maximum(d, 0.0)}), params)
    claim = found["claims"][0]
    assert claim["outcome"] == "too few items"
    assert Sample([d], SIGN).items_to_detect(0.03, 0.04) < 1000 < claim["items_needed"]
    assert claim["items_needed"] == Sample([d], SIGN).items_to_detect(0.015, 0.04)
    assert f"about {claim['items_needed']} would show a gain of 0.015" in claim["reason"]


def test_copies_of_an_item_change_nothing() -> None:
    rng = np.random.default_rng(8)
    d = rng.choice([-1.0, 0.0, 1.0], size=40, p=[0.1, 0.6, 0.3])
    names = [str(i) for i in range(40)]
    once, often = Sample([d], SIGN, [names]), Sample([np.repeat(d, 5)], SIGN, [np.repeat(names, 5).tolist()])
    assert often.num_clusters == 40
    assert often.interval(0.95) == pytest.approx(once.interval(0.95))
    assert often.p_above(-0.03) == pytest.approx(once.p_above(-0.03))
    assert Sample([np.repeat(d, 5)], SIGN).p_above(-0.03) < once.p_above(-0.03)


def test_a_cluster_may_have_items_of_several_tasks() -> None:
    """The same questions in two tasks are half as many observations as different ones."""
    rng = np.random.default_rng(9)
    d = rng.choice([-1.0, 0.0, 1.0], size=60, p=[0.1, 0.6, 0.3])
    names = [f"q{i}" for i in range(60)]
    same = Sample([d, d], SIGN * 2, [names, names])
    assert same.interval(0.95) == pytest.approx(Sample([d], SIGN).interval(0.95))
    low, high = Sample([d, d], SIGN * 2).interval(0.95)
    assert high - low < 0.8 * (same.interval(0.95)[1] - same.interval(0.95)[0])


def test_few_items_are_permuted_exhaustively() -> None:
    """Of the 8 signs of (1, 2, 4) the sums 7 and 5 reach 5: p = 2/8."""
    d = np.array([-1.0, 2.0, 4.0])
    assert Sample([d], [(-4.0, 4.0)], open_scale=True).p_better(999, 0) == pytest.approx(
        max(2 / 8, Sample([d], [(-4.0, 4.0)], open_scale=True).p_above(0.0))
    )
    assert Sample([np.array([3.0, 3.0, 0.5])], [(-3.0, 3.0)], open_scale=True).p_better(999, 0) >= 1 / 8
