"""Regular expressions of others, in the form that Python's `re` and the library `regex` read alike.

`re` is kept busy for years by some expressions, and cannot be stopped. `regex` can. It reads a few constructs
differently, and writes out counted repeats, so an expression with anything that is rarely needed is refused.
"""

import math
import re

from shadowft_core.limits import PATTERN_CHARACTERS, PATTERN_SECONDS, PATTERN_STEPS

# What both libraries read alike: flags at the start, then letters, escapes, sets, groups and repeats.
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
    """How often a repeat is written out; a float, since a product of many may be larger than any integer is shown."""
    return max([1.0, *(float(number) for number in pair if number)])


def refusal(pattern: str) -> str:
    """Why an expression is not taken: it is malformed, too long, or not read alike; empty if it is taken."""
    if len(pattern) > PATTERN_CHARACTERS:
        return f"{len(pattern)} characters, the limit is {PATTERN_CHARACTERS}"
    if not _ALIKE.fullmatch(pattern):
        return "not well formed, or with a construct that Python's `re` lacks or reads in another way"
    if (steps := len(pattern) * math.prod(map(_count, _COUNTS.findall(pattern)))) > PATTERN_STEPS:
        return f"{steps:.3g} steps with its repeats written out, the limit is {PATTERN_STEPS}"
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
