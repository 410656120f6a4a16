"""Text for people. Of prompts and answers, what is invisible or would move other text is shown by its code."""

import unicodedata
from collections.abc import Mapping
from typing import Any

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats (bidirectional ones too), halves of pairs, line separators
BLANK = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # drawn as nothing or as a space


def visible(text: str) -> str:
    """The text with every character that has no shape, except line feed and tab, written as <U+202E>."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char in "\n\t" or (unicodedata.category(char) not in HIDDEN and char not in BLANK):
        return char
    return f"<U+{ord(char):04X}>"


def number(value: float | None) -> str:
    """Four digits, or a hyphen for what was not measured."""
    return "-" if value is None else f"{value:.4g}"


def change(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3g}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def both(sides: Mapping[str, Any]) -> str:
    """The shares of reference and arm: `12 % to 30 %`."""
    before, after = share(sides["reference"]), share(sides["arm"])
    return before if before == after else f"{before} to {after}"


def kl_mean(kl: Mapping[str, Any] | None) -> str:
    """Nats per token, marked if only a lower bound is known; a hyphen if it was not measured."""
    if kl is None or "not_measured" in kl:
        return "-"
    return number(kl["mean"]) if "mean" in kl else f"at least {number(kl['mean_lower_bound'])}"


def kl_sentence(kl: Mapping[str, Any]) -> str:
    """A divergence in words."""
    if "not_measured" in kl:
        return f"not measured: {kl['not_measured']}"
    return f"{kl_mean(kl)} nats per token, over {kl['tokens']} tokens of {kl['answers']} answers"
