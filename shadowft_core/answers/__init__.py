"""Answers: whether what a model wrote is right, in the form that a task asks for and wherever it stands.

`judge` compares an output with a reference. The strict judgement wants the final answer in one form, such as
`#### 42`; the lenient one takes the answer that the output states last. Both refuse an output that states none, two,
or another one later, so neither calls a wrong answer right; the lenient one may miss a right one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shadowft_core.answers import algebra, chart, choice, mathematics, number
from shadowft_core.answers.statements import FORMS, Found
from shadowft_core.errors import EvaluationError

__all__ = ["FORMS", "KINDS", "Judgement", "judge", "require_reference"]

_FIND: dict[str, tuple[str, Callable[[str, str, Sequence[str]], Found]]] = {
    "number": ("hash", number.find),
    "math": ("boxed", mathematics.find),
    "choice": ("answer", choice.find),
    "chart": ("whole", chart.find),
}  # by kind: the form that is asked for unless the task says otherwise, and the parser
KINDS = tuple(_FIND)


@dataclass(frozen=True)
class Judgement:
    """`strict`: right, and in the form asked for. `lenient`: right. `parsed`: an answer was found, `extracted`."""

    strict: bool
    lenient: bool
    parsed: bool
    extracted: str


def judge(kind: str, output: str, reference: str, *, form: str | None = None, choices: Sequence[str] = ()) -> Judgement:
    """Judge an output against a reference.

    `kind` is one of KINDS, `form` one of FORMS (None: the kind's own). `choices` are the texts of the choices; the
    reference of a choice is its letter or its text.
    Raises EvaluationError for another kind or form, a reference that the kind cannot read, and a missing package.
    """
    if kind not in _FIND:
        raise EvaluationError(f"scorer {kind!r:.60}: unknown; use one of {', '.join(KINDS)}")
    asked, find = _FIND[kind]
    form = asked if form is None else form
    if form not in FORMS:
        raise EvaluationError(f"form {form!r:.60} of scorer {kind}: unknown; use one of {', '.join(FORMS)}")
    found = find(output, reference, choices)
    formed = form in found.forms
    return Judgement(found.right and formed, found.right, found.text is not None, found.text or "")


def require_reference(kind: str, reference: str, choices: Sequence[str] = ()) -> None:
    """Raise EvaluationError for a reference that the kind cannot read, and for a package that it needs."""
    if kind == "number":
        number.reference_number(reference)
    elif kind == "math":
        algebra.require()
        mathematics.reference_of(reference)
    elif kind == "choice":
        choice.letter_of(reference, choices)
    elif not reference.strip():
        raise EvaluationError(f"reference {reference!r:.100}: expected an answer, found nothing; correct the data")
