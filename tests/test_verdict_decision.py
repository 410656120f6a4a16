"""The decision that follows from the claims of a verdict.json, of either format."""

import json
from typing import Any

import numpy as np
import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.verdict import Claim, decide, decision_of, judge
from tests.fixtures.arms import ARMS, CLEAR, PARAMS, arena, five


def claim(outcome: str, **changes: Any) -> Claim:
    return Claim("superiority", "a", "b", "domain", [], 1, 0.0, (0.0, 0.0), 1.0, 1.0, outcome, None, {}, "", **changes)  # type: ignore[arg-type]


def test_decisions_follow_from_outcomes_alone() -> None:
    def decided(*outcomes: str) -> str:
        return decide([claim(outcome) for outcome in outcomes])

    assert decided("better", "passed") == "promote"
    assert decided("better", "too few items", "passed") == "undecided"
    assert decided("better", "too few items", "harmed") == "hold"
    assert decided("tie", "passed") == "hold"
    assert decided("worse", "passed") == "hold"
    assert decided() == "hold", "no claim of a gate promotes nothing"


def test_only_claims_of_the_gate_decide() -> None:
    assert decide([claim("better"), claim("worse", gate=False), claim("too few items", gate=False)]) == "promote"
    assert decide([claim("better", gate=False)]) == "hold"


def written(found: dict[str, Any]) -> dict[str, Any]:
    """As it is read back from a file that states another decision."""
    return dict(json.loads(json.dumps(found | {"recipe_digest": "x"})), decision="not the decision")


def test_the_decision_is_recomputed_from_the_claims_of_the_file() -> None:
    items = (np.arange(200) % 2).astype(float)
    for better in (items, np.ones(200)):
        found = judge(
            arena({name: better if name.startswith("shadow") else items for name in ARMS}),
            PARAMS,
            candidate="shadow_scaled",
        )
        assert decision_of(written(found)) == found["decision"]
    assert decision_of(written(judge(arena(five(CLEAR)), PARAMS, candidate=None))) == "hold"


def full() -> dict[str, Any]:
    arms = arena(five(CLEAR) | {"champion": np.zeros(400), "best_champion": np.zeros(400)})
    return written(judge(arms, PARAMS, candidate="shadow_scaled"))


def test_a_verdict_that_lacks_a_claim_of_the_gate_is_refused() -> None:
    found = full()
    assert decision_of(found) == "promote"
    gate = [claim for claim in found["claims"] if claim["gate"]]
    assert len(gate) == 5
    for left_out in gate:
        fewer = [claim for claim in found["claims"] if claim is not left_out]
        with pytest.raises(EvaluationError, match=r"no claim that decides .* of shadow_scaled over .*; run `shadowft"):
            decision_of(found | {"claims": fewer})
        for changed in ({"gate": False}, {"arm": "shadow"}):
            other = [claim | changed if claim is left_out else claim for claim in found["claims"]]
            with pytest.raises(EvaluationError, match="no claim that decides"):
                decision_of(found | {"claims": other})


def test_a_guard_that_is_called_the_domain_is_missed() -> None:
    found = full()
    domain = found["claims"][0] | {"tasks": ["skill", "general"]}
    with pytest.raises(EvaluationError, match=r"no claim that decides non-inferiority .* on the guards"):
        decision_of(found | {"claims": [domain, *found["claims"][1:]]})


def test_claims_that_cannot_be_read_are_refused() -> None:
    found = full()
    for broken in ([found["claims"][0] | {"outcome": "fine"}], None):
        with pytest.raises(EvaluationError, match="cannot be read"):
            decision_of(found | {"claims": broken})
    with pytest.raises(EvaluationError, match="'claims' is missing"):
        decision_of({"decision": "promote"})
    with pytest.raises(EvaluationError, match="'arms' is missing"):
        decision_of({name: value for name, value in found.items() if name != "arms"})


FIRST = {
    "claim": "superiority",
    "arm": "shadow_scaled",
    "role": "domain",
    "tasks": ["skill"],
    "n": 8,
    "difference": 0.1,
    "interval": [0.05, 0.15],
    "p": 0.01,
    "p_adjusted": 0.03,
    "outcome": "better",
    "items_needed": None,
    "by_task": {"skill": 0.1},
    "reason": "domain: better",
}


def test_a_verdict_of_format_1_is_read_as_it_was_meant() -> None:
    """It asked for a gain over every rival, and had no claim outside the gate."""
    rivals = ["instruct", "direct", "direct_scaled"]
    first = {"format": 1, "candidate": "shadow_scaled", "decision": "hold", "direct_control": True, "arms": {}}
    first["claims"] = [FIRST | {"against": rival} for rival in rivals]
    assert decision_of(first) == "promote"
    tie = [claim | {"outcome": "tie"} if claim["against"] == "direct" else claim for claim in first["claims"]]  # type: ignore[attr-defined]
    assert decision_of(first | {"claims": tie}) == "hold"
    for rival in rivals:
        fewer = [claim for claim in first["claims"] if claim["against"] != rival]  # type: ignore[attr-defined]
        with pytest.raises(EvaluationError, match=f"superiority of shadow_scaled over {rival} on the domain; run"):
            decision_of(first | {"claims": fewer})
    alone = [FIRST | {"against": "instruct"}]
    assert decision_of(first | {"claims": alone, "direct_control": False}) == "promote"
    with pytest.raises(EvaluationError, match="superiority of shadow_scaled over instruct"):
        decision_of(first | {"claims": [], "direct_control": False})
