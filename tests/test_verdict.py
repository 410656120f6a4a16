"""The outcomes of claims, and the decision that follows from them."""

import json

import numpy as np
import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.verdict import Claim, claims, decide, decision_of, judge
from shadowft_core.verdict.claims import non_inferiority, superiority
from shadowft_core.verdict.scores import Arm
from tests.fixtures.arms import ARMS, CLEAR, PARAMS, answers, arena, arm, five


def outcomes(found: dict) -> list[str]:
    return [claim["outcome"] for claim in found["claims"]]


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


def test_a_gain_counts_only_after_the_correction_for_all_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tests at p = 0.03 each are not significant together (Holm: 0.09); one alone is."""
    monkeypatch.setattr(claims, "p_greater", lambda *_: 0.03)
    monkeypatch.setattr(claims, "interval", lambda *_: (0.01, 0.2))
    arms = arena(five(CLEAR))
    found = superiority(arms, PARAMS)
    assert [(c.p, c.p_adjusted) for c in found] == [(0.03, pytest.approx(0.09))] * 3
    assert "better" not in {c.outcome for c in found}
    (alone,) = superiority({name: arms[name] for name in ("instruct", "shadow_scaled")}, PARAMS)
    assert (alone.p_adjusted, alone.outcome) == (0.03, "better")


def test_more_rivals_need_more_items() -> None:
    rng = np.random.default_rng(0)
    arms = arena({name: answers(rng, 40, 0.5) for name in ARMS})
    first = superiority(arms, PARAMS)[0]
    (alone,) = superiority({name: arms[name] for name in ("instruct", "shadow_scaled")}, PARAMS)
    assert (first.against, first.outcome, alone.outcome) == ("instruct", "too few items", "too few items")
    assert first.items_needed is not None
    assert alone.items_needed is not None
    assert first.items_needed > 1.2 * alone.items_needed


@pytest.mark.parametrize(
    ("bounds", "outcome"),
    [
        ((-0.0299, 0.1), "passed"),
        ((-0.03, 0.1), "too few items"),
        ((-0.1, -0.03), "too few items"),
        ((-0.1, -0.0301), "harmed"),
    ],
)
def test_a_guard_passes_above_the_margin_at_95_percent(
    bounds: tuple[float, float], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[float] = []

    def interval(differences: object, ranges: object, level: float, *_: object) -> tuple[float, float]:
        levels.append(level)
        return bounds

    monkeypatch.setattr(claims, "interval", interval)
    (claim,) = non_inferiority(arena(five(CLEAR)), PARAMS)
    assert (claim.outcome, levels) == (outcome, [0.95])


def test_worse_than_direct_tuning_is_held() -> None:
    found = judge(arena(five(CLEAR | {"direct_scaled": 390})), PARAMS)
    assert found["decision"] == "hold"
    assert outcomes(found) == ["better", "better", "worse", "passed"]


def test_a_significant_gain_below_worthwhile_is_a_tie() -> None:
    before = np.zeros(20000)
    after = (np.arange(20000) < 200).astype(float)  # +0.01, p far below alpha
    claim = superiority(arena({"instruct": before, "shadow_scaled": after}), PARAMS)[0]
    assert claim.p is not None
    assert claim.p < 1e-9
    assert claim.outcome == "tie"


def test_one_harmed_guard_holds_the_candidate() -> None:
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


def test_identical_arms_tie_and_pass_the_guard() -> None:
    same = arm("instruct", {"skill": ("domain", np.ones(5)), "general": ("guard", np.ones(5))}, digest="same")
    found = judge({"instruct": same, "shadow_scaled": same}, PARAMS)
    assert found["decision"] == "hold"
    assert outcomes(found) == ["tie", "passed"]
    assert found["claims"][0]["interval"] == (0.0, 0.0)
    assert found["claims"][0]["p"] == 1.0


def test_one_item_is_too_few() -> None:
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


def test_without_the_direct_arms_nothing_is_claimed_about_them() -> None:
    arms = arena(five(CLEAR))
    found = judge({name: arms[name] for name in ("instruct", "shadow", "shadow_scaled")}, PARAMS)
    assert found["decision"] == "promote"
    assert found["direct_control"] is False
    assert {c["against"] for c in found["claims"]} == {"instruct"}
    assert "direct tuning was not run: nothing is claimed about it" in found["reasons"]


def test_scores_outside_0_to_1_are_named_as_such() -> None:
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


def test_the_difference_on_each_domain_task_is_given() -> None:
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


def test_the_decision_is_recomputed_from_the_claims_of_the_file() -> None:
    items = (np.arange(200) % 2).astype(float)
    for better in (items, np.ones(200)):
        found = judge(arena({name: better if name.startswith("shadow") else items for name in ARMS}), PARAMS)
        written = json.loads(json.dumps(found | {"recipe_digest": "x"}))
        assert decision_of(written | {"decision": "not the decision"}) == found["decision"]
    for rival in ("instruct", "direct", "direct_scaled"):
        fewer = [claim for claim in written["claims"] if claim["against"] != rival or claim["role"] == "guard"]
        with pytest.raises(EvaluationError, match=f"compares shadow_scaled with .*, not with {rival}; run"):
            decision_of(written | {"claims": fewer})
    without_direct = [claim for claim in written["claims"] if claim["against"] == "instruct"]
    assert decision_of(written | {"claims": without_direct, "direct_control": False}) == "promote"
    for broken in ({"claims": []}, {"claims": [written["claims"][0] | {"outcome": "fine"}]}, {"claims": None}):
        with pytest.raises(EvaluationError, match=r"cannot be read|compares shadow_scaled with nothing"):
            decision_of(written | broken)
    with pytest.raises(EvaluationError, match="'claims' is missing"):
        decision_of({"decision": "promote"})


def test_a_guard_passes_only_when_its_interval_is_above_the_margin() -> None:
    """Where no score differs in 400 guard items the interval ends near -0.01, so a margin below that cannot pass."""
    arms = arena(five(CLEAR))
    low = judge(arms, PARAMS)["claims"][-1]["interval"][0]
    assert -0.02 < low < 0
    for margin, decision in ((-low + 0.002, "promote"), (-low - 0.002, "undecided")):
        assert judge(arms, PARAMS.model_copy(update={"margin": margin}))["decision"] == decision


def test_every_guard_task_must_pass() -> None:
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
