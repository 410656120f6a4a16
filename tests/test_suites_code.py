"""Tasks whose answers are programs, scored with a real tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.suites import TaskFiles
from shadowft_core.suites.code import run_answers
from tests.fixtures.evaluation import World, score_instruct

TASK = """
task: programs
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
generation_kwargs: {until: ["<end>"], max_gen_toks: 3}
scorer: code
"""
CHECK = "def check(candidate):\n    assert candidate() == 1\n"


def write(folder: Path, rows: list[dict[str, Any]], extra: str = "") -> Path:
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "programs.yaml").write_text(TASK + extra)
    return folder


def row(letter: str, prompt: str) -> dict[str, Any]:
    """The Instruct answers `say a` with `a`, which the prompt makes into a program."""
    return {"q": f"say {letter}", "prompt": prompt, "test": CHECK, "entry_point": "f"}


def test_answers_are_run_as_programs(world: World, tmp_path: Path) -> None:
    rows = [
        row("a", "a = 1\ndef f():\n    return "),  # strict: the prompt goes on with the answer
        row("b", "b = 2\ndef f():\n    return "),  # wrong
    ]
    folder = write(tmp_path / "tasks", rows, "unsafe_code: true\n")  # of the harness, which the sandbox makes needless
    scores, items = score_instruct(world, tmp_path / "out", tasks=str(folder), domain=("programs",), guards=())
    task = scores["tasks"]["programs"]
    assert task["metric"] == "strict"
    found = {item["prompt"].split()[2]: (item["score"], item["others"]["lenient"], item["parsed"]) for item in items}
    assert found["a"] == (1, 1, True)
    assert found["b"] == (0, 0, True)
    assert task["mean"] == 0.5


@pytest.mark.parametrize(("prefix", "right"), [("```python\n", 1.0), ("Answer:", 0.0), (None, 0.0)])
def test_an_answer_in_a_block_that_the_prompt_opened_ends_with_the_block(prefix: str | None, right: float) -> None:
    asked = run_answers("programs", {"gen_prefix": prefix})
    [judge] = [one["filter"][0]["filter_fn"] for one in asked["filter_list"]]
    [found] = judge([["    return 1\n```\nThat (is) all"]], [row("a", "def f():\n")])
    assert found["strict"] == right


@pytest.mark.parametrize(
    ("rows", "extra", "message"),
    [
        ([{"q": "say a", "entry_point": "f"}], "", "scorer: code needs prompt, test and entry_point"),
        ([row("a", "def f(:\n")], "", "its tests cannot be read"),
        ([row("a", "def f():\n") | {"test": "def check(f)\n    pass"}], "", r"read: .*line 1"),
        ([row("a", "def f():\n") | {"test": "def tests(f):\n    pass"}], "", "do not define the function check"),
        (
            [row("a", "def f():\n")],
            "filter_list: [{name: x, filter: [{function: take_first}]}]\n",
            "remove filter_list",
        ),
        ([row("a", "def f():\n")], "repeats: 4\n", "repeats: 4; scorer code judges one greedy answer"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused_before_a_model_answers(
    tmp_path: Path, rows: list[dict[str, Any]], extra: str, message: str
) -> None:
    files = TaskFiles(write(tmp_path / "tasks", rows, extra), allow_code=True)
    with pytest.raises(EvaluationError, match=message):
        files.build("programs", tmp_path, tmp_path / "cache")
