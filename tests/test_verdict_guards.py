"""Claims that the candidate harms no guard: each alone, and all together."""

import numpy as np
import pytest

from shadowft_core.params import Thresholds
from shadowft_core.verdict import numbers
from shadowft_core.verdict.scores import Arm
from tests.fixtures.arms import ARMS, CANDIDATE, CLEAR, PARAMS, arena, arm, decided, five, gate, keep


def test_one_harmed_guard_holds_the_candidate() -> None:
    found = decided(arena(five(CLEAR), {CANDIDATE: keep(0.85)}))
    assert found["decision"] == "hold"
    assert gate(found)[1:] == [("guards", "instruct", "harmed"), ("guard", "instruct", "harmed")]
    assert "-0.150" in found["reasons"][2]


def guarded(shares: dict[str, float], n: int = 400) -> dict[str, Arm]:
    """Instruct and candidate; the candidate keeps these shares of each guard, on which the Instruct is always right."""
    items = np.arange(n)
    return {
        name: arm(
            name,
            {"skill": ("domain", (np.arange(400) < CLEAR[name]).astype(float))}
            | {
                task: ("guard", np.ones(n) if name == "instruct" else (items < n * share).astype(float))
                for task, share in shares.items()
            },
        )
        for name in ("instruct", CANDIDATE)
    }


def test_every_guard_must_pass_and_all_together() -> None:
    unharmed = dict.fromkeys("abcd", 1.0)
    assert decided(guarded(unharmed))["decision"] == "promote"
    one = decided(guarded(unharmed | {"c": 0.92}, 1600))
    assert gate(one)[1:] == [
        ("guards", "instruct", "passed"),
        *[("guard", "instruct", outcome) for outcome in ("passed", "passed", "harmed", "passed")],
    ]
    assert one["decision"] == "hold"
    assert numbers(one)["worst_guard"] == pytest.approx(-0.08)
    assert one["arms"][CANDIDATE]["overall"]["mean"] == pytest.approx((0.8 + 1 + 1 + 0.92 + 1) / 5)
    every = decided(guarded(dict.fromkeys("abcd", 0.968), 1600))  # below margin_each, above margin
    assert gate(every)[1:] == [("guards", "instruct", "too few items"), *[("guard", "instruct", "passed")] * 4]
    assert every["decision"] == "undecided"
    assert [c["margin"] for c in every["claims"]] == [None, 0.03, 0.05, 0.05, 0.05, 0.05]
    assert [c["alpha"] for c in every["claims"]] == [pytest.approx(0.04), 0.05, 0.01, 0.01, 0.01, 0.01]


@pytest.mark.parametrize(
    ("kept", "outcomes"),
    [(0.941, ["harmed", "harmed"]), (0.962, ["harmed", "passed"]), (0.974, ["passed", "passed"])],
)
def test_a_loss_just_beyond_a_margin_is_harm(kept: float, outcomes: list[str]) -> None:
    """8,000 items tell a loss from a margin of 0.03 or 0.05 that is 0.008 away, and would not if it were 0.01 wider."""
    found = decided(guarded({"a": kept}, 8000))
    assert [outcome for _, _, outcome in gate(found)[1:]] == outcomes


def test_guards_with_thresholds_of_their_own_are_pooled_in_units_of_them() -> None:
    rng = np.random.default_rng(3)

    def arms(loss: float) -> dict[str, Arm]:
        before = rng.normal(-2, 0.5, 400)
        found = {}
        for name, text in (("instruct", before), (CANDIDATE, before - loss + rng.normal(0, 0.02, 400))):
            plain = arm(name, {"skill": ("domain", keep(CLEAR[name] / 400)), "a": ("guard", np.ones(400))})
            scores = plain.scores | {"text": {f"{i:06d}": float(s) for i, s in enumerate(text)}}
            roles, metrics = plain.roles | {"text": "guard"}, plain.metrics | {"text": "nats"}
            found[name] = Arm(name, 1.0, name, "template", roles, metrics, scores)
        return found

    params = PARAMS.model_copy(update={"metrics": {"nats": Thresholds(margin=0.2, margin_each=0.3, worthwhile=0.1)}})
    found = decided(arms(0.1), params)
    pooled = found["claims"][1]
    assert pooled["difference"] == pytest.approx((0 - 0.1 / 0.2) / 2, abs=0.01)
    assert pooled["by_task"] == pytest.approx({"a": 0.0, "text": -0.1}, abs=0.01)
    assert (pooled["margin"], found["claims"][3]["margin"], found["decision"]) == (1.0, 0.3, "promote")
    assert "in units of each task's margin, -0.2" in pooled["reason"]
    assert "text: the scores are nats, not shares; its thresholds are those of verdict.metrics" in found["reasons"]
    assert decided(arms(0.5), params)["decision"] == "hold"
    assert decided(arms(0.1))["decision"] == "hold", "without thresholds of its own, 0.1 nats are above the margin 0.05"


def test_a_guard_with_too_few_items_leaves_it_undecided() -> None:
    ones = dict.fromkeys(ARMS, np.ones(30))
    found = decided(arena(five(CLEAR), ones))
    assert found["decision"] == "undecided"
    assert [outcome for _, _, outcome in gate(found)] == ["better", "too few items", "too few items"]
    needed = max(c["items_needed"] for c in found["claims"][1:3])
    assert "would let a candidate pass that loses nothing)" in found["claims"][1]["reason"]
    assert decided(arena(five(CLEAR), dict.fromkeys(ARMS, np.ones(needed + 20))))["decision"] == "promote"


def test_with_many_items_a_smaller_loss_is_named() -> None:
    """Enough for a candidate that loses half of the margin 0.03, too few for one that loses three quarters of it."""
    claim = decided(guarded({"a": 0.973}, 2000))["claims"][1]
    assert claim["outcome"] == "too few items"
    assert claim["items_needed"] > 2000
    assert claim["reason"].endswith(f"about {claim['items_needed']} would let a candidate pass that loses 0.0225)")
