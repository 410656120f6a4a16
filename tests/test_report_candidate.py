"""The page is about the candidate, of whatever route, or says that there is none."""

import json
from pathlib import Path

import pytest

from shadowft_core.params import Verdict
from shadowft_core.verdict import verdict
from tests.fixtures.report import Page, dump, page, sha, write_work

PARAMS = Verdict(alpha=0.05, margin=0.03, worthwhile=0.05, resamples=999, seed=0)
LACKING = "Nothing beats the Instruct on the dev items: it has 0.1."


def work_of(work: Path, arm: str | None) -> Path:
    """The outputs of a run whose candidate.json names this arm. Its grafts have receipts of their own."""
    write_work(work)
    (work / "grafted/shadow").rename(work / "grafted/other")  # what is read must be the candidate's
    route = arm and arm.removesuffix("_scaled")
    named = {"arm": arm, "route": route, "scale": arm and 0.75, "reason": LACKING if arm is None else f"{arm} is best."}
    dump(work / "candidate.json", {"format": 1, **named})
    if route:
        recipe = {"format": 1, "scope": "all", "dtype": "bfloat16", "digest": sha(str(arm))}
        dump(work / f"grafted/{route}/recipe.json", recipe)
        receipt = json.loads((work / "grafted/other/receipt.json").read_bytes())
        dump(work / f"grafted/{route}/receipt.json", receipt | {"classes": receipt["classes"] | {"grafted": 77}})
        delta = json.loads((work / f"delta/{route}/delta.json").read_bytes())
        dump(work / f"delta/{route}/delta.json", delta | {"base": {"digest": sha("instruct")}})
    judged = (work / "scores", [], ["shadow", "direct"], PARAMS, work / "verdict.json")
    verdict(*judged, candidate=work / "candidate.json")
    return work


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(work_of(tmp_path_factory.mktemp("direct"), "direct_scaled"))


@pytest.fixture(scope="module")
def none(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(work_of(tmp_path_factory.mktemp("none"), None))


def test_the_page_is_about_the_candidate_of_another_route(direct: Page) -> None:
    assert "Shadow-FT verdict on direct_scaled" in direct.text
    assert "pico:instruct was tuned and its delta grafted on it" in direct.text
    assert "the candidate: Instruct tuned directly, scale chosen on dev items" in direct.text
    assert direct.text.count("the candidate: ") == 1
    assert "direct_scaled against the Instruct:" in direct.text
    assert "shadowft compare instruct direct_scaled" in direct.text
    assert "direct_scaled is best." in direct.text
    assert "77" in direct.text[direct.text.index("The graft") :].split("scope")[0], "of its own receipt"
    assert sha("direct_scaled") in direct.text[direct.text.index("model of its recipe") :]


def test_its_examples_are_items_on_which_it_differs(tmp_path: Path) -> None:
    work = work_of(tmp_path, "direct_scaled")
    scores = {
        arm: {
            (row["task"], row["item"]): row["score"]
            for row in map(json.loads, (work / f"scores/{group}/{arm}/items.jsonl").read_text().splitlines())
        }
        for group, arm in (("instruct", "instruct"), ("direct", "direct_scaled"))
    }
    shown = page(work).source.split("Answers that differ")[1].split("How the candidate")[0]
    given = {key for key in scores["instruct"] if f'title="{key[1]}"' in shown}
    assert given
    assert [key for key in given if scores["direct_scaled"][key] == scores["instruct"][key]] == []


def test_without_a_candidate_the_page_says_why(none: Page) -> None:
    assert "Shadow-FT: hold" in none.text
    assert "No arm that keeps the guards beats the Instruct on the dev items" in none.text
    assert "Nothing ships." in none.text
    assert LACKING in none.text
    assert "There is no candidate, so nothing would ship." in none.text
    for absent in ("the candidate: ", "against the Instruct:", "model of its recipe", "compare instruct None", "None"):
        assert absent not in none.text, absent
    assert "shadow_scaled" in none.text, "the arms are shown all the same"
