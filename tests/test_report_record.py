"""The page on the run: looks at the test items, costs, lineage, test items in the data, what was not tested."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.report.record import costs, not_tested, versions
from shadowft_core.report.routes import unclaimed
from tests.fixtures.report import Page, dump, page, sha, write_work

EARLIER = {"number": 1, "candidate": sha("before"), "model_name": "mine\u202e", "commit": "c0ffee", "overlap": 317}
RUN = {
    "format": 1,
    "candidate": sha("shadow_scaled"),
    "items": None,
    "look": 2,
    "earlier": [EARLIER],
    "champion": None,
    "best_champion": None,
    "commit": "deadbeef",
    "dirty": False,
    "costs": [{"stage": "prepare", "seconds": 1.25}, {"stage": "train@shadow", "seconds": 3.75}],
}


def change(path: Path, **fields: Any) -> None:
    dump(path, json.loads(path.read_bytes()) | fields)


def with_run(work: Path, **fields: Any) -> Page:
    write_work(work)
    dump(work / "run.json", RUN | fields)
    look = {"number": 2, "alpha": 0.005, "left": 0.0025, "items": sha("items"), "earlier": [EARLIER]}
    change(work / "verdict.json", look=look)
    return page(work)


def test_earlier_verdicts_and_alpha_left_are_shown(tmp_path: Path) -> None:
    shown = with_run(tmp_path).text
    assert "number 2, a gain had to be shown at the one-sided level 0.005" in shown
    assert "0.0025, for all later looks" in shown
    assert re.search(rf"1{sha('before')[7:19]}mine<U\+202E>c0ffee317\s", shown)
    assert sha("items") in shown


def test_a_first_look_says_whether_looks_are_recorded(tmp_path: Path) -> None:
    write_work(tmp_path)
    assert "No record of earlier looks was kept" in page(tmp_path).text
    dump(tmp_path / "run.json", RUN | {"look": 1, "earlier": []})
    assert "No earlier verdict read any of these items." in page(tmp_path).text


def test_costs_name_what_was_not_measured(tmp_path: Path) -> None:
    shown = with_run(tmp_path).text
    assert re.search(r"prepare1\.225 %\s+train@shadow3\.875 %\s+all of these5\.0", shown)
    assert "Not measured: GPU hours, memory, energy and price; the time of fetch, start, preflight, select" in shown
    assert "train@direct" in shown[shown.index("Not measured:") :]
    assert "seeds@direct, champion, look, verdict and report." in shown
    assert costs(None, ["r"])["rows"] == []
    full = [
        {"stage": f"{stage}@r", "seconds": 0.0} for stage in ("train", "extract", "sweep", "graft", "evaluate", "seeds")
    ]
    once = ("fetch", "prepare", "start", "preflight", "select", "evaluate-instruct")
    full += [{"stage": stage, "seconds": 0.0} for stage in once]
    assert costs({"costs": full}, ["r"])["missing"] == []


def test_earlier_champions_that_were_not_scored_are_named_with_the_reason(tmp_path: Path) -> None:
    shown = with_run(tmp_path, skipped=[{"version": 4, "digest": sha("gone"), "reason": "store s lacks delta d"}]).text
    assert f"version 4 ({sha('gone')}): store s lacks delta d" in shown


@pytest.mark.parametrize("dirty", [True, False])
def test_the_commit_and_its_changes_are_named(tmp_path: Path, dirty: bool) -> None:
    shown = with_run(tmp_path, dirty=dirty).text
    assert "commitdeadbeef" in shown
    assert ("with changes that were not committed" in shown) == dirty


def test_without_a_commit_the_page_says_so(tmp_path: Path) -> None:
    assert "commitnot recorded" in with_run(tmp_path, commit=None, dirty=None).text


def test_versions_come_from_the_files_of_training_and_delta() -> None:
    train = {
        "a": {"versions": {"torch": "2.1", "trl": "1.0"}},
        "b": {"versions": {"torch": "2.0"}},
        "c": {"versions": None},
    }
    delta = {"a": {"created_by": "shadowft 0.1.0"}, "b": {"created_by": None}}
    assert versions(train, delta) == {"shadowft": "0.1.0", "torch": "2.0, 2.1", "trl": "1.0"}


def test_decontamination_says_how_much_was_read_and_dropped(tmp_path: Path) -> None:
    data = write_work(tmp_path) / "data/data-report.json"
    rows = [{"source": "a.jsonl:3", "item": "t.jsonl:9", "rule": "13-gram"}]
    change(data, contaminated={"items": 1460, "count": 40, "rows": rows})
    shown = page(tmp_path).text
    assert "1,460 test items were read. 40 rows were in one of them and were dropped." in shown
    assert "a.jsonl:3 in t.jsonl:9 (13-gram)" in shown
    assert "The training data was not compared with the items of far." in shown
    change(data, contaminated={"items": 0, "count": 0, "rows": []})
    assert page(tmp_path).text.count("No test item was read") == 2


def test_answers_in_doubt_are_counted_by_arm_and_task(tmp_path: Path) -> None:
    path = write_work(tmp_path) / "scores/direct/direct/scores.json"
    head = json.loads(path.read_bytes())
    head["tasks"]["facts"]["counts"] |= {"cut": 1, "unparsed": 2, "empty": 3, "unstopped": 4}
    head["tasks"]["facts"]["flags"] = ["unparsed"]
    del head["tasks"]["skill"]["counts"]
    dump(path, head)
    shown = page(tmp_path).text
    table = shown[shown.index("Answers in doubt") :]
    assert re.search(r"facts1201 cut1 cut2 unparsed|facts1201 cut1 cut\s*2 unparsed", table.replace("\n", ""))
    assert "1 cut2 unparsed3 empty4 unstopped" in table
    assert "not counted" in table
    assert "direct: 3 cut, 2 unparsed, 3 empty, 4 unstopped of 510; unparsed flagged on facts." in table


def test_metrics_of_other_filters_are_shown_for_every_arm(tmp_path: Path) -> None:
    write_work(tmp_path)
    assert "No task has any other metric." in page(tmp_path).text
    for number, arm in enumerate(("instruct/instruct", "shadow/shadow_scaled")):
        path = tmp_path / "scores" / arm / "scores.json"
        head = json.loads(path.read_bytes())
        head["tasks"]["skill"]["others"] = {"flexible/exact_match": 0.25 + number / 2}
        dump(path, head)
    shown = page(tmp_path).text
    assert re.search(r"skilldecided by m\s*flexible/exact_match0\.250–––0\.750\s", shown)


def said(**fields: Any) -> list[str]:
    claim = {"role": "guard", "n": 5, "clusters": 5}
    facts = {
        "candidate": "a",
        "claims": [claim],
        "arms": {"champion": {}, "instruct": {"guards": {}}},
        "direct_control": True,
    } | fields
    return not_tested(facts, ["shadow"], fields.get("train", {}), {"contaminated": {"items": 3}}, {})


def test_what_was_not_tested_follows_from_the_files() -> None:
    everywhere = " ".join(said())
    assert "abilities that no task on this page measures" in everywhere
    assert "GPU hours" in everywhere
    for absent in ("No guard task", "No champion", "The route direct was not run", "No test item"):
        assert absent not in everywhere
    assert any("No champion was scored" in one for one in said(arms={"instruct": {"guards": {}}}))
    assert any("The route direct was not run" in one for one in said(direct_control=False))
    assert any("No guard task" in one for one in said(arms={"instruct": {"guards": None}}))
    assert any("independent of each other" in one for one in said())
    assert not any(
        "independent of each other" in one for one in said(claims=[{"role": "guards", "n": 5, "clusters": 2}])
    )
    seeds = {"a": {"seed": 0}, "b": {"seed": 1}}
    assert any("not another seed" in one for one in said())
    assert not any("not another seed" in one for one in said(train=seeds))


def test_the_candidate_is_no_rival_of_itself() -> None:
    routes = ["shadow", "direct", "a", "b"]
    assert unclaimed(routes, "shadow_scaled")[0].startswith("The further routes a, b are compared with the candidate,")
    assert unclaimed(routes, "b_scaled")[0].startswith("The further route a is compared with the candidate,")
    assert unclaimed(["shadow", "b"], "b_scaled") == unclaimed(routes, None) == []
