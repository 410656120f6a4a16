"""The verdict: error rates and power by simulation, outcomes and decisions."""

import json

import numpy as np
import pytest
from scipy.stats import binom, norm

from shadowft_core.errors import EvaluationError
from shadowft_core.params import Verdict
from shadowft_core.verdict import Claim, decide, judge, superiority
from shadowft_core.verdict.scores import Arm
from shadowft_core.verdict.statistics import items_to_detect

PARAMS = Verdict(alpha=0.05, margin=0.03, worthwhile=0.05, resamples=999, seed=0)
ARMS = ["instruct", "direct", "direct_scaled", "shadow", "shadow_scaled"]


def arm(name: str, tasks: dict[str, tuple[str, np.ndarray]], digest: str | None = None, metric: str = "acc") -> Arm:
    return Arm(
        name=name,
        scale=1.0,
        model_digest=digest or f"model of {name}",
        template_digest="template",
        roles={task: role for task, (role, _) in tasks.items()},  # type: ignore[misc]
        metrics=dict.fromkeys(tasks, metric),
        scores={task: {f"{i:06d}": float(s) for i, s in enumerate(items)} for task, (_, items) in tasks.items()},
    )


def arena(domain: dict[str, np.ndarray], guard: dict[str, np.ndarray] | None = None) -> dict[str, Arm]:
    """Arms with one domain task and one guard; the guard is the same everywhere unless given."""
    kept = np.ones(400)
    return {
        name: arm(name, {"skill": ("domain", items), "general": ("guard", (guard or {}).get(name, kept))})
        for name, items in domain.items()
    }


def answers(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    return (rng.random(n) < share).astype(float)


def outcomes(found: dict) -> list[str]:
    return [claim["outcome"] for claim in found["claims"]]


# --- error rates and power -----------------------------------------------------------------------------------------


def test_a_thousand_null_comparisons_promote_at_most_alpha() -> None:
    """No control, guard kept: the easiest road to a promotion. Items differ, models do not."""
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
    """Losses 5 %, wins 5 % + gain. The test holds itself to the power of the normal approximation."""
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


# --- outcomes and decisions ----------------------------------------------------------------------------------------


def five(shares: dict[str, int], n: int = 400) -> dict[str, np.ndarray]:
    return {name: (np.arange(n) < shares[name]).astype(float) for name in ARMS}


CLEAR = {"instruct": 40, "direct": 200, "direct_scaled": 220, "shadow": 300, "shadow_scaled": 320}


def test_a_clear_gain_over_every_rival_is_promoted() -> None:
    found = judge(arena(five(CLEAR)), PARAMS)
    assert found["decision"] == "promote"
    assert [(c["against"], c["outcome"]) for c in found["claims"]] == [
        ("instruct", "better"),
        ("direct", "better"),
        ("direct_scaled", "better"),
        ("instruct", "passed"),
    ]
    assert found["direct_control"] is True
    assert found["reasons"][0].startswith("domain: shadow_scaled 0.800 against instruct 0.100, +0.700 [+0.6")
    assert found["reasons"][0].endswith("p < 0.0001: better")
    assert list(found["arms"]) == ARMS
    assert found["arms"]["instruct"]["domain"]["mean"] == pytest.approx(0.1)
    assert set(found["arms"]["instruct"]["tasks"]) == {"skill", "general"}


@pytest.mark.parametrize("rival", ["direct", "direct_scaled"])
def test_a_tie_with_direct_tuning_never_promotes(rival: str) -> None:
    found = judge(arena(five(CLEAR | {rival: CLEAR["shadow_scaled"]})), PARAMS)
    assert found["decision"] == "hold"
    assert {c["against"]: c["outcome"] for c in found["claims"] if c["role"] == "domain"}[rival] == "tie"
    assert "a tie never promotes" in found["reasons"]


def test_worse_than_direct_tuning_is_held() -> None:
    found = judge(arena(five(CLEAR | {"direct_scaled": 390})), PARAMS)
    assert found["decision"] == "hold"
    assert outcomes(found) == ["better", "better", "worse", "passed"]


def test_a_significant_but_worthless_gain_is_a_tie() -> None:
    before = np.zeros(20000)
    after = (np.arange(20000) < 200).astype(float)  # +0.01, p far below alpha
    claim = superiority(arena({"instruct": before, "shadow_scaled": after}), PARAMS)[0]
    assert claim.p is not None
    assert claim.p < 1e-9
    assert claim.outcome == "tie"


def test_one_harmed_guard_blocks() -> None:
    arms = arena(five(CLEAR), {"shadow_scaled": (np.arange(400) >= 60).astype(float)})
    found = judge(arms, PARAMS)
    assert found["decision"] == "hold"
    assert outcomes(found)[-1] == "harmed"
    assert "-0.150" in found["reasons"][3]


def test_a_guard_with_too_few_items_leaves_it_undecided() -> None:
    keep = dict.fromkeys(ARMS, np.ones(30))
    found = judge(arena(five(CLEAR), keep), PARAMS)
    assert found["decision"] == "undecided"
    assert outcomes(found)[-1] == "too few items"
    needed = found["claims"][-1]["items_needed"]
    assert judge(arena(five(CLEAR), dict.fromkeys(ARMS, np.ones(needed + 20))), PARAMS)["decision"] == "promote"


def test_identical_arms_tie_and_harm_nobody() -> None:
    same = arm("instruct", {"skill": ("domain", np.ones(5)), "general": ("guard", np.ones(5))}, digest="same")
    found = judge({"instruct": same, "shadow_scaled": same}, PARAMS)
    assert found["decision"] == "hold"
    assert outcomes(found) == ["tie", "passed"]
    assert found["claims"][0]["interval"] == (0.0, 0.0)
    assert found["claims"][0]["p"] == 1.0


def test_one_item_decides_nothing() -> None:
    found = judge(arena({"instruct": np.zeros(1), "shadow_scaled": np.ones(1)}), PARAMS)
    assert found["decision"] == "undecided"
    claim = found["claims"][0]
    assert claim["outcome"] == "too few items"
    assert claim["items_needed"] > 100
    assert f"about {claim['items_needed']} would show" in claim["reason"]


def test_all_items_won_is_better_and_the_interval_has_width() -> None:
    claim = superiority(arena({"instruct": np.zeros(50), "shadow_scaled": np.ones(50)}), PARAMS)[0]
    assert claim.outcome == "better"
    assert claim.difference == 1.0
    assert 0.7 < claim.interval[0] < claim.interval[1] == 1.0


def test_without_the_control_nothing_is_claimed_about_it() -> None:
    arms = arena(five(CLEAR))
    found = judge({name: arms[name] for name in ("instruct", "shadow", "shadow_scaled")}, PARAMS)
    assert found["decision"] == "promote"
    assert found["direct_control"] is False
    assert {c["against"] for c in found["claims"]} == {"instruct"}
    assert "direct tuning was not run: nothing is claimed about it" in found["reasons"]


def test_scores_on_an_open_scale_are_said_to_be_so() -> None:
    rng = np.random.default_rng(6)
    before = rng.normal(-2.0, 0.5, 200)
    arms = {
        name: arm(name, {"text": ("domain", before + gain)}, metric="logprob_per_byte")
        for name, gain in [("instruct", 0.0), ("shadow_scaled", rng.normal(0.5, 0.1, 200))]
    }
    found = judge(arms, PARAMS)
    assert found["decision"] == "promote"
    assert any(r.startswith("text: the scores are logprob_per_byte, not shares") for r in found["reasons"])
    assert "no guard task was measured: nothing is claimed about what the Instruct keeps" in found["reasons"]


def test_several_domain_tasks_are_each_shown() -> None:
    def both(name: str, first: int, second: int) -> Arm:
        items = np.arange(300)
        return arm(
            name,
            {
                "a": ("domain", (items < first).astype(float)),
                "b": ("domain", (items[:100] < second).astype(float)),
                "general": ("guard", np.ones(400)),
            },
        )

    found = judge({"instruct": both("instruct", 30, 50), "shadow_scaled": both("shadow_scaled", 240, 55)}, PARAMS)
    assert found["claims"][0]["difference"] == pytest.approx((0.7 + 0.05) / 2)
    assert found["claims"][0]["by_task"] == pytest.approx({"a": 0.7, "b": 0.05})
    assert "domain by task against instruct: a +0.700, b +0.050" in found["reasons"]


def test_names_and_order_of_items_and_arms_do_not_matter() -> None:
    rng = np.random.default_rng(7)
    arms = arena({name: rng.normal(0, 1, 90) for name in ARMS}, {name: answers(rng, 150, 0.8) for name in ARMS})
    shuffle = rng.permutation(150)

    def relabelled(a: Arm) -> Arm:
        scores = {
            task: {f"{shuffle[i]:06d}": score for i, score in enumerate(items.values())}
            for task, items in a.scores.items()
        }
        return Arm(a.name, a.scale, a.model_digest, a.template_digest, a.roles, a.metrics, scores)

    other = {name: relabelled(arms[name]) for name in reversed(ARMS)}
    assert json.dumps(judge(other, PARAMS)) == json.dumps(judge(arms, PARAMS))


def test_no_domain_task_is_refused() -> None:
    only_guard = arm("instruct", {"general": ("guard", np.ones(5))})
    with pytest.raises(EvaluationError, match="no task has the role domain"):
        judge({"instruct": only_guard, "shadow_scaled": only_guard}, PARAMS)


def test_decisions_follow_from_outcomes_alone() -> None:
    def claims(*found: str) -> list[Claim]:
        return [
            Claim("superiority", "a", "b", "domain", [], 1, 0.0, (0.0, 0.0), 1.0, 1.0, o, None, {}, "")  # type: ignore[arg-type]
            for o in found
        ]

    assert decide(claims("better", "passed")) == "promote"
    assert decide(claims("better", "too few items", "passed")) == "undecided"
    assert decide(claims("better", "too few items", "harmed")) == "hold"
    assert decide(claims("tie", "passed")) == "hold"
    assert decide(claims("worse", "passed")) == "hold"


def test_four_rivals_share_the_error() -> None:
    """20 wins, 8 losses in 60: p is 0.02 by itself, 0.05 and more after Holm over three rivals."""
    before = np.repeat([0.0, 1.0, 1.0], [20, 8, 32])
    after = np.repeat([1.0, 0.0, 1.0], [20, 8, 32])
    arms = arena(dict.fromkeys(ARMS[:-1], before) | {"shadow_scaled": after})
    found = judge(arms, PARAMS)
    rivals = [claim for claim in found["claims"] if claim["role"] == "domain"]
    assert len(rivals) == 3
    assert all(claim["p"] < PARAMS.alpha < claim["p_adjusted"] and claim["interval"][0] > 0 for claim in rivals)
    assert found["decision"] == "undecided"
    alone = superiority({name: arms[name] for name in ("instruct", "shadow_scaled")}, PARAMS)
    assert decide(alone) == "promote"
    hardest = items_to_detect([after - before], [(-1.0, 1.0)], PARAMS.worthwhile, PARAMS.alpha / 3)
    assert superiority(arms, PARAMS)[0].items_needed == hardest


def test_the_margin_is_the_margin() -> None:
    """On a guard where nothing differs in 400 items the interval ends near -0.01: a margin inside it is not kept."""
    arms = arena(five(CLEAR))
    low = judge(arms, PARAMS)["claims"][-1]["interval"][0]
    assert -0.02 < low < 0
    for margin, decision in ((-low + 0.002, "promote"), (-low - 0.002, "undecided")):
        assert judge(arms, PARAMS.model_copy(update={"margin": margin}))["decision"] == decision


def test_intervals_cover_what_they_say() -> None:
    """95 of 100 intervals hold the true difference: 0.9 of them would betray a narrower one."""
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(400):
        arms = arena({"instruct": answers(rng, 200, 0.5), "shadow_scaled": answers(rng, 200, 0.6)})
        low, high = superiority(arms, PARAMS)[0].interval
        held += low <= 0.1 <= high
    assert held >= binom.ppf(0.02, 400, 0.95)


def test_every_guard_counts() -> None:
    def arms(kept: float) -> dict[str, Arm]:
        shares = {"instruct": 1.0, "shadow_scaled": kept}
        items = np.arange(400)
        return {
            name: arm(
                name,
                {
                    "skill": ("domain", (items < CLEAR[name]).astype(float)),
                    "a": ("guard", np.ones(400)),
                    "b": ("guard", (items < 400 * share).astype(float)),
                },
            )
            for name, share in shares.items()
        }

    assert judge(arms(1.0), PARAMS)["decision"] == "promote"
    assert judge(arms(0.5), PARAMS)["decision"] == "hold"
