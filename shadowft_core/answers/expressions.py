"""Expressions in LaTeX: one spelling for each, and their structure as lists, tuples, intervals, sets and matrices."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from shadowft_core.answers.numerals import numerals


@dataclass(frozen=True)
class Form:
    """The structure of an expression: an atom, or parts. `bounds` are its brackets, or the shape of a matrix."""

    kind: Literal["atom", "list", "tuple", "set", "matrix"]
    text: str
    parts: "tuple[Form, ...]" = ()
    bounds: str = ""


_UNITS = {  # by usual name: other ways to write it; "" names units that answers often leave out
    "cm": "centimeter centimetre square-cm square-centimeter sq-cm cubic-centimeter cubic-cm",
    "m": "meter metre square-meter cubic-meter square-m",
    "mm": "millimeter",
    "km": "kilometer kilometre square-kilometer",
    "inch": "inche in square-inche square-inch cubic-inche cubic-inch sq-in",
    "foot": "feet ft square-feet square-foot cubic-feet sq-ft",
    "yard": "square-yard cubic-yard",
    "mile": "square-mile",
    "second": "sec",
    "minute": "min",
    "hour": "hr",
    "mph": "mile-per-hour",
    "m/s": "meter-per-second",
    "kg": "kilogram",
    "g": "gram",
    "l": "liter litre",
    "": "unit square-unit cubic-unit sq-unit degree percent",
    **dict.fromkeys(["day", "week", "month", "year", "dollar", "cent", "pound", "ounce", "gallon", "km/h"], ""),
}
_NAMES = {word.replace("-", " "): name for name, words in _UNITS.items() for word in [name, *words.split()] if word}
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|operatorname|hbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_MATRIX = re.compile(r"\\begin\{([pbBvV]?(?:small)?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", re.S)


def normal(text: str) -> str:
    """One spelling: no signs for display or spacing, \\frac{a}{b} with braces, mixed numbers as sums."""
    text = re.sub(r"(?<!\\)\\$", "", text.strip().strip("`").strip()).strip()
    while boxed := re.fullmatch(r"\\(?:boxed|fbox)\s*\{(.*)\}", text, re.S):
        text = boxed[1].strip()
    text = (
        re.sub(r"^\s*(?:\$\$?|\\\[|\\\()\s*|\s*(?:\$\$?|\\\]|\\\))\s*\.?$", "", text)
        if not re.match(r"\$\d[^$]*$", text)
        else text
    )
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text) if text.startswith("**") else text
    text = re.sub(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|limits|mathstrut)(?![A-Za-z])", "", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|\\[,!:; ])(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<!\\)\\[,!;: ]|\\(?:quad|qquad)\b|~", " ", text)
    text = re.sub(r"\\(?:dots|ldots|cdots)\b", "...", text)
    text = text.replace("\\$", "").replace("\\%", "%").replace("\\{", "\\lbrace ").replace("\\}", "\\rbrace ")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°", " ", text)
    text = re.sub(r"\\(?:neq?|not\s*=)(?![A-Za-z])|≠", r"\\neq ", text)
    text = re.sub(r"\\(?:leqslant|leq|le)(?![A-Za-z])|≤|<=", r"\\leq ", text)
    text = re.sub(r"\\(?:geqslant|geq|ge)(?![A-Za-z])|≥|>=", r"\\geq ", text)
    text = text.replace("\\lt", "<").replace("\\gt", ">")
    for sign, command in {
        "π": "\\pi ",
        "√": "\\sqrt",
        "∞": "\\infty ",
        "×": "\\times ",
        "·": "\\cdot ",
        "÷": "\\div ",
        "∪": "\\cup ",
        "²": "^2",
        "³": "^3",
        "±": "\\pm ",
    }.items():
        text = text.replace(sign, command)
    text = re.sub(
        r"(?<![\\A-Za-z])(pi|infinity|infty"
        r"|sqrt)(?![A-Za-z])",
        lambda m: "\\" + m[1].replace("infinity", "infty"),
        text,
    )
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(
        r"\\sqrt\s*(\d+|[A-Za-z])(?![A-Za-z])",
        r"\\sqrt{\1}",
        text,
    )
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\d|[A-Za-z])", r"\\frac\1{\2}", text)
    text = re.sub(r"(?<![\d.}])(-?)(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", _mixed, text)
    text = re.sub(r"(?<![\d./}])(-?)(\d+) (\d+)/(\d+)(?![\d/])", _mixed, text)
    if _is_grouped(text):
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\)\s*=\s*", "", text)
    return text.rstrip(".").strip() if not text.endswith("...") else text


def _is_grouped(text: str) -> bool:
    """Whether the commas of a text separate thousands: a number alone, without brackets around a list."""
    return bool(re.fullmatch(r"[-+$]?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*[^,]*", text))


def _mixed(match: re.Match[str]) -> str:
    sign, whole, top, bottom = match.groups()
    if int(bottom) == 0:
        return match[0]
    value = f"\\frac{{{int(whole) * int(bottom) + int(top)}}}{{{bottom}}}"
    return f"{sign}{value}"


def split_unit(text: str) -> tuple[str, str]:
    """The expression without a unit at its end, and the unit's usual name; empty if it has none that is known."""
    match = re.fullmatch(
        r"(.*[\d})\]!%a-zA-Z])\s*\\(?:text|mbox|mathrm|textrm)\s*\{([^{}]*)\}\s*(?:\^\s*\{?\d\}?)?\s*", text, re.S
    )
    if match and re.search(r"\d|\\pi|\\sqrt|[a-z]$", match[1]) and not _TEXT.search(match[1]):
        word = match[2].strip(" .").lower()
        if not re.match(r"(?:and|or|to|if|for|mod|where)\b", word):
            return match[1].strip().removesuffix("\\").strip(), _unit(word)
    plain = re.fullmatch(r"(-?\$?[\d.,/]+|-?\\frac\{[^{}]+\}\{[^{}]+\}|-?[\d.]*\\(?:pi"
                         r"|sqrt\{\d+\}))\s*((?:sq(?:uare)?\.? |cubic )?[A-Za-z]{1,12}(?:/h|/s"
                         r"| per [a-z]+)?)\.?(?:\s*\^\s*\{?\d\}?)?", text)  # fmt: skip
    if plain and (plain[2].lower() in _NAMES or plain[2].lower().rstrip("s") in _NAMES or len(plain[2]) > 3):
        return plain[1].lstrip("$"), _unit(plain[2].lower())
    return text.removeprefix("$") if re.fullmatch(r"\$[\d.,]+", text) else text, ""


def _unit(word: str) -> str:
    word = re.sub(r"\s+", " ", word)
    return _NAMES.get(word, _NAMES.get(word.removesuffix("s"), ""))


def form_of(text: str) -> Form:
    """The structure of a normal expression."""
    text = _stripped(text)
    if matrix := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
        shape = f"{'|' if 'v' in matrix[1].lower() else ''}{[len(row) for row in rows]}"
        return _form("matrix", text, [cell for row in rows for cell in row], shape)
    if text.startswith("\\lbrace") and text.endswith("\\rbrace") and _closes(text[7:-7]):
        return _form("set", text, _split(text[7:-7]))
    inner = text[1:-1]
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closes(inner) and len(_split(inner)) > 1:
        return _form("tuple", text, _split(inner), text[0] + text[-1])
    parts, bounds = _split(text, r"\\cup(?![A-Za-z])"), "cup"
    if len(parts) < 2:
        parts, bounds = _split(_unnamed(text)), ""
    if len(parts) < 2 and text.count("\\pm") == 1 and "=" not in text:
        parts = [text.replace("\\pm", sign) for sign in "+-"]
    return _form("list", text, parts, bounds) if len(parts) > 1 else Form("atom", text)


def _form(kind: Literal["list", "tuple", "set", "matrix"], text: str, parts: list[str], bounds: str = "") -> Form:
    return Form(kind, text, tuple(form_of(part) for part in parts), bounds)


def _stripped(text: str) -> str:
    text = text.strip().rstrip(",;").strip()
    while text.startswith("{") and text.endswith("}") and _closes(text[1:-1]):
        text = text[1:-1].strip()
    return text


def _unnamed(text: str) -> str:
    """`x = 1, 2` lists the values of x: without the name."""
    match = re.fullmatch(r"([A-Za-z])\s*(?:=|\\in\b)\s*([^=]*[,][^=]*)", text)
    return match[2] if match else text


def _closes(text: str) -> bool:
    """Whether every bracket of a text closes inside it."""
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _split(
    text: str,
    separator: str = r",|;|\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:vee|lor)\b",
) -> list[str]:
    parts, depth, start, at = [], 0, 0, 0
    pattern = re.compile(separator)
    while at < len(text):
        if depth == 0 and (match := pattern.match(text, at)):
            parts.append(text[start : match.start()])
            start = at = max(match.end(), at + 1)
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def number_of(text: str) -> Fraction | None:
    """The number that an expression is, or None."""
    text = text.strip().rstrip(".")
    simple = re.fullmatch(r"(-?)\s*\\frac\{\s*(-?\d+)\s*\}\{\s*(-?\d+)\s*\}", text)
    if simple:
        return None if int(simple[3]) == 0 else Fraction(int(simple[2]), int(simple[3])) * (-1 if simple[1] else 1)
    text = re.sub(r"\s*\\(?:times|cdot)\s*10\s*\^\s*\{?\s*(-?\d+)\s*\}?$", r"e\1", text).replace(" %", "%")
    found = numerals(text)
    if len(found) != 1 or found[0].value is None or found[0].text != text.strip():
        return None
    return found[0].value


def same_words(wanted: str, stated: str) -> bool | None:
    """Whether two texts are the same words; None if neither is words."""
    words, other = _words(wanted), _words(stated)
    if words is None and other is None:
        return None
    if words is None or other is None:
        bare = words if other is None else other
        return False if bare and len(bare) > 1 else None
    return words == other


def _words(text: str) -> str | None:
    inner = _TEXT.sub(lambda m: " " + m[1] + " ", text).strip()
    choice = re.fullmatch(r"\(?\s*([A-J])\s*\)?", inner)
    if choice and (inner != text.strip() or "(" in inner):
        return choice[1]
    folded = re.sub(r"[\s.,]+", " ", inner).strip().casefold()
    if (
        re.fullmatch(r"(?=.*[a-z]{2})[a-z][a-z' -]*[a-z]", folded)
        and (inner != text.strip() or len(folded) > 2)
        and "\\" not in inner
    ):
        return folded
    return None
