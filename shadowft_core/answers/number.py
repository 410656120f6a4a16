"""The kind `number`: word problems whose answer is one number (GSM8K, SVAMP, MultiArith)."""

import re
from collections.abc import Sequence

from shadowft_core.answers.numerals import Numeral, from_latex, in_words, numerals
from shadowft_core.answers.statements import (
    NOTHING,
    REFUSED,
    RETRACTED,
    Found,
    answer_part,
    final_statement,
    is_supposed,
    plain,
    sentences,
    without_emphasis,
)
from shadowft_core.errors import EvaluationError

_LEAD = re.compile(
    r"(?:[\s\"'(\[{*$~≈:=_]|(?:about|approximately|approx|around|roughly|exactly|just|only|a total of"
    r"|in total|at least|at most|the number|that|it"
    r"|is|be|equal to|equals|to|so|thus|therefore|there (?:are|is)|we (?:get|have)|[A-Za-z]\w*\s*=)(?=[\s$~≈:=]))*",
    re.I,
)
_AIDE = re.compile(
    r"\W*(?:note|check|verif|assum|this assumes|let me know|i hope|hope|feel free|remember|you can"
    r"|confidence|we can (?:check|verify)|to (?:check|verify)"
    r"|double.?check|reference|source|explanation|p\.?s\.?\b|bonus)",
    re.I,
)
_JOINED = re.compile(
    r"\s*(?:[A-Za-z°%²³/.]+\s+){0,3}?[A-Za-z°%²³]*[\s,;(]*(?:\b(?:or|and|to|through|versus|vs|up to|i\.e\.?"
    r"|that is|namely)\b"
    r"|[/&;,|~-]|\.\.+|…)\s*(?:maybe |perhaps |possibly |even |about |approximately |just )?"
    r"[($]*$|\s+|[,;] ?(?:and )?[A-Za-z]\w* ?[=:] ?[($]*",
    re.I,
)
_OPERATOR = re.compile(
    r"\s*[)\]]?\s*(?:[A-Za-z]+\s+)?[+\-*/×÷x^]\s*[(\[]?\s*$|\s*(?:plus|minus|times|divided by|multiplied by)\s*$"
)
_EQUAL = re.compile(r"(?:=>|[=≈:→]|\b(?:equals?|totals?)\b)\s*[(\[*\s$]*(?:about |approximately )?$")
_CONTEXT = re.compile(
    r"\b(?:in|from|out of|after|within|for|per|at|with|during|by|every|each|of the|of these|than|since|on"
    r"|if|when|the (?:first|last|next|other)|to (?!about|around)[a-z]+)\s+"
    r"(?:the |all |his |her |their |its |a |about |only |just |another |\w+ing )?$",
    re.I,
)
_ASIDE = re.compile(
    r",? which is [^,.]*\b(?:more|less|fewer) than\b.*$| ?\((?!or\b|maybe|not)[^()]*\d ?[-+*×/x=÷] ?[^()]*\)\W*$"
    r"|(?:[,;(]|--?|—) ?(?:and )?(?:it is |it's )?not\b(?! only).*$",
    re.I,
)
_COMPOUND = re.compile(
    r"\s+(?!(?:since|because|as|from|for|in|of|after|by|at|on|if|when|per|with|to|is|are|than"
    r"|times)\b)[A-Za-z.]+\s+",
    re.I,
)
_CONCLUDED = re.compile(
    r"\b(?:therefore|thus|hence|so|final|in total|altogether|in conclusion|but|however|next|together|both|now|with"
    r"|real|actual|correct|true|comes? to|must be|part \(?\w\)?:?|step \d+:?)(?=\W)",
    re.I,
)
_RESTATED = re.compile(r" ?\((?!or\b|maybe|not|and\b)[^()]*\)\W*$")


def find(output: str, reference: str, choices: Sequence[str] = ()) -> Found:
    """The number that an output states last, held against the number of the reference."""
    del choices
    found, forms = extract(output)
    if found is None:
        return NOTHING
    return Found(found.text, forms, found.equals(reference_number(reference)))


def reference_number(reference: str) -> Numeral:
    """The number of a reference: all of it, or what follows `####`. Raises EvaluationError if there is not one."""
    text = from_latex(plain(reference.rpartition("####")[2])).strip(" .")
    found = [one for one in numerals(text) if one.value is not None]
    if len(found) != 1:
        raise EvaluationError(
            f"reference {reference!r:.100}: expected one number, found {len(found)}; name another scorer or correct "
            "the data"
        )
    return found[0]


def extract(output: str) -> tuple[Numeral | None, frozenset[str]]:
    """The number that an output states last, and the forms in which it does."""
    text = answer_part(output)
    statement = final_statement(text)
    if statement is None:
        found = _unmarked(text)
        return found, frozenset({"whole"} if found and is_all(text, found) else ())
    segment = from_latex(without_emphasis(statement.text))
    if statement.mark == "answer" and _first(segment).rstrip(" *\"')").endswith("?"):
        return None, frozenset()
    found = _resolve(_first(segment) if statement.mark in ("answer", "hash") else segment, words=True, lead=True)
    alone = found is not None and is_all(segment, found)
    if retracted := RETRACTED.search(statement.tail):
        later = final_statement(statement.tail[retracted.end() :])
        return (None if later else _unmarked(statement.tail[retracted.start() :])), frozenset()
    if found is None or (statement.mark == "answer" and RETRACTED.search(segment[found.end :])):
        return None, frozenset()
    rest = segment.removeprefix(_first(segment)) if statement.mark == "answer" else ""
    if _concludes_another(rest + from_latex(without_emphasis(statement.tail)), found):
        return None, frozenset()
    forms = {statement.mark} if alone else set()
    if is_all(text, found):
        forms.add("whole")
    return found, frozenset(forms & {"hash", "boxed", "answer", "whole"})


def _concludes_another(text: str, found: Numeral) -> bool:
    """Whether what follows the statement comes to another number in the end; an explanation comes to the same."""
    with_numbers = [one for one in sentences(text) if numerals(one) and not _AIDE.match(one)]
    for sentence in with_numbers[-1:]:
        concluded = list(_CONCLUDED.finditer(sentence))
        for part in (sentence, sentence[concluded[-1].end() :]) if concluded else ():
            if other := _resolve(part):
                return not other.equals(found) and not _in_context(part, other)
    return False


def is_all(text: str, found: Numeral) -> bool:
    """Whether a text is a number and nothing else, except signs for currency, percent, bold or mathematics."""
    rest = text.replace(found.text, "", 1)
    return not rest.strip(" \n$%*.\\[](){}`°")


def _first(segment: str) -> str:
    return next(iter(sentences(segment)), "")


def _unmarked(text: str) -> Numeral | None:
    """The number of the last sentence that has one."""
    text = _without_counters(text)
    for raw in reversed(sentences(text)):
        sentence = from_latex(without_emphasis(raw))
        if _AIDE.match(sentence):
            continue
        refused = REFUSED.search(sentence)
        if not numerals(sentence) and not refused and not (len(text.split()) <= 6 and in_words(sentence)):
            continue
        if refused or is_supposed(sentence) or sentence.rstrip(" *\"')").endswith("?"):
            return None
        if bold := re.findall(r"\*\*([^*\n]+)\*\*", raw):
            stressed = {one.value: one for part in bold for one in numerals(from_latex(part)) if not one.denied}
            plainly = _resolve(sentence)
            if len(stressed) == 1 and None not in stressed and plainly is None and not re.search(r"\bor\b", sentence):
                return next(iter(stressed.values()))
        return _resolve(sentence, words=len(text.split()) <= 6, lead=len(sentences(text)) == 1 and "=" not in sentence)
    return None


def _without_counters(text: str) -> str:
    """The text without the numbers of steps, questions and of the items of a list."""
    text = re.sub(r"(?im)\b(?:step|part|question|equation|problem|example|option|figure|table|case|line|day"
                  r"|week|year|round) \(?#?\d+\)?[ ]*:?", " ", text)  # fmt: skip
    counters = [int(n) for n in re.findall(r"(?m)^[ ]*\(?(\d{1,2})[.)] +\S", text)]
    listed = {n for n in counters if n - 1 in counters or n + 1 in counters}
    return re.sub(
        r"(?m)^([ ]*)(?:\(?(\d{1,2})[.)] +(?=\S)|[-*•] +(?=.*[A-Za-z]))",
        lambda m: m[0] if m[2] and int(m[2]) not in listed else m[1],
        text,
    )


def _resolve(segment: str, words: bool = False, lead: bool = False) -> Numeral | None:
    """The one number that a segment states; None if there is none, or more than one it could be."""
    found = numerals(segment)
    if not found and words:
        found = [one for one in in_words(segment) if one.value != 1 or _LEAD.fullmatch(segment[: one.start])]
    stated = [one for one in found if not one.denied]
    if not stated:
        return None
    if (aside := _ASIDE.search(segment)) and stated[0].end <= aside.start():
        return _resolve(segment[: aside.start()], words, lead)
    if (restated := _RESTATED.search(segment)) and stated[0].end <= restated.start():
        return _resolve(segment[: restated.start()], words, lead)
    operands = {at for at, _ in enumerate(stated) if _is_operand(segment, stated, at)}
    at = 0 if lead and 0 not in operands and _LEAD.fullmatch(segment[: stated[0].start]) else None
    if at is None:
        at = _result(segment, stated, operands)
    if at is None:
        at = _only(segment, stated, operands)
    if at is None or stated[at].value is None or _is_contested(segment, stated, at) or _is_offered(segment, stated[at]):
        return None
    return stated[at]


def _result(segment: str, stated: list[Numeral], operands: set[int]) -> int | None:
    """The number behind the last equals sign, unless a further sum or number follows."""
    for at in range(len(stated) - 1, 0, -1):
        if at not in operands and _EQUAL.search(segment[stated[at - 1].end : stated[at].start]):
            more = any(n > at for n in operands) or not _only_context(segment, stated[at + 1 :])
            return None if more else at
    return None


def _only(segment: str, stated: list[Numeral], operands: set[int]) -> int | None:
    """The only number that is no part of a sum, or the only one that is more than context."""
    free = [at for at in range(len(stated)) if at not in operands]
    if len({stated[at].value for at in free}) > 1 and not operands:
        free = [at for at in free if not _in_context(segment, stated[at])]
    if len({stated[at].value for at in free}) != 1 or (operands and free[0] != len(stated) - 1):
        return None
    return free[0]


def _only_context(segment: str, rest: list[Numeral]) -> bool:
    """Whether each of these numbers only says of what or in which time: `for 2 tubs and 4 packets`."""
    near = False
    for one in rest:
        near = _in_context(segment, one) or (near and bool(re.search(r"\b(?:and|,) $", segment[: one.start])))
        if not near:
            return False
    return True


def _is_offered(segment: str, one: Numeral) -> bool:
    """Whether a number is one of a choice or the end of a range: `either 42`, `between 40`."""
    return bool(re.search(r"\b(?:either|between)\b", segment[: one.start], re.I))


def _is_operand(segment: str, stated: list[Numeral], at: int) -> bool:
    one = stated[at]
    if at + 1 < len(stated) and _OPERATOR.match(segment[one.end : stated[at + 1].start]):
        return True
    if re.match(r"\s*=\s*$", segment[one.end :]):
        return True
    if re.match(r"\s*[)\]]*\s*(?:[+*×÷^]|-\s)\s*[(\[A-Za-z]", segment[one.end :]):
        return True
    return at > 0 and bool(_OPERATOR.match(segment[stated[at - 1].end : one.start]))


def _is_contested(segment: str, stated: list[Numeral], at: int) -> bool:
    """Whether the segment offers another number as well: `42 or 43`, `40-45`, `42 = 43`."""
    one = stated[at]
    rest = segment[one.end :]
    if re.match(r"\s*(?:[A-Za-z]+\s+){0,2}[A-Za-z]*\s*=", rest):
        return any(other.value != one.value for other in stated[at + 1 :][-1:]) and not _OPERATOR.match(
            segment[stated[at + 1].end : stated[at + 2].start] if len(stated) > at + 2 else ""
        )
    if at and _joined(segment, stated[at - 1], one):
        return True
    for other in stated[at + 1 :][:1]:
        if _joined(segment, one, other):
            return True
    return any(
        not one.equals(other)
        and re.search(r"\b(?:or|either)\b|\botherwise\b|[,;] (?:but|however|although|after)\b", segment[one.end :])
        for other in stated[at + 1 :]
    )


def _joined(segment: str, one: Numeral, other: Numeral) -> bool:
    """Whether two different numbers stand as equals: `42 or 43`, `40-45`, `3 hours 20 minutes`."""
    gap = segment[one.end : other.start]
    alike = one.equals(other) or other.equals(one)
    return not alike and bool(_JOINED.fullmatch(gap) or _COMPOUND.fullmatch(gap))


def _in_context(segment: str, one: Numeral) -> bool:
    return bool(_CONTEXT.search(segment[: one.start]))
