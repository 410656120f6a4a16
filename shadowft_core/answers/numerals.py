"""Numbers in running text: 1,234.50, $5, 40 %, 1 1/2, 3 million, -2.5e3, forty-two. Values are exact fractions."""

import re
from dataclasses import dataclass
from fractions import Fraction

_CURRENCY = r"(?:US\$|[$€£¥₹₩₽₫฿]|\b(?:USD|EUR|GBP|Rs)\b)"
_BODY = (
    r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}"
    r"|\d{1,3}(?:[ '_]\d{3})+(?:[.,]\d{1,2})?"
    r"|\d+,\d{1,2}|\d+(?:\.\d+)?|\.\d+)"
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER = re.compile(
    rf"(?<![\w.\\^])(?P<sign>(?:minus|negative) |[-+] ?)?(?P<currency>{_CURRENCY} ?)?(?P<inner>-)?"
    rf"(?P<body>{_BODY})(?![\d]|[.,']\d)"
    r"(?:(?:[ -](?P<top>\d+))?(?P<slash> ?/ ?)(?P<bottom>\d+)(?![\d.,/]\d|\d| ?/ ?\d))?"
    r"(?P<vulgar>[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])?"
    r"(?P<power>[eE][-+]?\d+\b| ?[×*x] ?10 ?(?:\^|\*\*) ?\{?-?\d+\}?)?"
    r"(?P<percent> ?(?:%|percent\b|per cent\b|percentage points?\b))?(?P<k>[kK]\b)?"
    rf"(?: (?P<scale>{'|'.join(_SCALES)})s?\b)?",
)
_VULGAR = re.compile(r"(?<![\w.])(?P<sign>-)?(?P<vulgar>[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])(?!\w)")
_ODD_BEFORE = re.compile(r"(?:√|sqrt ?\(?\{?|± ?|\\pm ?|log ?\(?|\^ ?\{?|\d[.,:]|\d ?/ ?|#)$")
_ODD_AFTER = re.compile(
    r" ?(?:\^|²|³|[⁰-⁹]|√|π|\\pi\b|\\sqrt|pi\b)|[xyzXYZi]\b|:\d| ?(?:±|\\pm)| (?:squared|cubed"
    r"|factorial|times as)\b|/\d| ?/ ?\d| ?\+(?!\s?[\d$])(?=\s|$|[.,])|\*\*\d"
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b|-(?:st|nd|rd|th)\b", re.I)
_COMPARED = re.compile(
    r"(?:(?:more|less|greater|fewer|other|larger|smaller|higher|lower) than|over|under|below|above|nearly"
    r"|exceeds?|exceeding|up to|twice|double|triple|thrice|half(?: of)?|(?:third|quarter|multiples?|factor|divisor"
    r"|square|cube|root) of|\bpage|\bchapter|\bsection|\bNo"
    r"|almost|(?<![=-])[<>]|[≤≥])\s?$", re.I
)  # fmt: skip
_DENIED = re.compile(
    r"(?:\bcannot|\bnot|n't|\bnever|\brather than|\binstead of|\bunlike|\bneither|\bnor|\bwithout)\s(?:exactly "
    r"|equal to |just |be |a |an |the |even |have )?$",
    re.I,
)
_REFUTED = re.compile(
    r"[)\]*\"'$]* (?:(?:is|was|are|would be|seems)(?: \w+)? (?:not|wrong|incorrect|false|impossible"
    r"|too (?:low|high|small|large|big"
    r"|many|much|few))\b|(?:isn't|wasn't|cannot|can't)\b|(?:is|was) (?:not|wrong|incorrect|false|impossible)\b"
    r"|(?:is|was) too\b)",
    re.I,
)
_UNDER_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: at for at, word in enumerate(_UNDER_TWENTY.split())}
_WORDS |= {word: 10 * at for at, word in enumerate(_TENS.split(), 2)}


@dataclass(frozen=True)
class Numeral:
    """A number in a text. `value` is None for something that only looks like one: 10^2, 3:2, 5x, more than 5."""

    start: int
    end: int
    text: str
    value: Fraction | None
    percent: bool = False
    denied: bool = False

    def equals(self, other: "Numeral") -> bool:
        """Equal to a reference within 1e-6. 42 % is 42; it is 0.42 as well when the reference is no integer."""
        if self.value is None or other.value is None:
            return False
        values = {self.value}
        if self.percent and not other.percent and other.value.denominator != 1:
            values.add(self.value / 100)
        if other.percent and not self.percent and self.value.denominator != 1:
            values.add(self.value * 100)
        return any(abs(value - other.value) <= Fraction(1, 10**6) for value in values)


def from_latex(text: str) -> str:
    """The text with LaTeX's ways to write numbers replaced by plain ones; other commands stay."""
    text = re.sub(r"\{,\}", ",", text)
    text = re.sub(r"-\\[,!;: ](?=[\d$])", "-", text)
    text = re.sub(r"(?<=\d)\\[,!;: ](?=\d{3}(?!\d))", ",", text)
    text = re.sub(r",\\!(?=\d)", ",", text)
    text = re.sub(
        r"\\(?:text|mathrm|mbox|textbf|mathbf|textit|operatorname|mathit|boldsymbol)\s*\{([^{}]*)\}", r" \1 ", text
    )
    text = re.sub(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r" \1/\2", text)
    text = re.sub(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2", text)
    text = re.sub(r"\\(?:left|right|displaystyle|quad|qquad|[,!;:])|\\(?= )|\^\{?\\circ\}?|\\degree", " ", text)
    text = re.sub(r"\\times|\\cdot", "×", text)
    text = re.sub(r"\\div", "÷", text)
    text = re.sub(r"\\(?:approx|simeq|thickapprox)", "≈", text)
    text = re.sub(r"\\(?:implies|Rightarrow|rightarrow|to)\b", "=>", text)
    text = re.sub(r"\\([$%#&_{}])", r"\1", text)
    return re.sub(r"\\[()\[\]]", " ", text)


def numerals(text: str) -> list[Numeral]:
    """All numbers of a text, from left to right; ordinals, and digits inside names such as Q3, are none."""
    found = []
    for match in NUMBER.finditer(text):
        if _ORDINAL.match(text, match.end("body")):
            continue
        found.append(_numeral(text, match))
    taken = [(one.start, one.end) for one in found]
    for match in _VULGAR.finditer(text):
        if not any(start <= match.start() < end for start, end in taken):
            value = _vulgar(match["vulgar"]) * (-1 if match["sign"] else 1)
            found.append(Numeral(*match.span(), match[0].strip(), value, denied=_denied(text, match.start())))
    return sorted(found, key=lambda one: one.start)


def _numeral(text: str, match: re.Match[str]) -> Numeral:
    before, after = text[: match.start()], text[match.end() :]
    denied = _denied(text, match.start()) or bool(_REFUTED.match(after))
    start = match.start()
    sign, inner = (match["sign"] or ""), bool(match["inner"])
    minus = sign.strip() in ("-", "minus", "negative") or inner
    odd_sign = False
    if sign.strip() in ("-", "+", "minus") and re.search(r"[\w)%°$\]] ?$", before):
        after_number = re.search(r"[\d)%°$\]] ?$", before)
        if sign == "- " and re.search(r"(?:\bis|\bbe|=|:|\bequals?) $", before):
            odd_sign = True  # a dash or a sign
        elif after_number or sign in ("- ", "+ "):  # a sum, or a dash
            minus, start = inner, match.start() + len(sign)
    odd = (
        _ODD_BEFORE.search(before)
        or _ODD_AFTER.match(after)
        or _COMPARED.search(before)
        or (match["vulgar"] and match["slash"])
        or odd_sign
        or (match["percent"] and after[:1].isdigit())
        or (match["sign"] in ("- ", "+ ") and not before.strip(" (*$"))
    )
    value = None if odd else _value(match, minus)
    return Numeral(start, match.end(), text[start : match.end()].strip(), value, bool(match["percent"]), denied)


def _denied(text: str, start: int) -> bool:
    return bool(_DENIED.search(text[:start]))


def _value(match: re.Match[str], minus: bool) -> Fraction | None:
    body = match["body"]
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}", body):
        body = body.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"\d+,\d{1,2}|\d{1,3}(?: \d{3})+,\d{1,2}", body):
        body = body.replace(",", ".")
    value = Fraction(re.sub(r"[, '_]", "", body))
    if match["slash"]:
        bottom = int(match["bottom"])
        if not bottom or value.denominator != 1:
            return None
        value = value + Fraction(int(match["top"]), bottom) if match["top"] else value / bottom
    if match["vulgar"]:
        value += _vulgar(match["vulgar"])
    if match["power"]:
        digits = re.findall(r"[-+]?\d+", match["power"])
        exponent = int(digits[-1])
        if abs(exponent) > 300:
            return None
        value *= Fraction(10) ** exponent
    if match["k"]:
        value *= 1000
    if match["scale"]:
        value *= _SCALES[match["scale"]]
    return -value if minus else value


def _vulgar(sign: str) -> Fraction:
    import unicodedata

    return Fraction(unicodedata.numeric(sign)).limit_denominator(10)


def in_words(text: str) -> list[Numeral]:
    """The numbers that a text writes in words, such as `one hundred and five` and `minus forty-two`."""
    word = "|".join([*_WORDS, "hundred", "thousand", "million"])
    found = []
    for match in re.finditer(rf"\b(?:(minus|negative) )?(?:a )?((?:{word})(?:(?:[ -]"
                             rf"|,? and )(?:{word}))*)\b(?![ -]?(?:st|nd|th)\b)", text, re.I):  # fmt: skip
        total, part = 0, 0
        for one in re.findall(word, match[2].lower()):
            if one == "hundred":
                part = max(part, 1) * 100
            elif one in _SCALES:
                total, part = total + max(part, 1) * _SCALES[one], 0
            else:
                part += _WORDS[one]
        value = Fraction(total + part) * (-1 if match[1] else 1)
        found.append(Numeral(*match.span(), match[0], value, denied=_denied(text, match.start())))
    return found
