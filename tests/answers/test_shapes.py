"""The parsers judged on shapes.jsonl: answers of models in many shapes, right and wrong ones."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.answers import FORMS, KINDS, Judgement, judge
from shadowft_core.errors import EvaluationError

SHAPES = [
    json.loads(line) for line in (Path(__file__).parent / "shapes.jsonl").read_text(encoding="utf-8").splitlines()
]


def judged(shape: dict[str, Any]) -> Judgement:
    choices = shape.get("choices", ())
    return judge(shape["kind"], shape["output"], shape["reference"], form=shape.get("form"), choices=choices)


@pytest.mark.parametrize("kind", KINDS)
def test_no_wrong_answer_is_called_right_and_the_right_ones_are_found(kind: str) -> None:
    results = [(shape, judged(shape)) for shape in SHAPES if shape["kind"] == kind]
    assert [shape["output"] for shape, found in results if not shape["right"] and found.lenient] == []
    right = [found.lenient for shape, found in results if shape["right"]]
    assert len(right) >= 40
    assert len(results) - len(right) >= 40
    assert sum(right) / len(right) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_the_strict_judgement_asks_for_the_form(kind: str) -> None:
    shapes = [shape for shape in SHAPES if shape["kind"] == kind and "strict" in shape]
    assert [shape["output"] for shape in shapes if judged(shape).strict != shape["strict"]] == []


def test_strict_is_never_more_lenient() -> None:
    found = [judged(shape) for shape in SHAPES]
    assert not [one for one in found if one.strict and not one.lenient]
    assert not [one for one in found if one.lenient and not one.parsed]
    assert not [one for one in found if one.parsed != bool(one.extracted)]
    assert Counter(one.strict for one in found)[True] > 100


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_met_by_its_own_example(form: str) -> None:
    examples = {"hash": "#### 42", "boxed": r"\boxed{42}", "answer": "The answer is 42.", "whole": "42"}
    strict = {name: judge("number", text, "42", form=form).strict for name, text in examples.items()}
    assert strict == {name: name == form for name in examples}


@pytest.mark.parametrize(("read", "right"), [("105", True), ("95", True), ("105.04", False), ("94.96", False)])
def test_a_value_read_from_a_chart_may_be_five_percent_off(read: str, right: bool) -> None:
    assert judge("chart", read, "100").lenient == right


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "output", ["", " ", "\n\n", "<think>", "<think></think>", "I don't know.", "```", "\\boxed{", "\0"]
)
def test_nothing_is_found_in_an_empty_answer(kind: str, output: str) -> None:
    assert judge(kind, output, "3" if kind != "choice" else "C") == Judgement(False, False, False, "")


@pytest.mark.parametrize(
    ("kind", "reference", "form", "message"),
    [
        ("sums", "3", None, "scorer 'sums': unknown; use one of number, math, choice, chart"),
        ("number", "3", "loose", "form 'loose' of scorer number: unknown; use one of hash, boxed, answer, whole"),
        ("number", "three or 4 or 5", None, "reference 'three or 4 or 5': expected one number, found 2"),
        ("number", "", None, "reference '': expected one number, found 0"),
        ("math", " ", None, "reference ' ': expected an answer, found nothing"),
        ("choice", "K", None, "reference 'K': expected a letter of ABCDEFGHIJ"),
    ],
)
def test_what_cannot_be_judged_is_refused(kind: str, reference: str, form: str | None, message: str) -> None:
    with pytest.raises(EvaluationError, match="^" + message.replace("'", ".")):
        judge(kind, "The answer is 3.", reference, form=form)


def test_a_reference_beyond_the_choices_is_refused() -> None:
    with pytest.raises(EvaluationError, match="expected a letter of AB or the text of one choice"):
        judge("choice", "C", "C", choices=["yes", "no"])
