"""The kind `math`: MATH, AIME, AMC. Structure is compared here, expressions by math_verify in a process of its own."""

import re
from collections.abc import Sequence
from fractions import Fraction

from shadowft_core.answers import algebra
from shadowft_core.answers.expressions import Form, form_of, normal, number_of, same_words, split_unit
from shadowft_core.answers.numerals import from_latex, numerals
from shadowft_core.answers.statements import (
    NOTHING,
    REFUSED,
    RETRACTED,
    Found,
    Statement,
    answer_part,
    final_statement,
    is_supposed,
    joined_boxes,
    plain,
    sentences,
    without_emphasis,
)
from shadowft_core.errors import EvaluationError

_MATH = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$\n]+)\$", re.S)
_EQUAL = re.compile(r"(?<![<>!\\])(?:=|\\approx|≈)")
_SUM = re.compile(r"[a-z](?:\s*\+\s*[a-z])+|[\d\s+*/().-]+")
CLOSE = Fraction(1, 10**5)  # largest difference of two equal numbers, relative to the larger one
_DENIED = re.compile(r"\b(?:not|cannot|never|neither|nor|rather than|instead of)\b|n't\b", re.I)
_BOUND = re.compile(
    r"\bor (?:more|less|fewer|greater)\b|\b(?:at least|at most|no (?:more|less)|(?:more|less|fewer|greater) than)\b",
    re.I,
)


def find(output: str, reference: str, choices: Sequence[str] = ()) -> Found:
    """The answer that an output states last, held against an expression, or a solution that boxes one."""
    del choices
    wanted = reference_of(reference)
    text = answer_part(output)
    stated, forms = _stated(text)
    if stated is None:
        return NOTHING
    return Found(stated, forms, equal(wanted, stated))


def reference_of(reference: str) -> str:
    """The answer of a solution that boxes one, or the whole text. Raises EvaluationError if it is empty."""
    boxed = [content for _, _, content in joined_boxes(plain(reference))]
    wanted = (_stated(answer_part(reference))[0] or boxed[-1]) if boxed else plain(reference).strip()
    if not wanted.strip(" $."):
        raise EvaluationError(f"reference {reference!r:.100}: expected an answer, found nothing; correct the data")
    return wanted


def _stated(text: str) -> tuple[str | None, frozenset[str]]:
    statement = final_statement(text)
    if statement is None:
        found = _unmarked(text)
        return found, frozenset({"whole"} if found and normal(found) == normal(text) else ())
    if retracted := list(RETRACTED.finditer(statement.tail)):
        return _unmarked(statement.tail[retracted[-1].end() :]), frozenset()
    stated = statement.text
    if statement.mark != "boxed":
        stated = _in_words(without_emphasis(stated))
    stated = stated.strip()
    if not stated or RETRACTED.search(stated) or _DENIED.search(stated) or _contradicted(statement, stated):
        return None, frozenset()
    forms = {statement.mark} & {"hash", "boxed", "answer"}
    return stated, frozenset(str(form) for form in forms)


def _contradicted(statement: Statement, stated: str) -> bool:
    """Whether a later sentence concludes another number."""
    own = number_of(stated)
    for sentence in sentences(from_latex(without_emphasis(statement.tail))):
        if own is not None and re.search(r"\b(?:therefore|thus|hence|so|final)\b", sentence, re.I):
            found = numerals(sentence)
            if len(found) == 1 and found[0].value is not None and found[0].value != own:
                return True
    return False


def _in_words(segment: str) -> str:
    """The expression of a statement in words: its mathematics, what follows its last `=` or `is`, or all of it."""
    segment = segment.strip()
    sentence = next(iter(sentences(segment)), segment) if "\\begin" not in segment else segment
    spans = [next(part for part in match.groups() if part) for match in _MATH.finditer(sentence)]
    outside = _MATH.sub("", sentence)
    if spans and re.fullmatch(r"[\s.,;:!]*(?:(?:and|or)[\s.,]*)*", outside):
        return ", ".join(spans)
    if len(spans) == 1:
        return spans[0] + _MATH.sub("\0", sentence).partition("\0")[2] if _is_unit(outside) else spans[0]
    if len(spans) > 1:
        joined = re.search(r"\b(?:or|and)\b", outside)
        return "" if joined or len({normal(one) for one in spans}) > 1 else spans[0]
    return sentence.rstrip(" .!").removesuffix("$").strip()


def _is_unit(outside: str) -> bool:
    return bool(re.fullmatch(r"\s*[A-Za-z]{1,12}(?:\^?[23²³])?[\s.]*", outside))


def _unmarked(text: str) -> str | None:
    """What the last sentence with a formula or a number states."""
    alone = len(sentences(text)) == 1
    for sentence in reversed(sentences(text)):
        if REFUSED.search(sentence) or is_supposed(sentence) or sentence.endswith("?") or _DENIED.search(sentence):
            return None
        spans = [next(part for part in match.groups() if part) for match in _MATH.finditer(sentence)]
        bare = without_emphasis(sentence).strip()
        if spans:
            return _of_formulas(sentence, spans)
        if alone and not re.search(r"[A-Za-z]{4,} [A-Za-z]{2,}", bare):
            return bare.rstrip(" .!")
        if found := numerals(from_latex(bare)):
            values = {one.value for one in found}
            only = found[0].text if len(values) == 1 and None not in values else None
            return _right_side(bare).rstrip(" .!") if "=" in bare else only
    return None


def _of_formulas(sentence: str, spans: list[str]) -> str | None:
    """What a sentence with formulas states: its only formula, or the result at its end."""
    last = spans[-1]
    if len(spans) == 1:
        return None if numerals(_MATH.sub(" ", sentence)) and "=" not in last else _right_side(last)
    ends = sentence.rstrip(" .*$\\)]").endswith(last.rstrip(" ."))
    of_one = len(re.findall(r"\b(?:is|are|equals?)\b", sentence)) == 1 and re.search(
        r"\b(?:is|are|equals?)\W*$", sentence[: sentence.rfind(last)]
    )
    return _right_side(last) if ends and (_EQUAL.search(last) or of_one) else None


def _right_side(formula: str) -> str:
    return _EQUAL.split(formula)[-1].strip()


def equal(wanted: str, stated: str) -> bool:
    """Whether two expressions in LaTeX or plain text are the same answer."""
    if not stated.strip() or len(stated) > 1000:
        return False
    (first, unit), (second, other) = split_unit(normal(wanted)), split_unit(normal(stated))
    if bool(_BOUND.search(wanted)) != bool(_BOUND.search(stated)) or (unit and other and unit != other):
        return False
    if first == second and first:
        return True
    return _same(form_of(first), form_of(second))


def _same(wanted: Form, stated: Form) -> bool:
    if wanted.kind != stated.kind:
        if {wanted.kind, stated.kind} == {"list", "set"}:
            return _same_parts(wanted, stated, ordered=False)
        relational = any(re.search(r"[<>]|\\[lg]eq?\b", one.text) for one in (wanted, stated))
        relational = relational and {wanted.kind, stated.kind} <= {"atom", "tuple"}
        return relational and algebra.same(wanted.text, stated.text)
    if wanted.kind == "atom":
        return _same_atoms(wanted.text, stated.text)
    if wanted.bounds != stated.bounds:
        return False
    return _same_parts(wanted, stated, ordered=wanted.kind in ("tuple", "matrix"))


def _same_parts(wanted: Form, stated: Form, ordered: bool) -> bool:
    if len(wanted.parts) != len(stated.parts):
        return False
    if ordered:
        return all(_same(one, other) for one, other in zip(wanted.parts, stated.parts, strict=True))
    left = list(stated.parts)
    for one in wanted.parts:
        match = next((at for at, other in enumerate(left) if _same(one, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_atoms(wanted: str, stated: str) -> bool:
    words = same_words(wanted, stated)
    if wanted == stated or words is not None:
        return wanted == stated or bool(words)
    bases = [re.findall(r"(?<=\d)\s*_\s*\{?\s*(\d+)\s*\}?", text) for text in (wanted, stated)]
    if any(bases) or (wanted[:1] == "[") != (stated[:1] == "["):
        return any(bases) and bases[0] == bases[1] and re.sub(r"[\s{}]", "", wanted) == re.sub(r"[\s{}]", "", stated)
    (name, one), (other_name, other) = _sides(wanted), _sides(stated)
    if name and other_name and not (_is_name(name) and _is_name(other_name)):
        return algebra.same(wanted, stated)
    if name or other_name:
        fits = name == other_name if name and other_name else _is_name(name or other_name)
        return (fits or bool(not name and _SUM.fullmatch(other_name))) and equal(one, other)
    first, second = number_of(wanted), number_of(stated)
    if first is not None and second is not None:
        return _same_numbers(first, second, wanted, stated)
    return algebra.same(wanted, stated)


def _same_numbers(first: Fraction, second: Fraction, wanted: str, stated: str) -> bool:
    percents = "%" in wanted, "%" in stated
    rounded = "." in wanted + stated  # such as 0.333333; a fraction or an integer is exact
    if percents == (False, True) and first.denominator != 1 and _close(first, second / 100, rounded):
        return True
    if percents == (True, False) and second.denominator != 1 and _close(first / 100, second, rounded):
        return True
    return _close(first, second, rounded and 1 not in (first.denominator, second.denominator))


def _close(first: Fraction, second: Fraction, rounded: bool) -> bool:
    apart = abs(first - second)
    return apart <= min(Fraction(1, 10**6), max(abs(first), abs(second)) * CLOSE) if rounded else apart == 0


def _sides(text: str) -> tuple[str, str]:
    """The name and the value of `x = 5`; an empty name if the text is no single equation."""
    parts = re.split(r"(?<![<>!\\])=", text)
    if len(parts) < 2 or any(not part.strip() for part in parts):
        return "", text
    return parts[0].strip(), parts[-1].strip()


def _is_name(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?|\\[a-z]+|[A-Za-z]+", text))
