"""`shadowft verdict --items`: a verdict on scores of any origin, its refusals, exit codes and other forms."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.cli import main
from shadowft_core.errors import EvaluationError
from shadowft_core.verdict import judge, junit, markdown
from shadowft_core.verdict.itemfile import read_items, verdict_of_items
from tests.fixtures.arms import CLEAR, PARAMS, arena, five

Row = dict[str, Any]


def rows(right: dict[str, int], n: int = 400, guard: dict[str, int] | None = None, **more: Any) -> list[Row]:
    """One domain task and one guard of two tasks; of each arm, how many items are right. More columns by value."""
    found = []
    for arm, count in right.items():
        kept = (guard or {}).get(arm, n)
        for i in range(n):
            found.append(
                {"suite": "domain", "task": "skill", "item_id": i, "arm": arm, "score": float(i < count)} | more
            )
            for task in ("algebra", "law"):
                found.append({"suite": "mmlu", "task": task, "item_id": i, "arm": arm, "score": float(i < kept)} | more)
    return found


def write(path: Path, content: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(content), path)
    return path


def judged(tmp_path: Path, content: list[Row], candidate: str = "mine") -> dict[str, Any]:
    path = write(tmp_path / "items.parquet", content)
    found = verdict_of_items(path, candidate, PARAMS, tmp_path / "v.json", tmp_path / "m.json")
    assert json.loads((tmp_path / "v.json").read_bytes()) == json.loads(json.dumps(found))
    return found


def test_a_parquet_file_is_judged_like_score_folders(tmp_path: Path) -> None:
    found = judged(tmp_path, rows({"instruct": 100, "mine": 200, "other": 300}))
    assert (found["decision"], found["arm"], found["format"], found["look"]["number"]) == ("promote", "mine", 2, 1)
    assert [(c["role"], c["tasks"], c["outcome"]) for c in found["claims"] if c["gate"]] == [
        ("domain", ["skill"], "better"),
        ("guards", ["algebra", "law"], "passed"),
        ("guard", ["algebra", "law"], "passed"),
    ]
    assert found["claims"][2]["reason"].startswith("guard mmlu: mine 1.000 against instruct 1.000")
    assert set(found["arms"]) == {"instruct", "mine", "other"}
    assert json.loads((tmp_path / "m.json").read_bytes())["domain.mine"] == 0.5


def test_a_champion_in_the_file_is_judged_too(tmp_path: Path) -> None:
    found = judged(tmp_path, rows({"instruct": 100, "mine": 200, "champion": 390}))
    assert (found["decision"], found["arm"]) == ("hold", "champion")


def test_clusters_make_copies_one_observation(tmp_path: Path) -> None:
    """8 of 8 questions won is proven; 2 of 2, each asked 4 times, is not."""
    content = [
        {"suite": "domain", "task": "t", "item_id": i, "arm": arm, "score": score, "cluster": i // 4}
        for arm, score in (("instruct", 0), ("mine", 1))
        for i in range(8)
    ]
    found = judged(tmp_path, content)
    assert (found["decision"], found["claims"][0]["n"], found["claims"][0]["clusters"]) == ("undecided", 8, 2)
    assert judged(tmp_path, [row | {"cluster": None} for row in content])["decision"] == "promote"


def test_clusters_may_be_told_by_one_arm_of_each_task(tmp_path: Path) -> None:
    content = [
        {"suite": "domain", "task": task, "item_id": i, "arm": arm, "score": score}
        | {"cluster": f"{task} {i // 4}" if arm == told else None}
        for arm, score in (("instruct", 0), ("mine", 1))
        for task, told in (("a", "instruct"), ("b", "mine"))
        for i in range(8)
    ]
    assert judged(tmp_path, content)["claims"][0]["clusters"] == 4


def test_the_first_seed_ships_and_the_others_are_told(tmp_path: Path) -> None:
    content = rows({"instruct": 100}, seed=0) + rows({"mine": 200}, seed=3) + rows({"mine": 90}, seed=7)
    found = judged(tmp_path, content)
    assert found["claims"][0]["difference"] == pytest.approx(0.25)
    told = "domain: mine by seed: seed 3 0.500, seed 7 0.225; the first is judged, because it ships"
    assert told in found["reasons"]
    arms = read_items(tmp_path / "items.parquet")
    assert len(arms["mine"].scores["skill"]) == 400
    assert {name: [run.seed for run in one.runs] for name, one in arms.items()} == {"instruct": [None], "mine": [3, 7]}


NAN = float("nan")
BASE = rows({"instruct": 1, "mine": 2}, 3)


def seeded(seed: int, content: list[Row]) -> list[Row]:
    return [row | {"seed": seed} for row in content]


def without(column: str) -> list[Row]:
    return [{name: value for name, value in row.items() if name != column} for row in BASE]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("suite"), r"items.parquet: has no column 'suite', only task, item_id, arm, score; needed are"),
        ([*BASE[:4], BASE[4] | {"score": None}, *BASE[5:]], r"row 5: score is None, expected a finite number; score"),
        ([*BASE[:4], BASE[4] | {"score": float("nan")}, *BASE[5:]], r"row 5: score is nan, expected a finite number"),
        ([*BASE, BASE[2]], r"row 19: item '0' of task 'law' is in arm 'instruct' in row 3 already; write an item once"),
        ([*BASE[:1], BASE[1] | {"arm": ""}, *BASE[2:]], r"row 2: arm is '', expected a name; correct it"),
        ([*BASE[:1], BASE[1] | {"item_id": None}, *BASE[2:]], r"row 2: item_id is missing; name the item"),
        ([*BASE, BASE[0] | {"suite": "mmlu", "item_id": 9}], r"row 19: task 'skill' is in suite 'mmlu', but in 'dom"),
        (BASE[:-1], r"items.parquet: arm 'mine' and arm 'instruct' did not answer the same items of task 'law'"),
        (rows({"base": 1, "mine": 2}, 3), r"no row has the arm `instruct`, only base, mine; the untouched Instruct is"),
        ([row | {"seed": "x"} for row in BASE], r"row 1: seed is 'x', expected an integer; correct it"),
        ([row | {"cluster": NAN} for row in BASE], r"row 1: cluster is nan; name it, or write null for none"),
        ([row | {"item_id": NAN} for row in BASE], r"row 1: item_id is nan; name the item"),
        (rows({"instruct": 1, "mine": 2}, 3, suite="x"), r"no row of instruct has the suite `domain`, only x; name"),
        (seeded(0, BASE) + seeded(1, BASE[9:-1]), r"'mine' has 5 items of suite 'mmlu' with seed 1, and 6 with seed 0"),
        ([row | {"seed": int(row["suite"] != "domain")} for row in BASE], r"'mmlu' with seed 1, and 0 with seed 0"),
    ],
)  # fmt: skip
def test_refusals_name_file_row_and_remedy(tmp_path: Path, content: list[Row], message: str) -> None:
    with pytest.raises(EvaluationError, match=message) as error:
        judged(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path / 'items.parquet'}: ")
    assert len(str(error.value)) <= 1000
    assert not (tmp_path / "v.json").exists()


def test_a_file_or_candidate_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"candidate is 'zebra', but only these arms may ship: mine; name one"):
        judged(tmp_path, BASE, "zebra")
    with pytest.raises(EvaluationError, match=r"gone.parquet: no such file"):
        verdict_of_items(tmp_path / "gone.parquet", "mine", PARAMS, tmp_path / "v.json")
    (tmp_path / "text.parquet").write_text("suite,task\n")
    with pytest.raises(EvaluationError, match=r"text.parquet: .*not a parquet file.*; write a parquet file"):
        verdict_of_items(tmp_path / "text.parquet", "mine", PARAMS, tmp_path / "v.json")


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["shadowft", "verdict", *map(str, words)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize(
    ("right", "n", "decision", "code"), [(200, 400, "promote", 0), (20, 400, "hold", 11), (3, 6, "undecided", 12)]
)
def test_the_exit_code_and_the_forms_tell_the_decision(
    right: int, n: int, decision: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "items.parquet", rows({"instruct": n // 4, "mine": right}, n))
    words = ["--items", path, "--candidate", "mine", "--out", "v.json", "--junit", "j.xml", "--markdown", "v.md"]
    assert run(monkeypatch, *words) == 0
    assert run(monkeypatch, *words, "--exit-code") == code
    found = json.loads((tmp_path / "v.json").read_bytes())
    assert found["decision"] == decision
    assert (tmp_path / "v.md").read_text("utf-8").startswith(f"# Verdict: {decision}\n\nCandidate: mine. ")
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert (suite.get("tests"), len(suite)) == ("3", 3)
    assert suite[1].get("name") == "non-inferiority to instruct, guards algebra, law"
    assert {case.get("name") for case in suite if case.find("failure") is not None} == (
        {"superiority over instruct, domain skill"} if decision == "hold" else set()
    )
    assert (suite.get("failures"), int(suite.get("skipped", 0)) > 0) == (str(int(code == 11)), code == 12)


def test_a_file_with_the_section_verdict_alone_sets_the_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI has no pair, no data and no training to name."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "items.parquet", rows({"instruct": 100, "mine": 200}, guard={"mine": 385}))
    words = ["--items", path, "--candidate", "mine", "--out", "v.json", "--exit-code"]
    assert run(monkeypatch, *words) == 12
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "verdict: undecided; instruct stays"
    assert [f"  {reason}" for reason in json.loads(Path("v.json").read_bytes())["reasons"]] == said[1:]
    Path("params.yaml").write_text("verdict: {margin: 0.1, margin_each: 0.2}\n")
    assert run(monkeypatch, *words) == 0
    assert capsys.readouterr().err.startswith("verdict: promote; mine ships\n")
    assert json.loads(Path("v.json").read_bytes())["claims"][1]["margin"] == 0.1
    unknown = "verdict: {metrics: {scor: {margin: 0.1, margin_each: 0.2, worthwhile: 0.1}}}"
    for text, code, problem in (
        ("verdict: {alpha: 1.5}", 3, "own.yaml: verdict.alpha: Input should be less than 0.5 (found 1.5)\n"),
        (
            "verdicts: {alpha: 0.1}",
            3,
            "own.yaml: verdicts: no such field; did you mean `verdict`? correct or remove it; missing",
        ),
        (unknown, 7, "params verdict.metrics: no task has the metric 'scor', only score; correct or remove it\n"),
    ):
        Path("own.yaml").write_text(text)
        assert run(monkeypatch, *words, "--params", "own.yaml") == code
        assert capsys.readouterr().err.startswith(f"error: {problem}")


def test_options_that_do_not_fit_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "items.parquet", BASE)
    for words in ([], ["--scores", tmp_path, "--items", path], ["--items", path], ["--items", path, "--run", path]):
        assert run(monkeypatch, *words, "--out", tmp_path / "v.json") == 3
        assert capsys.readouterr().err.startswith("error: --")


def test_the_forms_hold_hostile_names() -> None:
    arms = arena(five(CLEAR))
    found = judge(arms, PARAMS, candidate="shadow_scaled")
    found["claims"][0] |= {"tasks": ["a|b\x00<script>"], "reason": "x\x08<b>&\u202e", "outcome": "worse"}
    text = junit(found)
    case = ElementTree.fromstring(text)[0][0]
    assert case.get("name") == "superiority over instruct, domain a|b\ufffd<script>"
    assert case[0].get("message") == "x\ufffd<b>&\u202e"
    page = markdown(found)
    assert r"| a\|b\\u0000&lt;script> |" in page
    assert "| instruct | 0.100 [0.0" in page
    assert re.search(
        r"\| guards \| shadow_scaled against instruct \| general \| [^|]+ \| 0\.03 \| [^|]+ \| 0\.05 \|", page
    )
    assert page.count("| domain (not part of the decision) | ") == 2
    none = judge(arms, PARAMS, candidate=None) | {"reasons": ["nothing beats scale 0"]}
    suite = ElementTree.fromstring(junit(none))[0]
    assert (suite.get("tests"), suite.get("failures"), suite[0][0].get("message")) == (
        "1",
        "1",
        "nothing beats scale 0",
    )
    assert "Candidate: none. Stays: instruct." in markdown(none)
    assert "| &lt; 0.0001 |" in page
    assert "0.0000" not in page


def test_markdown_shows_marks_of_names_as_they_are() -> None:
    arms = arena(five(CLEAR))
    found = judge(arms, PARAMS, candidate="shadow_scaled")
    found["reasons"] = ["# Verdict: promote", "1. [x](javascript:alert(1)) `a` **b** __c__ d_e"]
    page = markdown(found | {"candidate": "[x](//evil)"})
    assert "\n- \\# Verdict: promote\n" in page
    assert "\n- 1\\. [x\\](javascript:alert(1)) \\`a\\` \\*\\*b\\*\\* \\_\\_c\\_\\_ d_e\n" in page
    assert "Candidate: [x\\](//evil). " in page


def test_a_guard_of_many_small_tasks_is_one_guard() -> None:
    """57 tasks of 30 items: none could pass alone."""
    from tests.fixtures.arms import arm

    guards = {f"subject {k:02d}": ("guard", np.ones(30)) for k in range(57)}
    arms = {
        name: arm(name, {"skill": ("domain", np.arange(400.0) < CLEAR[name])} | guards)
        for name in ("instruct", "shadow_scaled")
    }
    assert judge(arms, PARAMS, candidate="shadow_scaled")["decision"] == "undecided"
    for one in arms.values():
        one.groups.update(dict.fromkeys(guards, "mmlu"))
    found = judge(arms, PARAMS, candidate="shadow_scaled")
    assert found["decision"] == "promote"
    assert [len(c["tasks"]) for c in found["claims"] if c["gate"]] == [1, 57, 57]
