"""Error rates and power of the verdict, by simulation."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from shadowft_core.verdict import decide, judge
from shadowft_core.verdict.claims import superiority
from shadowft_core.verdict.statistics import items_to_detect
from tests.fixtures.arms import ARMS, PARAMS, answers, arena


def test_a_thousand_null_comparisons_promote_at_most_alpha() -> None:
    """Without a direct arm and a harmed guard, promotion is easiest. The items differ, the models do not."""
    rng = np.random.default_rng(1)
    promoted = 0
    for _ in range(1000):
        both = answers(rng, 60, 0.5)
        flip = rng.random((2, 60)) < 0.3
        arms = arena({name: np.abs(both - f) for name, f in zip(["instruct", "shadow_scaled"], flip, strict=True)})
        promoted += decide(superiority(arms, PARAMS)) == "promote"
    assert 0 < promoted <= binom.ppf(0.999, 1000, PARAMS.alpha)


def test_real_valued_null_comparisons_promote_at_most_alpha() -> None:
    rng = np.random.default_rng(2)
    promoted = 0
    for _ in range(300):
        arms = arena({"instruct": rng.normal(-2, 1, 40), "shadow_scaled": rng.normal(-2, 1, 40)})
        promoted += decide(superiority(arms, PARAMS)) == "promote"
    assert 0 < promoted <= binom.ppf(0.999, 300, PARAMS.alpha)


@pytest.mark.parametrize(("gain", "n"), [(0.05, 1000), (0.10, 250)])
def test_a_planted_gain_is_found_with_the_stated_power(gain: float, n: int) -> None:
    """Losses 5 %, wins 5 % + gain. The expected power is that of the normal approximation."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(300):
        difference = rng.choice([-1.0, 0.0, 1.0], size=n, p=[0.05, 0.90 - gain, 0.05 + gain])
        before = np.where(difference < 0, 1.0, 0.0)
        arms = arena({"instruct": before, "shadow_scaled": before + difference})
        found += superiority(arms, PARAMS)[0].outcome == "better"
    error = np.sqrt((0.10 + gain - gain**2) / n)
    power = float(norm.sf(1.96 - gain / error))  # the 95 % interval must clear zero as well
    assert power > 0.95
    assert found >= binom.ppf(0.001, 300, power - 0.02)  # 0.02: four padded items and a discrete test


def test_95_of_100_intervals_cover_the_true_difference() -> None:
    """A 90 % interval would fail this test."""
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(400):
        arms = arena({"instruct": answers(rng, 200, 0.5), "shadow_scaled": answers(rng, 200, 0.6)})
        low, high = superiority(arms, PARAMS)[0].interval
        covered += low <= 0.1 <= high
    assert covered >= binom.ppf(0.02, 400, 0.95)


def test_three_rivals_share_the_error() -> None:
    """20 wins, 8 losses in 60: p is 0.02, and above 0.05 after Holm over three rivals."""
    before = np.repeat([0.0, 1.0, 1.0], [20, 8, 32])
    after = np.repeat([1.0, 0.0, 1.0], [20, 8, 32])
    arms = arena(dict.fromkeys(ARMS[:-1], before) | {"shadow_scaled": after})
    found = judge(arms, PARAMS)
    rivals = [claim for claim in found["claims"] if claim["role"] == "domain"]
    assert len(rivals) == 3
    assert all(claim["p"] < PARAMS.alpha < claim["p_adjusted"] and claim["interval"][0] > 0 for claim in rivals)
    assert found["decision"] == "undecided"
    single = superiority({name: arms[name] for name in ("instruct", "shadow_scaled")}, PARAMS)
    assert decide(single) == "promote"
    first_step = items_to_detect([after - before], [(-1.0, 1.0)], PARAMS.worthwhile, PARAMS.alpha / 3)
    assert superiority(arms, PARAMS)[0].items_needed == first_step
