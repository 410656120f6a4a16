"""The head of the page: what was decided, why, what would ship and what it replaces."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.report.decision import decided
from tests.fixtures.report import dump, page, sha, write_work

MEAN = {"mean": 0.5, "interval": [0.4, 0.6], "n": 9}


def claim(outcome: str, role: str = "domain", against: str = "instruct", **more: Any) -> dict[str, Any]:
    kind = (
        "superiority"
        if outcome in ("better", "worse", "tie") or more.get("kind") == "superiority"
        else "non-inferiority"
    )
    facts = {"claim": kind, "arm": "r_scaled", "against": against, "role": role, "tasks": ["t"], "n": 9}
    facts |= {"difference": 0.1, "interval": [0.0, 0.2], "outcome": outcome, "reason": f"{role} {against} {outcome}"}
    return facts | more


def judged(decision: str, *claims: dict[str, Any], champion: bool = False, **more: Any) -> dict[str, Any]:
    arm = {"scale": 0.5, "domain": MEAN, "guards": MEAN}
    names = ["instruct", *(["champion"] if champion else []), "r_scaled"]
    facts = {"format": 2, "candidate": "r_scaled", "decision": decision, "claims": list(claims)}
    return facts | {"arms": dict.fromkeys(names, arm), "reasons": [one["reason"] for one in claims]} | more


def head(verdict: dict[str, Any], run: dict[str, Any] | None = None) -> dict[str, Any]:
    heads = {name: {"model_digest": sha(name), "version": 7} for name in verdict["arms"]}
    return decided(verdict, heads, run)


PROMOTED = "Every claim holds: r_scaled (scale 0.5) may become champion. It would replace {}."


def test_a_promotion_names_what_it_replaces() -> None:
    assert head(judged("promote", claim("better")))["lead"] == PROMOTED.format("the untouched Instruct")
    over = head(judged("promote", claim("better"), champion=True))
    assert over["lead"] == PROMOTED.format("the champion, version 7")
    assert over["stays"] == {
        "arm": "champion",
        "name": "the champion, version 7",
        "digest": sha("champion"),
        "note": "",
    }


def test_the_champion_itself_is_nothing_to_ship() -> None:
    verdict = judged("hold", claim("better"), champion=True)
    heads = {name: {"model_digest": "i" if name == "instruct" else "m", "version": 7} for name in verdict["arms"]}
    lead = "Nothing to ship: r_scaled (scale 0.5) is the same model as the champion, version 7, which stays."
    assert decided(verdict, heads, None)["lead"] == lead


@pytest.mark.parametrize(
    ("refuted", "cause"),
    [
        (claim("tie"), "it gains too little over the untouched Instruct on the domain to be worth shipping"),
        (claim("worse"), "it is worse than the untouched Instruct on the domain"),
        (claim("harmed", "guards"), "it harms the guards, taken together"),
        (claim("harmed", "guard"), "it harms the guard t"),
        (claim("harmed", against="champion"), "it is worse than the champion on the domain"),
        (claim("harmed", against="best_champion"), "it is worse than the best earlier champion on the domain"),
    ],
)
def test_a_hold_names_its_cause_and_what_stays(refuted: dict[str, Any], cause: str) -> None:
    found = head(judged("hold", claim("passed", "guard"), refuted))
    assert found["lead"] == f"Do not ship r_scaled (scale 0.5): {cause}. The untouched Instruct stays."
    assert [one["mark"] for one in found["gate"]] == ["✗", "✓"]  # what decides comes first


def test_too_few_items_name_the_open_question() -> None:
    few = claim("too few items", "guards", margin=0.03)
    found = head(judged("undecided", claim("better"), few))
    assert "too few items to tell whether the guards, taken together, lose less than 0.03." in found["lead"]
    assert [one["mark"] for one in found["gate"]] == ["?", "✓"]


def test_many_causes_are_counted() -> None:
    found = head(judged("hold", *(claim("harmed", "guard", tasks=[f"t{at}"]) for at in range(5))))
    assert "the guard t2; and 2 more. The" in found["lead"]


def test_without_a_candidate_nothing_ships() -> None:
    found = head(judged("hold", candidate=None, reasons=["Nothing beats the Instruct on dev items."]))
    assert found["lead"].startswith("Nothing ships. No arm that keeps the guards beats the Instruct on the dev items")
    assert found["lead"].endswith("The untouched Instruct stays.")
    assert found["remarks"] == ["Nothing beats the Instruct on dev items."]
    assert found["gains"] == []


def test_claims_about_the_method_do_not_gate() -> None:
    method = claim("worse", against="direct", gate=False, reason="m")
    verdict = judged("promote", claim("better"), method)
    verdict["reasons"] = ["domain instruct better", "not part of the decision: m", "remark"]
    found = head(verdict)
    assert ([one["reason"] for one in found["gate"]], [one["reason"] for one in found["method"]]) == (
        ["domain instruct better"], ["m"],
    )  # fmt: skip
    assert found["remarks"] == ["remark"]
    assert found["lead"].startswith("Every claim holds")


@pytest.mark.parametrize(
    ("outcome", "forwards", "backwards"),
    [
        ("better", "Yes", "No"),
        ("worse", "No", "Yes"),
        ("tie", "Not by much", "Not known"),
        ("too few items", "Not known", "Not known"),
    ],
)
def test_the_page_answers_whether_the_graft_helped(outcome: str, forwards: str, backwards: str) -> None:
    def answer(arm: str, against: str) -> str:
        method = claim(outcome, kind="superiority", arm=arm, against=against, gate=False)
        text: str = head(judged("promote", claim("better"), method))["helped"]
        return text.partition(":")[0]

    assert answer("shadow_scaled", "direct_scaled") == forwards
    assert answer("direct_scaled", "shadow_scaled") == backwards
    assert answer("shadow_scaled", "direct") == "Not known"  # at scale 1 direct tuning is no control


def test_many_guards_that_hold_are_folded() -> None:
    guards = [claim("passed", "guard", tasks=[f"t{at}"], reason=str(at)) for at in range(12)]
    found = head(judged("hold", claim("tie"), *guards, claim("harmed", "guard", tasks=["bad"])))
    assert [one["outcome"] for one in found["gate"][:2]] == ["tie", "harmed"]
    assert (len(found["gate"]), len(found["more"])) == (10, 4)


def test_the_two_numbers_have_the_interval_of_their_claim() -> None:
    better = claim("better", difference=0.0, interval=[0.1, 0.2])
    in_margins = claim("passed", "guards", difference=1.5)  # in units of each margin: not the difference of the means
    domain, guards = head(judged("promote", better, in_margins))["gains"]
    assert (domain["before"], domain["after"], domain["interval"], domain["state"]) == (0.5, 0.5, [0.1, 0.2], "holds")
    assert guards["interval"] is None


HEADLINES = {
    "promote": "may become champion",
    "hold": "(scale 0.75): the verdict",
    "undecided": "too few items to tell",
}


@pytest.mark.parametrize("decision", HEADLINES)
def test_the_headline_is_that_of_the_decision(tmp_path: Path, decision: str) -> None:
    path = write_work(tmp_path) / "verdict.json"
    dump(path, json.loads(path.read_bytes()) | {"decision": decision})
    shown = page(tmp_path)
    assert {name for name, words in HEADLINES.items() if words in shown.text} == {decision}
    assert f'<h1 class="{decision}">{decision}</h1>' in shown.source
    order = ["Why", "What ships and what it replaces", "The arms", "Earlier verdicts", "What was not tested"]
    places = [shown.source.index(f"<h2>{heading}") for heading in order]
    assert places == sorted(places)
    assert shown.source.index(HEADLINES[decision]) < places[0]


def test_a_verdict_of_format_1_is_shown_too(tmp_path: Path) -> None:
    path = write_work(tmp_path) / "verdict.json"
    found = json.loads(path.read_bytes())
    new = {"gate", "margin", "alpha", "clusters"}
    found["claims"] = [
        {name: value for name, value in one.items() if name not in new}
        for one in found["claims"]
        if one["role"] != "guards"
    ]
    dump(path, {name: value for name, value in found.items() if name not in ("arm", "look")} | {"format": 1})
    shown = page(tmp_path).text
    assert "may become champion" in shown
    assert "It would replace the champion." in shown
    assert "does not count looks at the test items" in shown
    assert "guard refusal loses no more than allowed: passed" in shown
    assert "Did the graft help?" not in shown


def test_a_page_without_a_candidate(tmp_path: Path) -> None:
    path = write_work(tmp_path) / "verdict.json"
    found = json.loads(path.read_bytes())
    held = {"candidate": None, "arm": "instruct", "decision": "hold", "claims": [], "reasons": ["Nothing beats it."]}
    dump(path, found | held)
    shown = page(tmp_path).text
    for sentence in ("Nothing ships", "Nothing beats it.", "Nothing was judged, so there is no figure", "no candidate"):
        assert sentence in shown


def test_the_champion_is_an_arm_of_the_page(tmp_path: Path) -> None:
    work = write_work(tmp_path)
    shutil.copytree(work / "scores/direct/direct", work / "scores/champion/champion")
    path = work / "scores/champion/champion/scores.json"
    dump(path, json.loads(path.read_bytes()) | {"arm": "champion", "version": 12})
    verdict = json.loads((work / "verdict.json").read_bytes())
    verdict["arms"]["champion"] = verdict["arms"]["direct"]
    dump(work / "verdict.json", verdict)
    shown = page(work)
    assert "It would replace the champion, version 12." in shown.text
    assert "the version in service" in shown.text
    assert 'id="pareto-mark-arm-champion"' in shown.source
    assert "No champion was scored" not in shown.text
