"""The outcomes of claims, and the decision that follows from them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.verdict import Look, judge
from shadowft_core.verdict.scores import Arm
from tests.fixtures.arms import ARMS, CANDIDATE, CLEAR, PARAMS, answers, arena, arm, decided, five, gate, keep


def test_a_clear_gain_over_the_instruct_is_promoted() -> None:
    found = decided(arena(five(CLEAR)))
    assert (found["format"], found["decision"], found["arm"], found["candidate"]) == (
        2,
        "promote",
        CANDIDATE,
        CANDIDATE,
    )
    assert gate(found) == [
        ("domain", "instruct", "better"),
        ("guards", "instruct", "passed"),
        ("guard", "instruct", "passed"),
    ]
    assert [(c["arm"], c["against"], c["gate"]) for c in found["claims"][3:]] == [
        (CANDIDATE, "direct", False),
        (CANDIDATE, "direct_scaled", False),
    ]
    assert found["direct_control"] is True
    assert found["reasons"][0].startswith("domain: shadow_scaled 0.800 against instruct 0.100, +0.700 [+0.6")
    assert found["reasons"][0].endswith("p < 0.0001: better")
    assert found["reasons"][3].startswith("not part of the decision: domain: shadow_scaled 0.800 against direct 0.500")
    assert list(found["arms"]) == ARMS
    assert found["arms"]["instruct"]["domain"]["mean"] == pytest.approx(0.1)
    assert set(found["arms"]["instruct"]["tasks"]) == {"skill", "general"}


@pytest.mark.parametrize("candidate", ["direct", "direct_scaled", "shadow"])
def test_any_arm_can_be_the_candidate(candidate: str) -> None:
    found = decided(arena(five(CLEAR)), candidate=candidate)
    assert (found["decision"], found["arm"], found["candidate"]) == ("promote", candidate, candidate)
    assert {c["arm"] for c in found["claims"] if c["gate"]} == {candidate}
    worse = decided(arena(five(CLEAR | {candidate: 0})), candidate=candidate)
    assert (worse["decision"], worse["arm"]) == ("hold", "instruct")


def test_without_a_candidate_nothing_ships() -> None:
    found = decided(arena(five(CLEAR)), candidate=None)
    assert (found["decision"], found["arm"], found["candidate"]) == ("hold", "instruct", None)
    assert not any(claim["gate"] for claim in found["claims"])
    assert [(c["arm"], c["against"]) for c in found["claims"]] == [(CANDIDATE, "direct"), (CANDIDATE, "direct_scaled")]
    assert found["look"]["number"] == 0


def test_a_tie_with_the_instruct_never_promotes() -> None:
    items = {name: (np.arange(4000) < 2000).astype(float) for name in ARMS}
    found = decided(arena(items))
    assert found["decision"] == "hold"
    assert gate(found)[0] == ("domain", "instruct", "tie")
    assert "a tie never promotes" in found["reasons"]


def test_claims_about_the_method_do_not_gate_unless_they_are_required() -> None:
    arms = arena(five(CLEAR | {"direct_scaled": 390}))
    assert decided(arms)["decision"] == "promote"
    required = PARAMS.model_copy(update={"require": ("shadow_scaled > direct_scaled",)})
    found = decided(arms, required)
    assert found["decision"] == "hold"
    assert gate(found)[-1] == ("domain", "direct_scaled", "worse")
    assert decided(arena(five(CLEAR)), required)["decision"] == "promote"
    without = decided(arms, required, candidate=None)["claims"]
    assert {(claim["against"], claim["gate"]) for claim in without} == {("direct", False), ("direct_scaled", False)}
    own = PARAMS.model_copy(update={"require": ("shadow > instruct",)})
    assert gate(decided(arms, own))[-1] == ("domain", "instruct", "better")


@pytest.mark.parametrize("text", ["shadow_scaled > zebra", "shadow_scaled", "a > b", "direct > direct"])
def test_a_required_claim_about_no_arm_is_refused(text: str) -> None:
    required = PARAMS.model_copy(update={"require": (text,)})
    with pytest.raises(EvaluationError, match=r"verdict.require: .* is not `ARM > ARM` with two of the arms instruct,"):
        decided(arena(five(CLEAR)), required)


def test_claims_about_the_method_share_their_error() -> None:
    """20 wins, 10 losses in 60: p is 0.049 for each of two rivals, and above 0.05 after Holm."""
    before = np.repeat([0.0, 1.0, 1.0], [20, 10, 30])
    after = np.repeat([1.0, 0.0, 1.0], [20, 10, 30])
    found = decided(arena(dict.fromkeys(ARMS[:-1], before) | {CANDIDATE: after}))
    method = [c for c in found["claims"] if not c["gate"]]
    assert [(c["p"], c["outcome"]) for c in method] == [(pytest.approx(0.0494, abs=1e-4), "too few items")] * 2
    assert [c["p_adjusted"] for c in method] == [pytest.approx(0.0987, abs=1e-4)] * 2
    alone = decided({n: a for n, a in arena(dict.fromkeys(ARMS, before) | {CANDIDATE: after}).items() if n != "direct"})
    assert [(c["against"], c["outcome"]) for c in alone["claims"] if not c["gate"]] == [("direct_scaled", "better")]


def test_a_proven_gain_below_worthwhile_is_no_tie() -> None:
    before = np.zeros(20000)
    after = (np.arange(20000) < 200).astype(float)  # +0.01, p far below alpha
    claim = decided(arena({"instruct": before, CANDIDATE: after}))["claims"][0]
    assert claim["p"] < 1e-9
    assert claim["outcome"] == "better"


@pytest.mark.parametrize(("wins", "outcome"), [(63, "better"), (62, "too few items")])
def test_a_gain_is_proven_at_the_level_of_the_look(wins: int, outcome: str) -> None:
    """62 wins and 45 losses: p 0.0609; 63 and 44: 0.0406; the first look has 0.04... of 0.0508 at alpha 0.0635."""
    from scipy.stats import binomtest

    losses = 107 - wins
    p = binomtest(wins, 107, 0.5, alternative="greater").pvalue
    alpha = 0.05 / 0.8  # the first look then has 0.05
    before = np.repeat([0.0, 1.0, 1.0], [wins, losses, 93])
    after = np.repeat([1.0, 0.0, 1.0], [wins, losses, 93])
    claim = decided(arena({"instruct": before, CANDIDATE: after}), PARAMS.model_copy(update={"alpha": alpha}))[
        "claims"
    ][0]
    assert claim["p"] == pytest.approx(p)
    assert claim["alpha"] == pytest.approx(0.05)
    assert (claim["outcome"], p <= 0.05) == (outcome, outcome == "better")


def test_a_later_look_asks_for_more() -> None:
    arms = arena({"instruct": np.repeat([0.0, 1.0], [80, 320]), CANDIDATE: np.repeat([1.0, 0.0, 1.0], [80, 50, 270])})
    assert judge(arms, PARAMS, candidate=CANDIDATE)["decision"] == "promote"
    earlier = [{"number": k, "candidate": "x", "model_name": "m", "commit": "c", "overlap": 400} for k in (1, 2, 3)]
    look = Look(4, "sha256:items", earlier)
    found = judge(arms, PARAMS, candidate=CANDIDATE, look=look)
    assert found["decision"] == "undecided"
    assert found["look"] == {
        "number": 4,
        "alpha": pytest.approx(0.01 / 12),
        "left": pytest.approx(0.01 / 4),
        "items": "sha256:items",
        "earlier": earlier,
    }
    assert found["claims"][0]["alpha"] == found["look"]["alpha"]
    assert any(
        r.startswith("look 4 at these test items: a gain must be shown at level 0.00083") for r in found["reasons"]
    )


@pytest.mark.parametrize("name", ["champion", "best_champion"])
def test_a_challenger_may_not_be_worse_than_an_earlier_champion(name: str) -> None:
    def arms(right: int) -> dict[str, Arm]:
        return arena(five(CLEAR) | {"champion": keep(0.5), name: keep(right / 400)})

    found = decided(arms(360))  # the candidate has 320 of 400
    assert ("domain", name, "worse") in gate(found)
    assert (found["decision"], found["arm"]) == ("hold", "champion")
    assert decided(arms(320))["decision"] == "promote"
    claim = next(c for c in decided(arms(320))["claims"] if c["against"] == name)
    assert (claim["claim"], claim["margin"], claim["alpha"]) == ("non-inferiority", 0.03, 0.05)
    assert list(decided(arms(1))["arms"])[1] == "champion"


def test_identical_arms_tie_and_pass_the_guard() -> None:
    same = arm("instruct", {"skill": ("domain", np.ones(5)), "general": ("guard", np.ones(5))}, digest="same")
    found = decided({"instruct": same, CANDIDATE: same})
    assert found["decision"] == "hold"
    assert [outcome for _, _, outcome in gate(found)] == ["tie", "passed", "passed"]
    assert found["claims"][0]["interval"] == (0.0, 0.0)
    assert found["claims"][0]["p"] == 1.0


def test_one_item_is_too_few() -> None:
    found = decided(arena({"instruct": np.zeros(1), CANDIDATE: np.ones(1)}))
    assert found["decision"] == "undecided"
    claim = found["claims"][0]
    assert claim["outcome"] == "too few items"
    assert claim["items_needed"] > 100
    assert f"about {claim['items_needed']} would show a gain of 0.05" in claim["reason"]


def test_all_items_won_is_better_and_the_interval_has_width() -> None:
    claim = decided(arena({"instruct": np.zeros(50), CANDIDATE: np.ones(50)}))["claims"][0]
    assert claim["outcome"] == "better"
    assert claim["difference"] == 1.0
    assert 0.7 < claim["interval"][0] < claim["interval"][1] == 1.0


def test_without_the_direct_arms_nothing_is_claimed_about_them() -> None:
    arms = arena(five(CLEAR))
    found = decided({name: arms[name] for name in ("instruct", "shadow", CANDIDATE)})
    assert found["decision"] == "promote"
    assert found["direct_control"] is False
    assert {c["against"] for c in found["claims"]} == {"instruct"}
    assert "the route direct was not run: nothing is claimed about it" in found["reasons"]


def test_two_arms_are_compared_once() -> None:
    found = decided(arena(five(CLEAR)), candidate="direct_scaled")
    pairs = [(claim["arm"], claim["against"]) for claim in found["claims"] if not claim["gate"]]
    assert pairs == [("direct_scaled", CANDIDATE), (CANDIDATE, "direct")]


def test_arms_of_two_routes_that_are_the_same_model_are_named() -> None:
    arms = arena(five(CLEAR))
    assert "the same model" not in str(decided(arms)["reasons"])
    own = replace(arms["shadow"], model_digest=arms[CANDIDATE].model_digest)
    assert "the same model" not in str(decided(arms | {"shadow": own})["reasons"]), "of one route: its scale is 1"
    twin = replace(arms["direct_scaled"], model_digest=arms[CANDIDATE].model_digest)
    said = decided(arms | {"direct_scaled": twin})["reasons"]
    assert f"direct_scaled, {CANDIDATE}: the same model, so these routes are one way of tuning" in said


def test_the_interval_of_an_open_mean_has_room_for_the_scores_of_the_instruct() -> None:
    arms = arena({"instruct": np.linspace(-3, -1, 50), CANDIDATE: np.full(50, -1.0)})
    assert decided(arms)["arms"][CANDIDATE]["domain"]["interval"][0] < -1.05


def test_scores_outside_0_to_1_are_named_as_such() -> None:
    rng = np.random.default_rng(6)
    before = rng.normal(-2.0, 0.5, 200)
    arms = {
        name: arm(name, {"text": ("domain", before + gain)}, metric="logprob_per_byte")
        for name, gain in [("instruct", 0.0), (CANDIDATE, rng.normal(0.5, 0.1, 200))]
    }
    found = decided(arms)
    assert found["decision"] == "promote"
    assert any(r.startswith("text: the scores are logprob_per_byte, not shares, yet") for r in found["reasons"])
    assert "no guard task was measured: nothing is claimed about forgetting" in found["reasons"]


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

    found = decided({"instruct": both("instruct", 30, 50), CANDIDATE: both(CANDIDATE, 240, 55)})
    assert found["claims"][0]["difference"] == pytest.approx((0.7 + 0.05) / 2)
    assert found["claims"][0]["by_task"] == pytest.approx({"a": 0.7, "b": 0.05})
    assert "domain by task, shadow_scaled against instruct: a +0.700, b +0.050" in found["reasons"]


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
    assert json.dumps(decided(other)) == json.dumps(decided(arms))


def test_no_domain_task_is_refused() -> None:
    only_guard = arm("instruct", {"general": ("guard", np.ones(5))})
    with pytest.raises(EvaluationError, match="no task has the role domain"):
        decided({"instruct": only_guard, CANDIDATE: only_guard})
