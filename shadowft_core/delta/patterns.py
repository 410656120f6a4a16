"""Regular expressions in the settings of an adapter, matched within a limit of time.

PEFT matches them with Python's `re`, which some expressions keep busy for years and which cannot be stopped. The
library `regex` can. It reads a few constructs differently, and writes out counted repeats, so an expression with
anything that PEFT's users have no need for is refused.
"""

import math
import re
import time
from pathlib import Path
from typing import Any

from shadowft_core.errors import AdapterError
from shadowft_core.limits import PATTERN_CHARACTERS, PATTERN_SECONDS, PATTERN_STEPS, PATTERNS_SECONDS

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


class Patterns:
    """Matches the expressions of one adapter. All of them together have `PATTERNS_SECONDS`."""

    def __init__(self, path: Path) -> None:
        """`path` is the file that errors name."""
        self._path, self._spent = path, 0.0
        self._compiled: dict[str, Any] = {}

    def check(self, field: str, pattern: str) -> None:
        """Raise AdapterError for an expression that is malformed, too long, or not read alike by `re`."""
        why = ""
        if len(pattern) > PATTERN_CHARACTERS:
            why = f"{len(pattern)} characters, the limit is {PATTERN_CHARACTERS}"
        elif not _ALIKE.fullmatch(pattern):
            why = "not well formed, or with a construct that Python's `re` lacks or reads in another way"
        elif (steps := len(pattern) * math.prod(map(_count, _COUNTS.findall(pattern)))) > PATTERN_STEPS:
            why = f"{steps:.3g} steps with its repeats written out, the limit is {PATTERN_STEPS}"
        if why:
            raise self._refused(pattern, why, f"{field}: ")
        self._get(pattern, f"{field}: ")

    def matches(self, pattern: str, module: str, around: str = "{}") -> Any:
        """The match of the whole of `module` with `pattern`, put into the expression `around`; None without one.

        Raises AdapterError when one match, or all together, take too long.
        """
        begun = time.thread_time()
        try:
            found = self._get(around.replace("{}", pattern)).fullmatch(module, timeout=PATTERN_SECONDS)
        except TimeoutError:
            raise self._slow(pattern, f"more than {PATTERN_SECONDS:g} s for {module:.80}") from None
        self._add(begun, pattern)
        return found

    def _get(self, expression: str, field: str = "") -> Any:
        if expression not in self._compiled:
            import regex  # only an adapter with expressions needs it

            begun = time.thread_time()
            try:
                self._compiled[expression] = regex.compile(expression)
            except (regex.error, RecursionError) as error:
                raise self._refused(expression, str(error) or type(error).__name__, field) from None
            self._add(begun, expression)
        return self._compiled[expression]

    def _add(self, begun: float, pattern: str) -> None:
        self._spent += time.thread_time() - begun
        if self._spent > PATTERNS_SECONDS:
            raise self._slow(
                pattern, f"the file's patterns took {self._spent:.1f} s, the limit is {PATTERNS_SECONDS:g}"
            )

    def _slow(self, pattern: str, why: str) -> AdapterError:
        return AdapterError(f"{self._path}: pattern {pattern!r:.80}: {why}; name the modules in a list")

    def _refused(self, pattern: str, why: str, field: str) -> AdapterError:
        return AdapterError(f"{self._path}: {field}pattern {pattern!r:.80}: {why}; name the modules in a list")
