"""What an output states last: thoughts and further questions cut off, marks such as `####` and \\boxed{} found."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

FORMS = {
    "hash": "a last line `#### 42`",
    "boxed": r"\boxed{42}",
    "answer": "`The answer is 42.` or `Answer: 42`",
    "whole": "nothing but the answer",
}


@dataclass(frozen=True)
class Found:
    """The answer of an output: its text (None: there is none), its forms of FORMS, whether it is right."""

    text: str | None
    forms: frozenset[str] = frozenset()
    right: bool = False


@dataclass(frozen=True)
class Statement:
    """The final statement: `text`, the mark (a form or `tag`) that introduces it, and what follows it."""

    text: str
    mark: str
    tail: str = ""


NOTHING = Found(None)
_THOUGHTS = ("think", "thinking", "reasoning", "thought", "scratchpad")
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2004\u2005\u2007\u2008\u2009\u200a\u202f\u3000\t"), " ")
_MINUS = dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d\u207b"), "-")
_NOTHING = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u2066\u2069"))
_QUOTES = {
    ord("’"): "'",
    ord("‘"): "'",
    ord("“"): '"',
    ord("”"): '"',
    ord("∕"): "/",
    ord("⁄"): "/",
    ord("。"): ". ",
    ord("、"): ", ",
}
_PLAIN = _SPACES | _MINUS | _NOTHING | _QUOTES
_NEXT = re.compile(
    r"\n\s*(?:#+ *)?(?:Question|Q|Problem|Human|User|Instruction|<\|im_start\|>user)\b ?\d*\s*[:>\n]", re.I
)
_FENCE = re.compile(r"^```[\w+-]*[ ]*\n(.*?)^```[ ]*$", re.M | re.S)
_ANSWER_WORDS = (
    r"\banswer|\bans\b|\bsolution(?= ?(?::|is\b))|\bresult(?= ?(?::|is\b))|\bréponse|\bantwort|\blösung"
    r"|\brespuesta|\brisposta|\bresposta|\bответ|答案|答え|답"
)
_ANSWER = re.compile(
    rf"(?:{_ANSWER_WORDS})[\"']?(?: (?!is\b|are\b|was\b|be\b|ist\b|est\b|es\b|not\b|as\b)[^\n.,:=?!]{{0,60}}?)?"
    r"(?:\s*(?:->|→|=>|[:=]|\bis\s*:|\bare\s*:|\bis equal to|\bequals|\bcomes out to|\b(?:is|are|was"
    r"|would be|will be|must be"
    r"|should be|ist|est|es|é|è)\b|是|为|は|는|은)\s*)+|(?:^|\n)A ?: |\banswer (?=[-$]?\d)|\bfinal answer ?\n"
    r"|选择?(?=[A-J(])",
    re.I,
)
_REVERSED = re.compile(
    r"(\$[^$\n]+\$|\\\([^\n]+?\\\)|[-$]?\d[\d,.]*%?(?: [a-z]+)?|\(?[A-J]\)?)(?: is|, which is)"
    r" (?:therefore |thus )?(?:the|our|my)(?: final| correct| right)* answer\b",
)
_SEEK = re.compile(r"\b(?:find|get|compute|calculate|determine|derive|check|verify|obtain|express"
                   r"|simplif\w+|wrong|your|no) (?:the |your |my |an? )?(?:final )?$", re.I)  # fmt: skip
# What stands before `answer is` where the answer is somebody's mistake, an assumption, or only a part.
_SUPPOSED = re.compile(
    r"\b(?:suppose|supposing|assum\w+|mistake\w*|misconception|fallacy|might|tempt\w+|naive\w*|ignoring|forgetting"
    r"|(?:most|many|some) people|initially|at first|at a glance|neglecting|without|i (?:\w+ )?(?:thought|assumed)"
    r"|if (?:it|we|you|they|there|this|that|one) (?:were|had|was|ignor\w+|forg[eo]t|neglect|only|did|do|don't))\b"
    r"[^.!?\n]*$|\bif (?:the |this |that )?$"
    r"|\b(?:first|initial|original|naive|student's|common|partial|intermediate|sub-?)"
    r" ?(?:wrong |incorrect )?$|\bpart \(?\w\)? $",
    re.I,
)
_HASH = re.compile(r"^[ ]*####[ ]*(.*)$", re.M)
_TAG = re.compile(r"<(?:final_?)?answer>(.*?)(?:</(?:final_?)?answer>|\Z)", re.I | re.S)
_COUNTER = re.compile(r"(?:step|part|question|problem|case)\b", re.I)
_HEADING = re.compile(r"(?!answer|final)[A-Za-z]{4,}\b.*[A-Za-z:]", re.I)
_NEGATED = re.compile(
    r"\s*(?:definitely |certainly |clearly |probably )?(?:not|never|neither|n't|wrong|incorrect)\b", re.I
)
RETRACTED = re.compile(
    r"\b(?:wait\b(?= ?[,.!?-])|wait,? no\b|oops|correction\b(?=[:,])|scratch that|on second thoughts?"
    r"|let me (?:re\w+|correct|fix|try again)"
    r"|i (?:made|have made) an? (?:\w+ )?(?:mistake|error)|my (?:mistake|error|apologies)|i apologi[sz]e|sorry"
    r"|(?<=[.!?,;\n-] )(?:it|that|this|the (?:right |correct )?answer) should (?:actually |really "
    r"|instead )?(?:be|have been)"
    r"|(?:that|this|which|it)(?:'s| is| was) (?:wrong|incorrect|not (?:right|correct))|hmm+|or rather|i mean)\b"
    r"|(?:^|[.!?,\n;(-] *)(?:but )?actually\b(?!,? we)|\bno[,.!] (?!of|more|other)|\bnot quite\b"
    r"|\bwait ?(?:…|\.\.\.)",
    re.I,
)
REFUSED = re.compile(
    r"\b(?:impossible that|refuse to)|\b(?:cannot|can't|can not|could not|couldn't|unable to|not able to"
    r"|impossible to) (?:be )?(?:determine|answer|solve|say"
    r"|tell|help|calculate|compute|find|provide|assist)|\b(?:don't|do not) know|\bnot (?:enough"
    r"|sufficient) information"
    r"|\binsufficient information|\bnot sure\b|\bno (?:idea|answer)\b|\bnone of (?:these|the above|them)"
    r"|\bcannot be (?:determined|known)",
    re.I,
)


def plain(output: str) -> str:
    """One way to write each sign: ASCII digits, hyphen for minus, simple spaces; no invisible characters.

    Full-width letters become ASCII. Superscripts and fractions such as ½ stay, as they have a meaning of their own.
    """
    out = []
    for char in output.translate(_PLAIN).replace("\r\n", "\n"):
        if "\uff01" <= char <= "\uff5e":
            out.append(chr(ord(char) - 0xFEE0))
        elif ord(char) > 127 and unicodedata.category(char) == "Nd":
            out.append(str(unicodedata.decimal(char)))
        elif char == "\n" or unicodedata.category(char) != "Cc":
            out.append(char)
    return "".join(out)


def answer_part(output: str) -> str:
    """The output without thoughts, without the questions that a model invents after its answer, and without fences.

    Thoughts that never end leave nothing.
    """
    text = plain(output)
    if "<|channel|>final<|message|>" in text:
        text = text.rpartition("<|channel|>final<|message|>")[2]
    for name in _THOUGHTS:
        for start, end in ((f"<{name}>", f"</{name}>"), (f"[{name.upper()}]", f"[/{name.upper()}]")):
            if end in text:
                text = text.rpartition(end)[2]
            if start in text:
                text = text.partition(start)[0]
    text = re.sub(r"<(-?[\d.,]+|[A-Ja-j])>", r"\1", text)
    text = re.sub(r"<<[^<>\n]*=[^<>\n]*>>", "", text)  # sums as the solutions of GSM8K mark them
    text = re.sub(r"<\|[^|>\n]{1,40}\|>|</?s>", "\n", text)
    if further := _NEXT.search(text, len(text) - len(text.lstrip()) + 1):
        text = text[: further.start()]
    text = _FENCE.sub(lambda fence: fence[1] if len(fence[1].strip().splitlines()) == 1 else "\n", text)
    return re.sub(r"^```[\w+-]*[ ]*$|`", "", text, flags=re.M).strip()


def without_emphasis(text: str) -> str:
    """The text without the signs of Markdown for bold and italics."""
    text = re.sub(r"(?<!\w)\*\*(?!\s)|(?<!\s)\*\*(?!\w)|(?<=[A-Za-z])\*\*|\*\*(?=[A-Za-z])", "", text)
    text = re.sub(r"(?<![\w*])\*(?=\S)([^*\n]*?\S)\*(?![\w*])", r"\1", text)
    return re.sub(r"(?<!\w)_{1,2}(?=\S)([^_\n]*?\S)_{1,2}(?!\w)", r"\1", text)


def boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and content of each \\boxed{} or \\fbox{}, outermost only; one that never closes has no content."""
    at = 0
    for match in re.finditer(r"\\(?:boxed|fbox)\b\s*", text):
        if match.start() < at:
            continue
        if text[match.end() : match.end() + 1] != "{":
            bare = re.match(r"[^\s$.,\\]+", text[match.end() :])
            at = match.end() + (bare.end() if bare else 0)
            yield match.start(), at, bare[0] if bare else ""
            continue
        depth, at = 0, match.end()
        while at < len(text):
            at += text[at] == "\\"  # the sign after a backslash is no bracket
            escaped = text[at - 1] == "\\"
            depth += 0 if escaped else (text[at : at + 1] == "{") - (text[at : at + 1] == "}")
            at += 1
            if depth == 0:
                break
        yield match.start(), at, text[match.end() + 1 : at - 1] if depth == 0 else ""


def joined_boxes(text: str) -> list[tuple[int, int, str]]:
    """Like `boxes`, but boxes that only `and`, `or` or a comma separates are one list."""
    joined: list[tuple[int, int, str]] = []
    for box in boxes(text):
        between = text[joined[-1][1] : box[0]] if joined else ""
        if joined and re.fullmatch(
            r"[\s$\\()\[\]]*(?:,|,? ?(?:and|or)|;|\\text\{ ?(?:and|or) ?\})[\s$\\()\[\]]*(?:\w+ ?= ?)?", between
        ):
            joined[-1] = (joined[-1][0], box[1], f"{joined[-1][2]}, {box[2]}")
        else:
            joined.append(box)
    return joined


def final_statement(text: str) -> Statement | None:
    """The last marked statement of a text from `answer_part`, or None if nothing is marked."""
    marks: list[tuple[int, int, str, str]] = []
    joined = joined_boxes(text)
    marks += [(start, end, "boxed", content) for start, end, content in joined]
    inside = [(start, end) for start, end, _ in joined]
    for match in _HASH.finditer(text):
        if (
            match[1].strip()
            and not _COUNTER.match(match[1])
            and not (_HEADING.match(match[1].strip()) and text[match.end() :].strip())
        ):
            marks.append((match.start(), match.end(), "hash", match[1]))
    marks += [(match.start(), match.end(), "tag", match[1]) for match in _TAG.finditer(text)]
    for match in _ANSWER.finditer(text):
        before = text[: match.start()]
        if (
            _SEEK.search(before)
            or _SUPPOSED.search(before)
            or any(start < match.start() < end for start, end in inside)
        ):
            continue
        content, end = _first_line(text, match.end())
        if content and not _NEGATED.match(content) and not re.fullmatch(r"(?:correct|right)\b.{0,20}", content):
            marks.append((match.start(), end, "answer", content))
    marks += [(match.start(), match.end(), "answer", match[1]) for match in _REVERSED.finditer(text)]
    if not marks:
        return None
    start, end, mark, content = max(marks)
    explicit = [one for one in marks if one[2] != "answer"]
    if mark == "answer" and explicit and not re.search(r"\d|\\[a-z]|(?<!\w)[A-J](?!\w)", content):
        start, end, mark, content = max(explicit)
    if mark == "answer" and (within := [one for one in marks if one[2] == "boxed" and start < one[0] < end]):
        start, end, mark, content = max(within)
    return Statement(content.strip(), mark, text[end:])


def is_supposed(sentence: str) -> bool:
    """Whether a sentence says what the answer is only as a mistake, an assumption, or a part."""
    return any(_SUPPOSED.search(sentence[: match.start()]) for match in _ANSWER.finditer(sentence))


def _first_line(text: str, at: int) -> tuple[str, int]:
    """The line from `at`, or the next one that is not blank, and where it ends."""
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end].strip(" *_:")
        if line.strip("\"'$\\[]() "):
            return line, end
        at = end + 1
    return "", len(text)


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text; a point inside a number or after an abbreviation does not end one."""
    text = re.sub(r"\b(Rs|approx|vs|No|Mr|Mrs|Ms|Dr|St|etc|i\.e|e\.g)\.(?= )", r"\1", text)
    parts = (part.strip() for part in re.split(r"(?<=[.!?])(?=[\s\"')*]|$)|(?<=[。！？])|\n", text))
    return [part for part in parts if part.strip(" .!?*\"')")]
