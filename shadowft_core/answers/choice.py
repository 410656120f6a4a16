"""The kind `choice`: one letter of A to J, or the text of a choice."""

import re
from collections.abc import Sequence

from shadowft_core.answers.numerals import from_latex
from shadowft_core.answers.statements import (
    NOTHING,
    REFUSED,
    RETRACTED,
    Found,
    Statement,
    answer_part,
    final_statement,
    is_supposed,
    plain,
    sentences,
    without_emphasis,
)
from shadowft_core.errors import EvaluationError

LETTERS = "ABCDEFGHIJ"
_CUE = re.compile(
    r"(?:\b(?:options?|choices?|answers?|letters?|alternatives?|statement)(?: (?:is|are|letter|would be"
    r"|must be))*\s*:?|\b(?:choose|pick|select|chose|"
    r"picked|selected|think|guess|believe|probably|not [^.]{1,40} but|go with|going with|opt for|say|is|be"
    r"|it's|so|therefore|thus|hence)\s*[:,]?|[:=→]|->|=>)\s*(?:\bthe )?(?:option |choice |letter |answer )?\s*$",
    re.I,
)
_WRAPPING = " \n\"'{}$<>✓✔✅"
_UNABLE = re.compile(r"\b(?:cannot|can't|unable to|won't) (?:answer|help|determine|say|tell)\b", re.I)
_PICKED = re.compile(
    r"\b(?:choose|pick|select|chose|go with|opt for|answer is) (?:option |choice "
    r"|answer )?\(?$",
    re.I,
)
_VERDICT = re.compile(
    r"\s*(?:(?:is|seems|looks|appears|must be|would be)(?: to be)?(?: clearly| definitely| therefore"
    r"| also)? (?:the )?(?:most )?(?:correct|right|best|true|accurate|appropriate|likely"
    r"|my (?:final )?answer|answer)\b(?!-))",
    re.I,
)
_AGAINST = re.compile(
    r"\s*(?:is|are|was|seems|can be|looks|must be)\s+(?:also |clearly |definitely )?(?:not\b|n't"
    r"|in(?:correct|accurate)|wrong|false|eliminated|ruled out|excluded|implausible|unlikely)|\s*(?:isn't"
    r"|cannot|can't|doesn't|does not)\b",
    re.I,
)
_DENIED = re.compile(
    r"(?:\bcannot|\bnot|n't|\bnever|\brather than|\binstead of|\bunlike|\bneither|\bnor|\bexcept|\beliminates?"
    r"|\bexcludes?|\brules? out|\beliminated)\s"
    r"(?:be |the |choose |pick |select |say )?(?:option |choice |answer |letter )?(?:is )?\(?$|\bneither\b[^.]*$",
    re.I,
)
_JOINED = re.compile(
    r"[)\].\s]*(?:\b(?:and|or)\b|[/,&+;-])\s*(?:possibly |maybe |perhaps |also |option |choice )?[(\[]?\s*$", re.I
)
_REASON = re.compile(r"\s*(?:$|[.,:;)\]!\n*—-]|\(|because\b|since\b|as\b|due\b|for\b|given\b|which\b"
                     r"|based\b|according\b|,|is (?:the )?(?:correct|right|best))", re.I)  # fmt: skip


def find(output: str, reference: str, choices: Sequence[str] = ()) -> Found:
    """The choice that an output states last, held against the reference, which is a letter or the text of a choice."""
    wanted = letter_of(reference, choices)
    letters = LETTERS[: len(choices)] if choices else LETTERS
    letter, forms = _extract(output, letters, [_folded(one) for one in choices])
    return NOTHING if letter is None else Found(letter, forms, letter == wanted)


def letter_of(reference: str, choices: Sequence[str]) -> str:
    """The letter of a reference, which is a letter or the text of a choice. Raises EvaluationError for another."""
    bare = plain(reference).strip(" .()[]:*")
    folded = [_folded(one) for one in choices]
    if folded.count(_folded(reference)) == 1:
        return LETTERS[folded.index(_folded(reference))]
    if len(bare) == 1 and bare.upper() in (LETTERS[: len(choices)] if choices else LETTERS):
        return bare.upper()
    raise EvaluationError(
        f"reference {reference!r:.100}: expected a letter of {LETTERS[: len(choices)] if choices else LETTERS} or the "
        "text of one choice; correct doc_to_target"
    )


def _folded(text: str) -> str:
    text = from_latex(without_emphasis(plain(text))).casefold()
    return re.sub(r"\s+", " ", re.sub(r"^(?:the|an|a) ", "", text.strip(" .,;:!\"'()[]$"))).strip()


def _extract(output: str, letters: str, texts: list[str]) -> tuple[str | None, frozenset[str]]:
    text = answer_part(output)
    statement = final_statement(text)
    bare = from_latex(without_emphasis(text)).strip(_WRAPPING)
    if statement is None:
        opened = _opens(bare, letters)
        alone = len(sentences(bare)) == 1 and not is_supposed(bare)
        letter = _resolve(bare, letters, texts) if opened or alone else None
        if letter and _retracts(bare):
            letter, opened = _unmarked(bare[_last(bare) :], letters, texts), True
        if letter is None and not opened:
            letter = _unmarked(bare, letters, texts)
        judged = {match[1] for match in _tokens(bare) if _VERDICT.match(bare[match.end() :].lstrip(")]"))}
        if judged - {letter} or (_UNABLE.search(bare) and letter):
            letter = None
        return letter, frozenset({"whole"} if letter and _is_all(bare, letter) else ())
    segment = from_latex(without_emphasis(statement.text)).strip(_WRAPPING)
    letter = "I" if segment.strip(" .()[]") == "I" and "I" in letters else _resolve(segment, letters, texts)
    if _retracts(segment) or RETRACTED.search(statement.tail):
        rest = bare[_last(bare) :] if RETRACTED.search(bare) else ""
        return _unmarked(rest, letters, texts), frozenset()
    if letter is None or _contradicted(statement, letter):
        return None, frozenset()
    forms = {statement.mark} if statement.mark != "tag" and _is_all(segment, letter) else set()
    if statement.mark in ("answer", "hash") and _is_all(next(iter(sentences(segment)), ""), letter):
        forms.add(statement.mark)
    return letter, frozenset(str(form) for form in forms)


def _retracts(text: str) -> bool:
    return bool(RETRACTED.search(text))


def _last(text: str) -> int:
    """Where the last retraction of a text ends."""
    return max(match.end() for match in RETRACTED.finditer(text))


def _contradicted(statement: Statement, letter: str) -> bool:
    """Whether what follows the statement calls another letter right, or this one wrong."""
    tail = from_latex(without_emphasis(statement.tail))
    for match in _tokens(tail):
        after = tail[match.end() :]
        if match[1] != letter and _VERDICT.match(after) and not _AGAINST.match(after):
            return True
        if match[1] == letter and _AGAINST.match(after):
            return True
    return False


def _is_all(text: str, letter: str) -> bool:
    return text.strip(" \n.()[]{}$*\\:").removesuffix(")").strip() == letter


def _tokens(text: str) -> list[re.Match[str]]:
    """The letters of a text that stand alone, without the article A and the pronoun I."""
    found = []
    for match in re.finditer(r"(?<![\w'&.-])([A-J])(?![\w'&]|\.\w|-\w)", text):
        after = text[match.end() :]
        named = match[1] in "AI" and not _in_brackets(text, match)
        if named and match[1] == "I" and not re.match(r"\s*[.):]", after):
            continue
        if named and match[1] == "A" and re.match(r" \w", after):
            letter = _REASON.match(after) or _VERDICT.match(after)
            if not letter and not re.match(r" (?:(?:and|or) \(?[B-J]\b|(?:is|was) )", after):
                continue
        found.append(match)
    return found


def _opens(text: str, letters: str) -> bool:
    """Whether a text begins with a letter and a sign or word that sets it off from what follows."""
    match = re.match(
        r"\s*[(\[]?([A-Ja-j])(?!\.\w)[)\]]?(?=[.:)\],]|\s*$|\s*\n|\s+[-—]|\s+(?:because|since)\b"
        r"|\s+is (?:the )?(?:correct|right|best))",
        text,
    )
    if not match or match[1].upper() not in letters or text.strip() in ("I", "i"):
        return False
    return match[1].isupper() or bool(re.match(r"\s*[(\[]?[a-j][)\]]", text)) or len(text.strip(" .()")) == 1


def _resolve(segment: str, letters: str, texts: list[str]) -> str | None:
    """The one choice that a segment states; None if there is none, or more than one it could be."""
    first = next(iter(sentences(segment)), "")
    for part in (_folded(segment), _folded(first)):
        if len(part) > 1 and texts.count(part) == 1:
            return LETTERS[texts.index(part)]
    tokens = [match for match in _tokens(segment) if not _is_denied(segment, match)]
    stated = _led(segment, tokens, letters) or _picked(segment, tokens) or _hinted(segment, tokens)
    if stated is None:
        return None if tokens else _by_text(first, texts)
    letter, rest = stated
    return None if letter not in letters or _joined(rest) or _names_another(rest, letter, texts) else letter


def _led(segment: str, tokens: list[re.Match[str]], letters: str) -> tuple[str, str] | None:
    """The letter at the beginning of a segment, and what follows it."""
    if _opens(segment, letters) and (match := re.match(r"\s*[(\[]?([A-Ja-j])[)\]]?", segment)):
        rest = segment[match.end() :]
        return None if _AGAINST.match(" " + rest.lstrip(")] ")) else (match[1].upper(), rest)
    if match := re.fullmatch(r"\s*(?:(?:[Oo]ption|[Cc]hoice) )?[(\[]?([a-j])[)\].]*\s*", segment):
        return match[1].upper(), ""
    if tokens and not segment[: tokens[0].start()].strip(" ([\"'") and _REASON.match(segment[tokens[0].end() :]):
        return tokens[0][1], segment[tokens[0].end() :]
    return None


def _picked(segment: str, tokens: list[re.Match[str]]) -> tuple[str, str] | None:
    """The last letter, if a verb such as `choose` stands before it."""
    if tokens and _PICKED.search(segment[: tokens[-1].start()]):
        return tokens[-1][1], segment[tokens[-1].end() :]
    return None


def _hinted(segment: str, tokens: list[re.Match[str]]) -> tuple[str, str] | None:
    """The only letter that can name a choice, if words or brackets say that it does."""
    cued = [match for match in tokens if _cued(segment, match)]
    named = {match[1] for match in tokens if _bare(segment, match)} | {match[1] for match in cued}
    return (cued[-1][1], segment[cued[-1].end() :]) if cued and len(named) == 1 else None


def _cued(segment: str, match: re.Match[str]) -> bool:
    before, after = segment[: match.start()], segment[match.end() :]
    return _in_brackets(segment, match) or bool(_CUE.search(before.rstrip("([ ") + " ")) or bool(_VERDICT.match(after))


def _bare(segment: str, match: re.Match[str]) -> bool:
    """Whether the letter can name a choice: not the end of a name such as vitamin C."""
    return _cued(segment, match) or bool(_JOINED.search(segment[: match.start()]))


def _in_brackets(text: str, match: re.Match[str]) -> bool:
    around = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    return around in (("(", ")"), ("[", "]"))


def _is_denied(segment: str, match: re.Match[str]) -> bool:
    after = segment[match.end() :].lstrip(")] ")
    return bool(_DENIED.search(segment[: match.start()])) or bool(_AGAINST.match(" " + after))


def _joined(rest: str) -> bool:
    """Whether another letter follows as an equal: `and C`, `or (C)`, `/C`."""
    match = re.match(
        r"[)\].\s]*,?\s*(?:\b(?:and|or)\b|[/,&+;]|, then\b)\s*(?:possibly |maybe |perhaps |also |option |choice "
        r"|answer )?[(\[]?\s*([A-J])(?![\w'])(?!\s*(?:is|are|was) (?:wrong|incorrect|false|not))",
        rest,
    )
    if (
        match
        and not (match[1] == "A" and re.match(r" \w", rest[match.end() :]))
        and not (match[1] == "I" and re.match(r" \w|'", rest[match.end() :]))
    ):
        return True
    return bool(re.search(r"\bor (?:possibly |maybe |perhaps )?(?:option |choice )?\(?[A-J]\b(?! \w)", rest))


def _names_another(rest: str, letter: str, texts: list[str]) -> bool:
    """Whether the text behind a letter is that of another choice."""
    stated = _folded(next(iter(sentences(rest)), ""))
    return stated in texts and texts.count(stated) == 1 and LETTERS[texts.index(stated)] != letter


def _by_text(sentence: str, texts: list[str]) -> str | None:
    """The choice whose text a sentence names, if it names no other. A text inside a longer one that fits is none."""
    folded = _folded(sentence)
    if re.search(
        r"\b(?:not|neither|nor|except|unlike|wrong|incorrect|false|(?:any|every)thing but"
        r"|all but)\b|n't\b",
        folded,
    ):
        return None
    spans = []
    for at, text in enumerate(texts):
        if text and texts.count(text) == 1:
            spans += [(m.start(), m.end(), at) for m in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", folded)]
    kept = {
        at
        for start, end, at in spans
        if not any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in spans)
    }
    return LETTERS[kept.pop()] if len(kept) == 1 else None


def _unmarked(text: str, letters: str, texts: list[str]) -> str | None:
    """The choice of the last sentence that names one."""
    for sentence in reversed(sentences(text)):
        if REFUSED.search(sentence) or is_supposed(sentence):
            return None
        tokens = [match for match in _tokens(sentence) if _bare(sentence, match) or _opens(sentence, letters)]
        named = _by_text(sentence, texts)
        if tokens or named:
            return None if sentence.endswith("?") else _resolve(sentence, letters, texts)
    return None
