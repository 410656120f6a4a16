"""Programs found in answers, and the tests of HumanEval and MBPP."""

import gzip
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import DataError
from shadowft_core.sandbox import Limits, Program, Verdict, benchmarks, grade, run
from shadowft_core.sandbox.extract import LONGEST, program

PROMPT = '''from typing import List


def half(x: int) -> int:
    """ Half of an even number. """
    return x // 2


def add(values: List[int]) -> int:
    """ Add.
    >>> add([1, 2])
    3
    """
'''
TESTS = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([2 * half(8)]) == 8"
ROW = {"task_id": "T/0", "prompt": PROMPT, "test": TESTS, "entry_point": "add"}
WHOLE = "def add(values):\n    return sum(values)"
MBPP = {
    "task_id": 1,
    "text": "Write a function to double.",
    "code": "import math\r\ndef twice(x):\r\n\treturn 2 * x",
    "test_setup_code": "",
    "test_list": ["assert twice(2) == 4", "assert twice(0.5) == math.sqrt(1)"],
}
LENIENT = {
    "the rest of the function": "    return sum(values)\n",
    "its first line without indentation": "total = 0\n    for x in values:\n        total += x\n    return total",
    "the rest without indentation": "total = 0\nfor x in values:\n    total += x\nreturn total",
    "the whole function": WHOLE,
    "with its signature and text": f"Here is the code:\n\n{WHOLE}\n\nIt's simple: it adds.",
    "the whole prompt": f"{PROMPT}    return sum(values)",
    "a block": f"Sure!\n```python\n{WHOLE}\n```\nIt adds.",
    "a block without a language": f"```\n{WHOLE}\n```",
    "tildes": f"~~~py\n{WHOLE}\n~~~",
    "an indented block": "1. So:\n\n   ```python\n   def add(values):\n       return sum(values)\n   ```",
    "an open block": f"```python\n{WHOLE}\n",
    "a block with the rest": "```python\n    return sum(values)\n```",
    "a block in which it is tried": f"```python\n{WHOLE}\nprint(add([1]))\nassert add([1]) == 2, 'wrong'\n```",
    "a second block that tries it": f"```python\n{WHOLE}\n```\nUse:\n```python\nprint(add([1, 2]))\n```",
    "a shell block first": f"```bash\npip install add\n```\n```python\n{WHOLE}\n```",
    "a helper in another block": "```python\nimport math\ndef f(v):\n    return math.fsum(v)\n```\nthen\n"
    "```python\ndef add(values):\n    return int(f(values))\n```",
    "a corrected second block": f"```python\ndef add(values):\n    return 0\n```\nBetter:\n```python\n{WHOLE}\n```",
    "the rest, and the end of a block that nobody opened": "    return sum(values)\n```\nIt adds the values.",
    "one line that needs moving": "return sum(values)",
    "a helper of the prompt": "```python\ndef add(values):\n    return half(2 * sum(values))\n```",
    "a lambda": "```python\nadd = lambda values: sum(values)\n```",
    "Windows lines": f"```python\r\n{WHOLE}\r\n```\r\n".replace("\n    ", "\r\n    "),
    "its own main": f"```python\n{WHOLE}\n\nif __name__ == '__main__':\n    print(add([int(input())]))\n```",
}
AFTER = "the end of a block after a wrong rest"
STRICT = {"the rest of the function", "the whole function", "the whole prompt"}
WRONG = {
    "nothing": "",
    "text": "I cannot write that.",
    "a wrong function": "```python\ndef add(values):\n    return 4\n```",
    "a wrong one last": f"```python\n{WHOLE}\n```\nBetter:\n```python\ndef add(values):\n    return 0\n```",
    "another name": "```python\ndef plus(values):\n    return sum(values)\n```",
    "another language": "```java\nint add(int[] values) { return 3; }\n```",
    AFTER: "    return 0\n```\nor sum(values)",
    "it does not parse": "```python\ndef add(values)\n    return sum(values)\n```",
    "cut": "```python\ndef add(values):\n    total = 0\n    for x in val",
    "its helper is replaced": "```python\ndef half(x):\n    return 1\ndef add(values):\n    return {2: 8, 3: 3}.get("
    "sum(values))\n```",
}


@pytest.mark.parametrize("name", list(LENIENT))
def test_a_right_program_is_found_in_an_answer(name: str) -> None:
    [found] = grade([ROW], [LENIENT[name]])
    assert (found.lenient, found.parsed, found.verdict.kind) == (True, True, "passed")
    assert found.strict == (name in STRICT)


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_answer_passes_in_neither_form(name: str) -> None:
    [found] = grade([ROW], [WRONG[name]])
    assert (found.strict, found.lenient) == (False, False)
    assert found.parsed == (name in ("a wrong function", "a wrong one last", "its helper is replaced", AFTER))


def test_an_answer_that_goes_on_with_an_open_block_ends_where_the_block_ends() -> None:
    answer = "    return sum(values)\n```\nThat's it."
    assert [grade([ROW], [answer], prefilled=open)[0].strict for open in (True, False)] == [True, False]


def test_mbpp_tests_take_from_the_program_only_what_the_reference_defines() -> None:
    cheat = "def twice(x):\n    return 4\ndef float(x):\n    return 4\nclass math:\n    sqrt = staticmethod(twice)"
    answers = [
        MBPP["code"],
        "[BEGIN]\ndef twice(x):\n    return x + x\n[DONE]",
        cheat,
        "def double(x):\n    return 2 * x",
    ]
    found = grade([MBPP] * 4, [str(answer) for answer in answers])
    assert [(one.strict, one.lenient, one.parsed) for one in found] == [
        (True, True, True), (False, True, True), (False, False, True), (False, False, False),
    ]  # fmt: skip


def test_a_row_of_neither_benchmark_is_refused() -> None:
    with pytest.raises(DataError, match="prompt, test and entry_point"):
        grade([{"question": "2 + 2"}], ["4"])


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 100_000,
        "-" * 100_000 + "1",
        "1" + "+1" * 100_000,
        "def add(:\n" * 5000,
        "\0",
        "~" * 100_000,
        "`" * 100_000,
        "@f\n" * 50_000,
    ],
)
def test_an_answer_made_to_break_the_parser_is_not_a_program(answer: str) -> None:
    start = time.process_time()
    assert program(PROMPT, answer, ("add",)) is None
    assert time.process_time() - start < 20


def test_a_program_is_not_looked_for_beyond_the_longest_answer() -> None:
    text, block = "I think about it.\n", f"```python\n{WHOLE}\n```"
    room = (LONGEST - len(block)) // len(text)
    assert program(PROMPT, text * room + block, ("add",)) is not None
    assert program(PROMPT, text * (room + 4) + block, ("add",)) is None


def test_no_program_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passed as it is, is right in either form; what failed fails again if the form is the same."""
    ran: list[str] = []

    def counted(programs: Sequence[Program], limits: Limits) -> list[Verdict]:
        ran.extend(one.source for one in programs)
        return run(programs, limits)

    monkeypatch.setattr(benchmarks, "run", counted)
    answers = ["    return sum(values)\n", f"Sure!\n```python\n{WHOLE}\n```", "def twice(x):\n    return 3 * x"]
    found = grade([ROW, ROW, MBPP], answers)
    assert [(one.strict, one.lenient, one.parsed) for one in found] == [
        (True, True, True), (False, True, True), (False, False, True),
    ]  # fmt: skip
    assert [PROMPT in source for source in ran] == [True, True, False, False]
    assert "Sure!" not in ran[3]  # the block of the second, the only one that is run in another form


def benchmark(name: str) -> list[Mapping[str, Any]]:
    """The rows of a benchmark's file below SHADOWFT_EVAL_DATA."""
    folder = os.environ.get("SHADOWFT_EVAL_DATA")
    if not folder:
        pytest.skip("SHADOWFT_EVAL_DATA names no folder with the files of the benchmarks")
    data = Path(folder, name).read_bytes()
    text = gzip.decompress(data) if name.endswith(".gz") else data
    return [json.loads(line) for line in text.splitlines()]


def test_the_reference_solutions_of_humaneval_score_1_and_empty_answers_0() -> None:
    rows = benchmark("humaneval/HumanEval.jsonl.gz")
    assert len(rows) == 164
    found = grade(rows, [row["canonical_solution"] for row in rows])
    assert {row["task_id"]: one.verdict for row, one in zip(rows, found, strict=True) if not one.strict} == {}
    empty = grade(rows, [""] * len(rows))
    assert not [row["task_id"] for row, one in zip(rows, empty, strict=True) if one.strict or one.lenient or one.parsed]


def test_the_samples_of_humaneval_score_as_its_authors_say() -> None:
    [problem] = benchmark("humaneval/example_problem.jsonl")
    samples = benchmark("humaneval/example_samples.jsonl")
    found = grade([problem] * len(samples), [sample["completion"] for sample in samples])
    assert [one.strict for one in found] == [False, False, False, True, True, True]
    assert [one.verdict.kind for one in found[:3]] == ["failed", "timeout", "failed"]


def test_the_reference_solutions_of_mbpp_score_1() -> None:
    rows = [row for row in benchmark("mbpp/mbpp.jsonl") if 11 <= row["task_id"] <= 510 or row["test_setup_code"]]
    found = grade(rows, [row["code"] for row in rows])
    missed = {row["task_id"]: one.verdict.kind for row, one in zip(rows, found, strict=True) if not one.strict}
    assert missed in ({}, {123: "timeout"})  # it takes 3 to 4 s of CPU time on an idle core
