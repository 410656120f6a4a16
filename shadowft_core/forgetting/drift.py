"""How the form of answers changed: cheap features of the text, none of which says that an answer is good.

Only answers that were recorded whole are compared, because a shortened one may have a form further on.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

SHOWN = 2000  # characters of an output in items.jsonl; a longer one was shortened to this
FORMS = {  # a form that an answer has or has not
    "fence": re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE),
    "list": re.compile(r"^\s*([-*•+]|\d{1,3}[.)])\s+\S", re.MULTILINE),
    "bold": re.compile(r"\*\*[^\s*][^*\n]*\*\*|__[^\s_][^_\n]*__"),
    "boxed": re.compile(r"\\boxed\s*\{"),
}
JAPANESE = ("HIRAGANA", "KATAKANA")


def first_word(text: str) -> str:
    """The first word or number, in lower case; else the first characters that are not spaces; empty if there are none.

    `Sure, here` and `**Sure!**` both start with `sure`.
    """
    found = re.search(r"\w+", text)
    return found[0].casefold() if found else text.strip()[:8]


def script(text: str) -> str:
    """The writing system of most letters, such as LATIN, CYRILLIC or CJK; JAPANESE with any kana; empty without."""
    counts = Counter(unicodedata.name(char, "UNKNOWN").split()[0] for char in text if char.isalpha())
    if any(counts[name] for name in JAPANESE):
        return "JAPANESE"
    return min(counts, key=lambda name: (-counts[name], name), default="")


def drift(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The share of answers that keep the reference's form, by feature; `pairs` are (reference, arm).

    `kept` is the share of answers in which both have, or both lack, the feature, or start with the same word, or are in
    the same script. For the FORMS, `reference` and `arm` are the shares of answers that have it. None without answers.
    """
    whole = [pair for pair in pairs if max(map(len, pair)) < SHOWN]
    same: dict[str, Callable[[str], object]] = {"start": first_word, "script": script}
    found: dict[str, Any] = {"answers": len(whole), "shortened": len(pairs) - len(whole)}
    for name, feature in same.items():
        found[name] = {"kept": _share([feature(a) == feature(b) for a, b in whole])}
    for name, pattern in FORMS.items():
        having = [(bool(pattern.search(a)), bool(pattern.search(b))) for a, b in whole]
        found[name] = {
            "kept": _share([a == b for a, b in having]),
            "reference": _share([a for a, _ in having]),
            "arm": _share([b for _, b in having]),
        }
    return found


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
