"""Matches the regular expressions in an adapter's settings within a time limit, which PEFT does not have."""

import time
from pathlib import Path
from typing import Any

from shadowft_core.errors import AdapterError
from shadowft_core.files.patterns import refusal
from shadowft_core.limits import PATTERN_SECONDS, PATTERNS_SECONDS


class Patterns:
    """Matches the expressions of one adapter. All of them together have `PATTERNS_SECONDS`."""

    def __init__(self, path: Path) -> None:
        """Errors name the file `path`."""
        self._path, self._spent = path, 0.0
        self._compiled: dict[str, Any] = {}

    def check(self, field: str, pattern: str) -> None:
        """Raise AdapterError for an expression that is malformed, too long, or interpreted differently by `re`."""
        if why := refusal(pattern):
            raise self._refused(pattern, why, f"{field}: ")
        self._get(pattern, f"{field}: ")

    def matches(self, pattern: str, module: str, around: str = "{}") -> Any:
        """The match of all of `module` with `pattern`, which is put into the expression `around`; None if none.

        Raises AdapterError when one match takes too long, or all of them together do.
        """
        begun = time.thread_time()
        try:
            found = self._get(around.replace("{}", pattern)).fullmatch(module, timeout=PATTERN_SECONDS)
        except TimeoutError:
            raise self._slow(pattern, f"more than {PATTERN_SECONDS:g} s to match {module:.80}") from None
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
