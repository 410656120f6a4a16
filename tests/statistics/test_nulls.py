"""Candidates that are no better than the Instruct: how many the claim of superiority calls better."""

from collections.abc import Callable

import numpy as np
import pytest

from shadowft_core.verdict import alpha_of
from shadowft_core.verdict.statistics import Sample
from tests.statistics.worlds import OPEN, PARAMS, SIGN, Rng, at_most, differences, open_scale, passages

NULLS: dict[str, Callable[[Rng], Sample]] = {
    **{f"0/1, n {n}": lambda rng, n=n: differences(rng, [n]) for n in (100, 300, 1000)},
    "0/1, tasks 50 + 300 + 1000": lambda rng: differences(rng, [50, 300, 1000]),
    "0/1, tasks 10 + 500": lambda rng: differences(rng, [10, 500]),
    "0/1, tasks 4 x 30": lambda rng: differences(rng, [30] * 4),
    **{f"t3, n {n}": lambda rng, n=n: open_scale(rng, "t3", n) for n in (30, 100, 300)},
    **{
        f"{shape}, n {n}": lambda rng, s=shape, n=n: open_scale(rng, s, n)
        for shape in list(OPEN)[1:]
        for n in (30, 100)
    },
    **{
        f"shares, 1 of 20 loses 0.95, others win 0.05, n {n}": lambda rng, n=n: Sample(
            [np.where(rng.random(n) < 0.05, -0.95, 0.05)], [SIGN]
        )
        for n in (20, 30, 100)
    },
    "60 passages x 5 questions": lambda rng: passages(rng, 60, 5, 0.6),
    "30 questions x 20 copies": lambda rng: passages(rng, 30, 20, 0.95),
}


def better(make: Callable[[Rng], Sample], worlds: int, alpha: float) -> int:
    rng = np.random.default_rng(1)
    return sum(make(rng).p_better(999, 0) <= alpha for _ in range(worlds))


@pytest.mark.statistics
@pytest.mark.parametrize("null", NULLS)
def test_nulls_are_better_in_at_most_alpha(null: str) -> None:
    assert at_most(better(NULLS[null], 2000, PARAMS.alpha), 2000, PARAMS.alpha, f"null, {null}: better")


@pytest.mark.parametrize("null", ["0/1, n 100", "0/1, tasks 4 x 30", "-lognormal, n 30", "30 questions x 20 copies"])
def test_some_nulls_are_better_in_at_most_alpha(null: str) -> None:
    found = better(NULLS[null], 250, PARAMS.alpha)
    assert at_most(found, 250, PARAMS.alpha)
    assert found > 0, "a test that never rejects proves nothing"


def false_promotions(years: int, items: int) -> int:
    """Years of 52 weekly verdicts on the same items, all of candidates equal to the Instruct, in which one promotes."""
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(years):
        p = rng.beta(2, 2, items)
        instruct = rng.random(items) < p
        weeks = (rng.random(items) < p for _ in range(52))
        found += any(
            Sample([week.astype(float) - instruct], [(-1.0, 1.0)]).p_better(999, 0) <= alpha_of(PARAMS.alpha, look)
            for look, week in enumerate(weeks, start=1)
        )
    return found


@pytest.mark.statistics
def test_a_year_of_weekly_verdicts_promotes_falsely_in_at_most_alpha() -> None:
    assert at_most(false_promotions(200, 300), 200, PARAMS.alpha, "52 weekly verdicts on 300 items: a false promotion")


def test_some_years_of_weekly_verdicts() -> None:
    assert at_most(false_promotions(20, 300), 20, PARAMS.alpha)
