"""The reference solutions of GSM8K and MATH: each is right against itself, and against others only when they agree."""

import json
import os
import random
import threading
import time
from pathlib import Path

import pytest

from shadowft_core.answers import algebra, judge
from shadowft_core.answers.mathematics import reference_of
from shadowft_core.answers.number import reference_number

FOLDER = os.environ.get("SHADOWFT_EVAL_DATA")
needs_data = pytest.mark.skipif(FOLDER is None, reason="needs SHADOWFT_EVAL_DATA, a folder with gsm8k/ and math/")


def rows(name: str) -> list[dict[str, str]]:
    lines = (Path(FOLDER or "") / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@needs_data
def test_every_solution_of_gsm8k_is_right() -> None:
    found = [judge("number", row["answer"], row["answer"]) for row in rows("gsm8k/test.jsonl")]
    assert len(found) == 1319
    assert all(one.strict and one.lenient for one in found)


@needs_data
def test_most_solutions_of_gsm8k_are_found_without_their_mark() -> None:
    """Solutions by people end in a sentence; a wrong number is taken from a few, never the right one's place."""
    bodies = [(row["answer"].partition("####")[0], row["answer"]) for row in rows("gsm8k/test.jsonl")]
    assert sum(judge("number", body, answer).lenient for body, answer in bodies) / len(bodies) >= 0.95


@needs_data
def test_an_explanation_after_the_answer_does_not_take_it_away() -> None:
    halves = [row["answer"].split("####") for row in rows("gsm8k/test.jsonl")]
    first = [(f"The answer is {number.strip()}.\n\n{body}", number) for body, number in halves]
    assert sum(judge("number", output, number).lenient for output, number in first) / len(first) >= 0.99


@needs_data
def test_every_solution_of_math_is_right() -> None:
    found = [judge("math", row["solution"], row["solution"]) for row in rows("math/test_1000.jsonl")]
    assert len(found) == 1000
    assert all(one.lenient for one in found)


@needs_data
def test_solutions_of_other_problems_are_right_only_when_they_agree() -> None:
    solutions = [row["answer"] for row in rows("gsm8k/test.jsonl")]
    others = random.Random(0).sample(solutions, len(solutions))
    for one, other in zip(solutions, others, strict=True):
        agree = reference_number(one).value == reference_number(other).value
        assert judge("number", one, other).lenient == agree
    references = [reference_of(row["solution"]) for row in rows("math/test_1000.jsonl")]
    shuffled = random.Random(0).sample(references, len(references))
    plain = str.maketrans("", "", " $")
    for one, other in zip(references, shuffled, strict=True):
        alike = one.translate(plain).replace("\\%", "").replace("^\\circ", "") == other.translate(plain).replace(
            "\\%", ""
        ).replace("^\\circ", "")
        assert judge("math", rf"\boxed{{{one}}}", other).lenient == alike, (one, other)


def test_an_expression_that_takes_for_ever_is_wrong_and_the_next_is_judged() -> None:
    began = time.monotonic()
    assert not judge("math", r"\boxed{9^{9^{9^{9}}}}", "2").lenient
    assert time.monotonic() - began < algebra.SECONDS + 60  # the first also loads sympy
    assert judge("math", r"\boxed{(x+1)^2}", "x^2+2x+1").strict


def test_threads_are_judged_as_the_main_thread_is() -> None:
    """math_verify alone limits time by a signal, which only the main thread can set."""
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(judge("math", r"\boxed{(x+1)^2}", "x^2+2x+1").lenient))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, True, True]
