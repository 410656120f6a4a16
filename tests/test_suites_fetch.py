"""Suites brought from folders: every shape, records, what is missing, and scores equal to the bare harness."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import EvaluationError, InputError
from shadowft_core.evaluate import evaluate
from shadowft_core.files import file_digest
from shadowft_core.params import Evaluate
from shadowft_core.suites import TaskFiles, item_files
from shadowft_core.suites.catalogue import suite_of, suites
from shadowft_core.suites.fetch import Fetched, fetch_suite
from shadowft_core.suites.sources import Source
from tests.fixtures import benchmarks
from tests.fixtures.bare import bare_scores
from tests.fixtures.evaluation import NO_LIMITS, read_arm


def no_network(*_: Any) -> tuple[str, str | None]:
    raise AssertionError("a hub was asked")


def fetched(place: Path, name: str, write: benchmarks.Write) -> list[Fetched]:
    """Bring a suite of own items into place/tasks/suites."""
    source = place / "source" / name
    source.mkdir(parents=True)
    write(source)
    return fetch_suite(suite_of(name), place / "tasks" / "suites", source, no_network)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmarks.write_reader(tmp_path_factory.mktemp("reader"))


BARE = {  # suite: how its items are published, and of each of its tasks the file, metric and filter of the harness
    "gsm8k": (
        benchmarks.gsm8k,
        {"gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", "exact_match", "strict-match", {"num_fewshot": 8})},
    ),
    "mmlu": (
        benchmarks.mmlu,
        {
            f"mmlu_{name}": (f"mmlu/default/mmlu_{name}.yaml", "acc", "none", {"num_fewshot": 5})
            for name in ("anatomy", "astronomy")
        },
    ),
    "arc": (benchmarks.arc, {name: (f"arc/{name}.yaml", "acc", "none", {}) for name in ("arc_easy", "arc_challenge")}),
    "truthfulqa": (
        benchmarks.truthfulqa,
        {name: (f"truthfulqa/{name}.yaml", "acc", "none", {}) for name in ("truthfulqa_mc1", "truthfulqa_mc2")},
    ),
}


@pytest.mark.parametrize("name", list(BARE))
def test_scores_of_a_suite_equal_those_of_the_bare_harness(name: str, tmp_path: Path, reader: Path) -> None:
    write, tasks = BARE[name]
    fetched(tmp_path, name, write)
    shutil.rmtree(tmp_path / "source")
    params = Evaluate(tasks=str(tmp_path / "tasks"), domain=(name,), limits=NO_LIMITS)
    evaluate(reader, tmp_path, None, None, "instruct", params, tmp_path / "out")
    scores, items = read_arm(tmp_path / "out" / "instruct")
    assert {task: (about["group"], about["n"]) for task, about in scores["tasks"].items()} == dict.fromkeys(
        tasks, (name, 3)
    )
    for task, (file, metric, filtered, changes) in tasks.items():
        folder = next((tmp_path / "tasks").rglob(f"{task}.yaml")).parent
        named = yaml.safe_load((folder / f"{task}.yaml").read_text())["dataset_kwargs"]["data_files"]
        data = {split: str(folder / path) for split, path in named.items()}
        ours = sorted((item["prompt"], item["score"]) for item in items if item["task"] == task)
        assert ours == bare_scores(reader, file, data, metric, 3, filtered, **changes)


def test_a_suite_is_recorded_and_kept_while_it_is_whole(tmp_path: Path) -> None:
    assert [one.state for one in fetched(tmp_path, "arc", benchmarks.arc)] == ["written", "written"]
    folder = tmp_path / "tasks/suites/arc_easy"
    record = json.loads((folder / "suite.json").read_bytes())
    assert (record["suite"], record["licence"], record["sources"]) == ("arc_easy", "CC BY-SA 4.0", ["allenai/ai2_arc"])
    assert record["read"] == {"arc_easy.jsonl": file_digest(tmp_path / "source/arc/arc_easy.jsonl")}
    [data] = [name for name, about in record["files"].items() if about["items"]]
    assert record["files"][data]["digest"] == file_digest(folder / data)
    assert record["files"].keys() == {data, "arc_easy.yaml"}
    assert "harness: arc/arc_easy.yaml" in (folder / "arc_easy.yaml").read_text()  # nothing of the harness is copied
    assert (folder / ".gitignore").read_text() == "data/\n"
    again = fetch_suite(suite_of("arc"), tmp_path / "tasks/suites", tmp_path / "source/arc", no_network)
    assert [one.state for one in again] == ["kept", "kept"]
    (folder / data).write_bytes(b"")
    again = fetch_suite(suite_of("arc"), tmp_path / "tasks/suites", tmp_path / "source/arc", no_network)
    assert [one.state for one in again] == ["written", "kept"]
    assert TaskFiles(tmp_path / "tasks").resolve(["arc"]).keys() == {"arc_easy", "arc_challenge"}


def test_examples_come_from_the_training_items_and_never_from_test_items(tmp_path: Path) -> None:
    [whole] = fetched(tmp_path / "whole", "gsm8k", lambda folder: benchmarks.gsm8k(folder, train=True))
    task = TaskFiles(tmp_path / "whole/tasks").build("gsm8k", tmp_path, tmp_path / "cache")
    assert (task.config.num_fewshot, len(list(task.fewshot_docs())), whole.notes) == (5, 7, ["3 of 1,319 items"])
    [bare] = fetched(tmp_path / "bare", "gsm8k", benchmarks.gsm8k)
    assert "the harness's task gsm8k_cot (8, fixed by the harness) is used instead" in bare.notes[0]
    task = TaskFiles(tmp_path / "bare/tasks").build("gsm8k_cot", tmp_path, tmp_path / "cache")
    assert (task.config.num_fewshot, len(task.fewshot_docs())) == (8, 8)
    assert not {doc["question"] for doc in task.fewshot_docs()} & {doc["question"] for doc in task.test_docs()}

    def without_dev(folder: Path) -> None:
        benchmarks.mmlu(folder)
        shutil.rmtree(folder / "dev")

    [mmlu] = fetched(tmp_path / "mmlu", "mmlu", without_dev)
    assert mmlu.notes[0] == "the source has no few-shot examples: 0 shots"
    assert mmlu.notes[1].startswith("55 of 57 tasks have no data in the source: mmlu_abstract_algebra, ")
    assert TaskFiles(tmp_path / "mmlu/tasks").build("mmlu_anatomy", tmp_path, tmp_path / "c").config.num_fewshot == 0


def test_a_hub_layout_is_read_by_its_card(tmp_path: Path) -> None:
    [done] = fetched(tmp_path, "gsm8k", benchmarks.hub_layout)
    assert (done.state, done.items) == ("written", 3)
    task = TaskFiles(tmp_path / "tasks").build("gsm8k", tmp_path, tmp_path / "cache")
    assert [doc["question"] for doc in task.test_docs()] == [f"test {n}: what is {n} + 1?" for n in range(3)]
    assert len(list(task.fewshot_docs())) == 7


def jsonl(name: str, *rows: dict[str, Any]) -> benchmarks.Write:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(benchmarks.lines(*rows))

    return write


SHAPES = {  # name: published row, text, choices and target that the harness makes of it
    "winogrande": (
        jsonl(
            "winogrande.jsonl",
            {"context_options": ["Al met Bo, so Al", "Al met Bo, so Bo"], "continuation": "left.", "gold": 1},
        ),
        ("Al met Bo, so Al", "Al met Bo, so Bo"),
        1,
        "left.",
    ),
    "piqa": (
        jsonl("piqa.jsonl", {"query": "Question: How to cut?\n", "choices": ["knife", "spoon"], "gold": 0}),
        ("knife", "spoon"),
        "Question: How to cut?\nAnswer:",
        0,
    ),
    "openbookqa": (
        jsonl("openbook_qa.jsonl", {"query": "Ice is", "choices": ["cold", "hot", "dry", "old"], "gold": 3}),
        ("cold", "hot", "dry", "old"),
        "Ice is",
        3,
    ),
    "hellaswag": (
        jsonl("hellaswag.jsonl", {"query": "Cutting: Ann takes", "choices": ["a", "b", "c", "d"], "gold": 2}),
        ("a", "b", "c", "d"),
        "Cutting: Ann takes",
        2,
    ),
    "boolq": (
        jsonl("boolq.jsonl", {"query": "Passage: P.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1}),
        ("no", "yes"),
        "P.\nQuestion: is it?\nAnswer:",
        1,
    ),
    "boolq, yes first": (
        jsonl("boolq.jsonl", {"query": "Passage: P.\nQuestion: is it?", "choices": ["yes", "no"], "gold": 1}),
        ("no", "yes"),
        "P.\nQuestion: is it?\nAnswer:",
        0,
    ),
    "copa": (
        jsonl("copa.jsonl", {"query": "He fell, because", "choices": ["It was wet.", "He sang."], "gold": 0}),
        (" it was wet.", " he sang."),
        "He fell because",
        " it was wet.",
    ),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_public_copy_becomes_what_the_harness_reads(name: str, tmp_path: Path) -> None:
    write, choices, text, target = SHAPES[name]
    suite = name.partition(",")[0]
    [done] = fetched(tmp_path, suite, write)
    assert (done.state, done.items) == ("written", 1)
    task = TaskFiles(tmp_path / "tasks").build(suite, tmp_path, tmp_path / "cache")
    [doc] = list(task.eval_docs)
    assert (tuple(task.doc_to_choice(doc)), task.doc_to_text(doc), task.doc_to_target(doc)) == (choices, text, target)


def test_the_best_answer_of_truthfulqa_comes_first_and_a_kind_of_math_gets_its_own_rows(tmp_path: Path) -> None:
    benchmarks.truthfulqa(tmp_path)
    kinds = [{"type": kind, "problem": kind, "solution": "", "level": "1"} for kind in ("Algebra", "Geometry")]
    (tmp_path / "test.jsonl").write_text(benchmarks.lines(*kinds))
    source = Source(tmp_path)
    found = [source.rows("truthfulqa/truthful_qa", "multiple_choice", "validation")]
    found += [source.rows("EleutherAI/hendrycks_math", name, "test") for name in ("algebra", "geometry")]
    first, *others = [rows for rows, _ in filter(None, found)]
    assert first[0]["mc1_targets"] == {"choices": ["No, 0", "Yes", "Always, some say", "Often"], "labels": [1, 0, 0, 0]}
    assert [[row["problem"] for row in rows] for rows in others] == [["Algebra"], ["Geometry"]]


def test_files_that_are_not_understood_are_named(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        benchmarks.humaneval(folder)
        (folder / "samples.jsonl").write_text('{"task_id": "Own/0", "completion": "pass"}\n')

    [done] = fetched(tmp_path, "humaneval", write)
    assert done.notes == ["3 of 164 items", "not used: samples.jsonl"]
    with pytest.raises(InputError, match=r"no data of gsm8k \(not understood: notes\.jsonl\)"):
        fetched(tmp_path / "other", "gsm8k", jsonl("notes.jsonl", {"text": "hello"}))
    with pytest.raises(InputError, match="no data file there"):
        fetched(tmp_path / "empty", "gsm8k", lambda folder: None)
    with pytest.raises(InputError, match=r"a/test\.jsonl, b/test\.jsonl could all be openai/gsm8k main test; keep one"):
        fetched(tmp_path / "two", "gsm8k", two_copies)
    with pytest.raises(InputError, match=r"test\.jsonl: a row is not like the first \(KeyError\('answer'\)\)"):
        fetched(tmp_path / "odd", "gsm8k", jsonl("test.jsonl", {"question": "?", "answer": "1"}, {"question": "?"}))
    with pytest.raises(InputError, match=r"anatomy_test\.csv: row 1 is not question, four choices and a letter"):
        fetched(tmp_path / "csv", "mmlu", lambda folder: void((folder / "anatomy_test.csv").write_text("a,b\n")))


def two_copies(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        benchmarks.gsm8k(folder / name)


def void(_: Any) -> None:
    return None


def test_humaneval_needs_consent_and_is_judged_by_the_scorer_code(tmp_path: Path) -> None:
    fetched(tmp_path, "humaneval", benchmarks.humaneval)
    with pytest.raises(EvaluationError, match=r"task humaneval .*: the answers are programs.*--allow-code-execution"):
        TaskFiles(tmp_path / "tasks").build("humaneval", tmp_path, tmp_path / "cache")
    task = TaskFiles(tmp_path / "tasks", allow_code=True).build("humaneval", tmp_path, tmp_path / "cache")
    assert [one["metric"] for one in task.config.metric_list] == ["strict", "lenient", "parsed"]
    rows = list(task.test_docs())
    [judge] = task.config.filter_list[0]["filter"]
    right = judge["filter_fn"]([[row["canonical_solution"]] for row in rows], rows)
    wrong = judge["filter_fn"]([["    return a\n"] for _ in rows], rows)
    assert [one["strict"] for one in right] == [1, 1, 1]
    assert [one["strict"] for one in wrong] == [1, 0, 0]  # the first adds 0


def test_a_suite_of_the_paper_says_what_it_left_out(tmp_path: Path) -> None:
    done = {one.name: one.state for one in fetched(tmp_path, "math7", benchmarks.gsm8k)}
    assert [name for name, state in done.items() if state == "written"] == ["gsm8k", "gsm8k_0shot"]
    group = yaml.safe_load((tmp_path / "tasks/suites/math7/math7.yaml").read_text())
    assert group["task"] == ["gsm8k", "gsm8k_0shot"]
    assert [re.sub(" .*", "", name) for name in group["metadata"]["left_out"]] == [
        "MATH", "MATH-500", "Minerva-MATH", "AIME24", "SVAMP",
    ]  # fmt: skip
    leaves = TaskFiles(tmp_path / "tasks").resolve(["math7"])
    assert {task: [one.name for one in leaf.groups] for task, leaf in leaves.items()} == {
        "gsm8k_0shot": ["math7"],
        "gsm8k_cot": ["math7", "gsm8k"],
    }


def test_every_line_of_the_catalogue_names_tasks_of_the_harness_and_says_what_differs() -> None:
    for suite in suites().values():
        for line in suite.lines:
            assert bool(line.paper) == bool(line.difference)
            if line.benchmark:
                tasks = line.benchmark.tasks()
                assert tasks, line.benchmark.name
                assert all(task.config.get("test_split") or task.config.get("validation_split") for task in tasks)
                assert line.benchmark.parser
                assert line.benchmark.items
    paper = {name: suites()[name] for name in ("math7", "code3", "knowledge9")}
    assert {name: len(suite.lines) for name, suite in paper.items()} == {"math7": 7, "code3": 3, "knowledge9": 9}
    nothing = [line.paper.split()[0] for suite in paper.values() for line in suite.lines if not line.benchmark]
    assert nothing == ["LiveCodeBench", "GPQA-diamond", "TheoremQA"]


def test_items_of_suites_are_compared_with_the_data_and_their_examples_are_not(tmp_path: Path) -> None:
    fetched(tmp_path, "gsm8k", lambda folder: benchmarks.gsm8k(folder, train=True))
    (tmp_path / "elsewhere.jsonl").write_text('{"q": "who?"}\n')
    for name, path in (("far", "../elsewhere.jsonl"), ("text", "../notes.txt"), ("hub", "hf://datasets/a/b.jsonl")):
        files = {"test": path, "validation": "../examples.jsonl"}  # the second is not scored
        config = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        config |= {"test_split": "test", "validation_split": "validation"}
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "notes.txt").write_text("hello\n")
    found = item_files(tmp_path / "tasks", ["gsm8k", "far", "text", "misspelt"], (".jsonl", ".json", ".parquet"))
    assert found.not_compared == ["hub", "misspelt", "text"]
    elsewhere = (tmp_path / "elsewhere.jsonl").as_posix()
    assert list(found.files) == ["suites/gsm8k/data/gsm8k-main-test.parquet", elsewhere]
