"""Prints answers and errors. With --json, all have the same envelope; docs/json.md lists the kinds and their fields."""

import sys
from collections.abc import Mapping
from typing import Any


def print_answer(kind: str, answer: Mapping[str, Any]) -> None:
    """Print an answer on stdout: one line of canonical JSON with `format` and `kind` added."""
    print(_line(kind, answer))


def print_error(name: str, message: str, exit_code: int, as_json: bool) -> None:
    """Print an error on stderr: `error: MESSAGE`, or the envelope of kind `error`. `name` is the error's class."""
    message = message.encode("utf-8", "backslashreplace").decode()  # a file name may have bytes that are not text
    if as_json:
        line = _line("error", {"error": name, "message": message, "exit_code": exit_code})
    else:
        line = f"error: {message}"
    print(line, file=sys.stderr)


def _line(kind: str, fields: Mapping[str, Any]) -> str:
    from shadowft_core.files import canonical_json

    return canonical_json({**fields, "format": 1, "kind": kind}).decode()
