"""Prints lines, answers and errors. With --json, answers and errors have the same envelope; docs/json.md lists the
kinds and their fields.
"""

import sys
from collections.abc import Mapping
from typing import Any

from shadowft_core.errors import one_line, plain


def say(line: str, *, err: bool = False) -> None:
    """Print one line on stdout, or stderr with `err`, whatever names and texts of others are in it."""
    print(plain(line, "\t"), file=sys.stderr if err else sys.stdout)


def print_answer(kind: str, answer: Mapping[str, Any]) -> None:
    """Print an answer on stdout: one line of canonical JSON with `format` and `kind` added."""
    print(_line(kind, answer))


def print_error(name: str, message: str, exit_code: int, as_json: bool) -> None:
    """Print an error on stderr: `error: MESSAGE`, or the envelope of kind `error`. `name` is the error's class."""
    message = one_line(message)
    if as_json:
        line = _line("error", {"error": name, "message": message, "exit_code": exit_code})
    else:
        line = f"error: {message}"
    print(line, file=sys.stderr)


def _line(kind: str, fields: Mapping[str, Any]) -> str:
    from shadowft_core.files import canonical_json

    return canonical_json(_as_text({**fields, "format": 1, "kind": kind})).decode()


def _as_text(value: Any) -> Any:
    """The same JSON value, with escapes for the bytes of file names that are no text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_as_text(key): _as_text(one) for key, one in value.items()}
    return [_as_text(one) for one in value] if isinstance(value, list | tuple) else value
