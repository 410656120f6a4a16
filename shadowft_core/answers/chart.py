"""The kind `chart`: the relaxed accuracy of ChartQA (Masry et al. 2022, section 5.1).

A number may differ from the reference by 5 % of it; any other answer must equal it but for upper and lower case. As in
the published metric, years are numbers: 2021 passes for 2022. A reference of 0 must be met exactly.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from shadowft_core.answers import number
from shadowft_core.answers.numerals import Numeral, from_latex, numerals
from shadowft_core.answers.statements import (
    NOTHING,
    REFUSED,
    RETRACTED,
    Found,
    answer_part,
    final_statement,
    plain,
    sentences,
    without_emphasis,
)

TOLERANCE = Fraction(5, 100)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|had|shows|showed|represents|recorded|reached)\b", re.I)
_COPULA = re.compile(r"(?:\b(?:it|that)'s|\b(?:is|are|was|were)\b)(?: called| labell?ed| that of| in)?", re.I)
_NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|except|or|either)\b|n't\b", re.I)


def find(output: str, reference: str, choices: Sequence[str] = ()) -> Found:
    """The answer about a chart that an output states last, held against the reference."""
    del choices
    wanted = _number(reference)
    text = answer_part(output)
    if wanted is not None:
        found, forms = number.extract(output)
        return NOTHING if found is None else Found(found.text, forms, _close(found, wanted))
    stated, forms = _stated(text)
    if not stated:
        return NOTHING
    return Found(stated[0], forms, _folded(reference) in map(_folded, stated))


def _number(reference: str) -> Numeral | None:
    """The number that a reference is, or None if it is a text."""
    text = from_latex(plain(reference)).strip()
    found = numerals(text)
    return found[0] if len(found) == 1 and found[0].value is not None and number.is_all(text, found[0]) else None


def _close(found: Numeral, wanted: Numeral) -> bool:
    if found.denied or found.value is None or wanted.value is None:
        return False
    readings = {found.value}
    if found.percent != wanted.percent:
        readings |= {found.value / 100} if found.percent and abs(wanted.value) <= 1 else set()
        readings |= {found.value * 100} if wanted.percent and abs(found.value) <= 1 else set()
    return any(abs(value - wanted.value) <= TOLERANCE * abs(wanted.value) for value in readings)


def _stated(text: str) -> tuple[list[str], frozenset[str]]:
    """The ways to read the final statement as a short text, and the forms that it has."""
    statement = final_statement(text)
    bare = from_latex(without_emphasis(text))
    if statement is None:
        parts = sentences(bare)
        if not parts or REFUSED.search(parts[-1]) or parts[-1].endswith("?"):
            return [], frozenset()
        if len(parts) == 1:
            return [bare.strip(), *_readings(bare)], frozenset({"whole"})
        if RETRACTED.search(parts[-1]):
            return [], frozenset()
        return _readings(parts[-1]), frozenset()
    if RETRACTED.search(statement.tail) or RETRACTED.search(statement.text):
        return [], frozenset()
    segment = from_latex(without_emphasis(statement.text)).strip()
    forms = {statement.mark} if statement.mark in ("hash", "boxed", "answer") else set()
    readings = [segment, *_readings(next(iter(sentences(segment)), segment))]
    return readings, frozenset(str(form) for form in forms)


def _readings(sentence: str) -> list[str]:
    """What a sentence says: its `Yes`, its subject, what follows its last `is`; nothing if it denies or offers two."""
    sentence = sentence.strip()
    if lead := re.match(r"(yes|no)\b(?=[\s.,!;:—-]|$)(?! or\b| and\b)", sentence, re.I):
        return [lead[1]]
    if _NEGATION.search(sentence):
        return []
    found = [sentence]
    if (verb := _VERB.search(sentence)) and not re.search(r";|, but\b|\b(?:while|whereas|although)\b", sentence):
        found.append(sentence[: verb.start()])
    if copulas := list(_COPULA.finditer(sentence)):
        found.append(sentence[copulas[-1].end() :])
    return found


def _folded(text: str) -> str:
    text = re.sub(r"\s+", " ", from_latex(plain(text))).casefold().strip(" .,;:!\"'()[]*$\n")
    return re.sub(r"^(?:the|an|a) ", "", text)
