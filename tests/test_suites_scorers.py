"""The key `scorer` of a task file, with models that only a test can have: an oracle, a constant and a silent one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.counts import gaps
from shadowft_core.evaluate.items import Item
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.suites.taskfiles import TaskFiles
from tests.fixtures.evaluation import World, score_instruct, write_task

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
"""
ROWS: dict[str, tuple[str, list[Any]]] = {  # by scorer: further keys of the task, and references
    "number": ("", ["42", "-7", "1,234", "0.5", "18"]),
    "math": ("", ["\\frac{1}{2}", "(1,2)", "x^2+2x+1", "[0,\\infty)", "\\text{Evelyn}"]),
    "choice": ("doc_to_choice: [red, green, blue, sea green]\n", ["A", "B", "A", "D"]),
    "chart": ("", ["88", "Yes", "South", "2022", "42%"]),
}
FORMED = {"number": "#### {}", "math": "\\boxed{{{}}}", "choice": "The answer is ({}).", "chart": "{}"}


def build(folder: Path, scorer: str, more: str = "", references: list[Any] | None = None, base: str = TASK) -> Any:
    folder.mkdir(exist_ok=True)
    rows = [{"q": f"question {at}", "a": one} for at, one in enumerate(references or ["42", "7"])]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(f"{base}scorer: {scorer}\n{more}")
    return TaskFiles(folder, allow_code=True).build("mine", folder, folder / "cache")


def score(task: Any, answer: Callable[[dict[str, Any]], str]) -> dict[str, float]:
    """The means of a task's metrics for a model that answers with a function of the document."""
    import lm_eval
    from lm_eval.api.model import LM

    class Answers(LM):  # type: ignore[misc]
        """No model: an oracle knows the document, and a constant does not read the question."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [answer(request.doc) for request in requests]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            raise AssertionError("not asked")

        loglikelihood_rolling = loglikelihood

    with quiet():
        found = lm_eval.evaluate(lm=Answers(), task_dict={"tasks": {"mine": task}}, bootstrap_iters=0)
    results = found["results"]["mine"]
    return {metric: results[f"{metric},none"] for metric in ("strict", "lenient", "parsed")}


@pytest.mark.parametrize("scorer", ROWS)
def test_an_oracle_is_right_and_an_empty_answer_wrong(scorer: str, tmp_path: Path) -> None:
    more, references = ROWS[scorer]
    task = build(tmp_path / "tasks", scorer, more, references)
    assert score(task, lambda doc: FORMED[scorer].format(doc["a"])) == {"strict": 1, "lenient": 1, "parsed": 1}
    assert score(task, lambda doc: f"I think it is this.\nAnswer: {doc['a']}")["lenient"] == 1
    assert score(task, lambda doc: "") == {"strict": 0, "lenient": 0, "parsed": 0}
    assert score(task, lambda doc: "I don't know.") == {"strict": 0, "lenient": 0, "parsed": 0}


@pytest.mark.parametrize(("answer", "share"), [("A", 0.5), ("B", 0.25), ("C", 0), ("D", 0.25), ("E", 0)])
def test_a_constant_scores_the_share_of_its_class(answer: str, share: float, tmp_path: Path) -> None:
    more, references = ROWS["choice"]
    task = build(tmp_path / "tasks", "choice", more, references)
    found = score(task, lambda doc: f"The answer is ({answer}).")
    assert found == {"strict": share, "lenient": share, "parsed": float(answer != "E")}


def test_a_constant_number_scores_its_share(tmp_path: Path) -> None:
    task = build(tmp_path / "tasks", "number", references=["42", "42", "7", "-42", "4.2"])
    assert score(task, lambda doc: "#### 42") == {"strict": 0.4, "lenient": 0.4, "parsed": 1}


def test_any_of_several_references_will_do(tmp_path: Path) -> None:
    base = TASK.replace('doc_to_target: "{{a}}"', "doc_to_target: a")
    task = build(tmp_path / "tasks", "number", references=[["42", "43"], ["7", "8"]], base=base)
    assert score(task, lambda doc: "#### 43")["strict"] == 0.5


def test_the_number_of_a_choice_names_its_letter(tmp_path: Path) -> None:
    base = TASK.replace('doc_to_target: "{{a}}"', "doc_to_target: a")
    task = build(tmp_path / "tasks", "choice", "doc_to_choice: [red, green]\n", [0, 1, 1], base)
    assert score(task, lambda doc: "B")["lenient"] == pytest.approx(2 / 3)
    assert score(task, lambda doc: "green")["lenient"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_that_is_no_choice_is_a_reference_of_its_own(number: int, tmp_path: Path) -> None:
    base = TASK.replace('doc_to_target: "{{a}}"', "doc_to_target: a")
    with pytest.raises(EvaluationError, match=f"reference.*{number}"):
        score(build(tmp_path / "tasks", "choice", "doc_to_choice: [red, green]\n", [0, number], base), lambda doc: "C")


def test_the_first_metric_that_the_task_lists_comes_first(tmp_path: Path) -> None:
    task = build(tmp_path / "tasks", "number", "metric_list: [{metric: lenient}]\n")
    assert [one["metric"] for one in task.config.metric_list] == ["lenient", "strict", "parsed"]
    assert [one["metric"] for one in build(tmp_path / "tasks", "number").config.metric_list] == [
        "strict",
        "lenient",
        "parsed",
    ]


@pytest.mark.parametrize(
    ("scorer", "more", "message"),
    [
        ("sums", "", r"mine.yaml: scorer is 'sums'; expected one of number, math, choice, chart"),
        ("{kind: number, shape: boxed}", "", r"mine.yaml: scorer is \{'kind'"),
        ("[number]", "", r"mine.yaml: scorer: expected text or a mapping, found \['number'\]"),
        ("{kind: number, form: loose}", "", r"mine.yaml: scorer has the form 'loose'; expected one of hash, boxed"),
        ("number", "output_type: multiple_choice\n", r"output_type is multiple_choice; set it to generate_until"),
        ("number", "process_results: !function x.y\n", r"scorer and process_results both judge"),
        ("number", "metric_list: [{metric: acc}]\n", r"metric_list names 'acc', but a scorer gives strict, lenient"),
    ],
)
def test_what_contradicts_a_scorer_is_refused(scorer: str, more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=message):
        build(tmp_path / "tasks", scorer, more)


@pytest.mark.parametrize(
    ("scorer", "reference", "message"),
    [("number", "many", "reference 'many': expected one number"), ("choice", "K", "reference 'K': expected a letter")],
)
def test_a_reference_that_cannot_be_read_is_refused_before_anything_is_asked(
    scorer: str, reference: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=message):
        build(tmp_path / "tasks", scorer, references=["A" if scorer == "choice" else "1", reference])


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from shadowft_core.answers import algebra, judge

    monkeypatch.setattr(algebra, "find_spec", lambda name: None)
    monkeypatch.setattr(algebra, "_VERIFIER", algebra._Verifier())
    with pytest.raises(
        EvaluationError, match=r"math_verify is missing; install the extra: pip install 'shadowft\[math\]'"
    ):
        judge("math", r"\boxed{x+1}", "1+x+0")


def test_an_arm_has_both_scores_and_what_was_not_parsed(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model answers with bare letters: all in the form `whole`, none in the form `hash`."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for form in ("whole", "hash"):
        write_task(tasks, f"say_{form}", [(f"say {a}", a) for a in "abcdefghijklm"])
        path = tasks / f"say_{form}.yaml"
        text = path.read_text().split("metric_list")[0]
        path.write_text(f"{text}scorer: {{kind: chart, form: {form}}}\n")
    named = {"tasks": str(tasks), "domain": ("say_whole", "say_hash"), "guards": ()}
    scores, items = score_instruct(world, tmp_path / "out", **named)
    whole, hashed = scores["tasks"]["say_whole"], scores["tasks"]["say_hash"]
    assert (whole["metric"], whole["mean"], whole["flags"]) == ("strict", 1.0, [])
    assert whole["others"] == {"lenient": 1.0}
    assert (hashed["metric"], hashed["mean"], hashed["flags"]) == ("strict", 0.0, ["format"])
    assert hashed["others"] == {"lenient": 1.0}
    assert whole["counts"]["unparsed"] == 0
    assert {item["parsed"] for item in items} == {True}
    told = capsys.readouterr().err
    assert "say_hash: lenient differs from strict by +100% of the items: the format may be at fault" in told
    assert "say_whole: lenient" not in told


def test_a_gap_between_filters_is_found() -> None:
    def items(strict: int, flexible: int) -> list[Item]:
        name = "flexible-extract/exact_match"
        return [
            Item(str(at), float(at < strict), "", "", others={name: float(at < flexible), "other": 1.0})
            for at in range(20)
        ]

    assert gaps("exact_match", items(4, 10)) == {"flexible-extract/exact_match": pytest.approx(0.3)}
    assert gaps("exact_match", items(10, 4)) == {"flexible-extract/exact_match": pytest.approx(-0.3)}
    assert gaps("exact_match", items(4, 6)) == {}  # at most 10 points
    assert gaps("acc", items(4, 20)) == {}


@pytest.mark.parametrize(
    ("more", "until"),
    [("", []), ("generation_kwargs: {max_gen_toks: 9}\n", []), ('generation_kwargs: {until: ["Q:"]}\n', ["Q:"])],
)
def test_a_judged_answer_ends_where_the_task_says_only(tmp_path: Path, more: str, until: list[str]) -> None:
    """The harness's default, an empty line, would cut a chain of thought after its first paragraph."""
    task = build(tmp_path, "number", more)
    assert task.config.generation_kwargs["until"] == until
    assert task.config.generation_kwargs["do_sample"] is False
