"""Regular expressions from others, limited to what Python's `re` and the library `regex` interpret alike.

Some expressions keep `re` busy for years, and it cannot be interrupted. `regex` has a timeout. But it interprets a few
constructs differently and expands counted repeats, so an expression with rarely needed constructs is refused.
"""

import math
import re

from shadowft_core.limits import PATTERN_CHARACTERS, PATTERN_SECONDS, PATTERN_STEPS

# What both libraries interpret alike: flags at the start, then letters, escapes, sets, groups and repeats.
_ALIKE = re.compile(
    r"""(?:\(\?[aimsu]+\))?+(?:
        [^\\\[\](){}?*+|] | [|*+?\]}]
      | \\[^A-Za-z0-9] | \\[AbBdDsSwWZafnrtv] | \\[1-9](?![0-9]) | \\x[0-9A-Fa-f]{2} | \\u[0-9A-Fa-f]{4}
      | \[\^?+\]?+ (?: [^\[\]\\] | \\[^A-Za-z0-9] | \\[bdDsSwWafnrtv] )*+ \]
      | \((?![?*]) | \(\?(?: : | [=!>] | <[=!] | P<[A-Za-z_]\w*> | P=[A-Za-z_]\w*(?=\)) ) | \)
      | \{\d{1,6}(?:,\d{0,6})?\} | \{,\d{1,6}\}
    )*+""",
    re.VERBOSE,
)
_COUNTS = re.compile(r"\{(\d*),?(\d*)\}")


def _count(pair: tuple[str, str]) -> float:
    """How often a repeat is expanded; a float, since the product of many may be too long to print as an integer."""
    return max([1.0, *(float(number) for number in pair if number)])


def refusal(pattern: str) -> str:
    """Why an expression is refused: it is malformed, too long, or interpreted differently. Empty if it is accepted."""
    if len(pattern) > PATTERN_CHARACTERS:
        return f"{len(pattern)} characters, the limit is {PATTERN_CHARACTERS}"
    if not _ALIKE.fullmatch(pattern):
        return "malformed, or with a construct that Python's `re` lacks or interprets differently"
    if (steps := len(pattern) * math.prod(map(_count, _COUNTS.findall(pattern)))) > PATTERN_STEPS:
        return f"up to {steps:.3g} characters once its repeats are expanded, the limit is {PATTERN_STEPS}"
    return ""


def substitute(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    """`re.sub` within limits. Raises ValueError with the reason if one is exceeded, or if there is an error."""
    import regex  # few programs need it

    if why := refusal(pattern):
        raise ValueError(f"pattern {pattern!r:.80}: {why}")
    try:
        return str(regex.sub(pattern, replacement, text, count=count, timeout=PATTERN_SECONDS))
    except TimeoutError:
        raise ValueError(f"pattern {pattern!r:.80}: more than {PATTERN_SECONDS:g} s for {text[:80]!r}") from None
    except (regex.error, RecursionError, OverflowError, IndexError) as error:
        raise ValueError(f"pattern {pattern!r:.80}: {str(error) or type(error).__name__}") from None
