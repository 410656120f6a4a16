"""What a p value must not be fooled by: few exchanges, unseen losses, rounding, and the unit of the scores."""

import numpy as np
import pytest
from scipy.stats import norm

from shadowft_core.params.sections import Thresholds
from shadowft_core.verdict import Look, judge
from shadowft_core.verdict.statistics import Sample, _p_of_exchanges
from tests.fixtures.arms import CANDIDATE, PARAMS, answers, arena, arm, decided


@pytest.mark.parametrize("looks", [11, 52])
def test_a_large_gain_can_be_shown_at_a_late_look(looks: int) -> None:
    """More exchanges than are drawn would be needed to see a p value that small: a bound on all of them stands in."""
    rng = np.random.default_rng(0)
    two = {f"task of {n}": ("domain", answers(rng, n, 0.2)) for n in (600, 1000)}
    nothing = {name: (role, np.zeros(scores.size)) for name, (role, scores) in two.items()}
    arms = {"instruct": arm("instruct", nothing), CANDIDATE: arm(CANDIDATE, two)}
    found = judge(arms, PARAMS, candidate=CANDIDATE, look=Look(looks))["claims"][0]
    assert 0 < found["alpha"] < 1e-4
    assert found["outcome"] == "better"


def test_the_bound_of_all_exchanges_changes_no_exact_p() -> None:
    rng = np.random.default_rng(1)
    for n in (3, 7, 11):
        d = np.abs(rng.standard_t(3, n)) * rng.choice([1, 1, 1, -1], n)
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        exact = np.mean(signs @ np.abs(d) >= d.sum() - 1e-9)
        assert _p_of_exchanges(d, 99_999, 0) == pytest.approx(exact)
    many = np.ones(40) + rng.random(40)
    assert _p_of_exchanges(many, 999, 0) == pytest.approx(
        norm.sf(many.sum() / np.sqrt((many**2).sum())) * 3.178, rel=1e-3
    )


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (100.0, 0.0), (2.0, -1.0)])
def test_two_values_are_0_and_1_on_another_scale(scale: float, shift: float) -> None:
    mine, other = np.repeat([1.0, 0.0, 1.0], [30, 18, 252]), np.repeat([0.0, 1.0, 1.0], [30, 18, 252])
    limits = Thresholds(margin=0.03 * scale, margin_each=0.05 * scale, worthwhile=0.05 * scale)
    params = PARAMS.model_copy(update={"metrics": {"acc": limits}})
    claims = [
        decided(arena({"instruct": a, CANDIDATE: b}, {"instruct": b, CANDIDATE: a}), with_params)["claims"]
        for a, b, with_params in ((other, mine, PARAMS), (scale * other + shift, scale * mine + shift, params))
    ]
    for expected, found in zip(*claims, strict=True):
        assert (found["p"], found["outcome"]) == (pytest.approx(expected["p"], rel=1e-6), expected["outcome"])
        assert found["interval"] == pytest.approx(tuple(scale * end for end in expected["interval"]))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_ceiling_on_another_scale_is_not_certain(scale: float) -> None:
    """Ten items that both arms get right exclude no loss of 3 %, whether right is 1 or 100."""
    limits = Thresholds(margin=0.03 * scale, margin_each=0.05 * scale, worthwhile=0.05 * scale)
    params = PARAMS.model_copy(update={"metrics": {"acc": limits}})
    right = np.full(10, scale)
    found = decided(arena({"instruct": right, CANDIDATE: right}, {"instruct": right, CANDIDATE: right}), params)
    assert [claim["outcome"] for claim in found["claims"]] == ["too few items"] * 3
    low, high = found["arms"]["instruct"]["domain"]["interval"]
    assert low < 0.9 * scale < high == scale


def test_an_open_scale_without_a_difference_is_not_certain() -> None:
    scores = np.random.default_rng(2).normal(-2, 1, 30)
    found = decided(arena({"instruct": scores, CANDIDATE: scores}, {"instruct": scores, CANDIDATE: scores}))
    assert [claim["outcome"] for claim in found["claims"]] == ["too few items"] * 3
    assert found["claims"][1]["interval"][0] < -0.1


def test_equal_gains_do_not_hide_the_loss_that_was_not_seen() -> None:
    """1 of 20 items loses 0.95, the others gain 0.05: no gain, but in a third of samples of 20 items no loss."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(300):
        d = np.where(rng.random(20) < 0.05, -0.95, 0.05)
        found += Sample([d], [(-1.0, 1.0)]).p_better(999, 0) <= PARAMS.alpha
    assert found <= 24  # of 300 at 0.05, probability 0.01
    assert Sample([np.full(20, 0.05)], [(-1.0, 1.0)]).p_better(999, 0) > PARAMS.alpha


@pytest.mark.parametrize(("scores", "others"), [(0.3, 0.1 + 0.2), (-4.1, -4.1 * (1 - 2e-16)), (70.0, 70.0 + 1e-13)])
def test_rounding_is_no_gain(scores: float, others: float) -> None:
    assert scores < others
    found = decided(arena({"instruct": np.full(400, scores), CANDIDATE: np.full(400, others)}))
    claim = found["claims"][0]
    assert (claim["difference"], claim["outcome"] in ("tie", "too few items")) == (0.0, True)


def test_the_largest_difference_is_no_guide_if_half_of_them_are_0() -> None:
    """Then the largest possible one stands in: here 3, from the lowest score to 0."""
    before, gains = np.linspace(-3, -1, 40), np.arange(40) % 2 * 0.01
    arms = {name: arm(name, {"skill": ("domain", before + own)}) for name, own in (("instruct", 0), (CANDIDATE, gains))}
    expected = Sample([gains], [(-3.0, 3.0)], open_scale=True).interval(0.95)
    assert decided(arms)["claims"][0]["interval"] == pytest.approx(expected)
