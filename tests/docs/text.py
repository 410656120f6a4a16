"""Plain text from the code as Markdown."""

import re
from collections.abc import Iterable, Sequence


def prose(text: str) -> str:
    """Text of one paragraph."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already, or an empty text if it has no rows."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]) + "\n" if lines else ""


def code(text: object) -> str:
    """A value as code."""
    return f"`{text}`"


def codes(text: str, separator: str) -> str:
    """Alternatives, each as code: no `|` may stand in the code of a table's cell."""
    return ", ".join(map(code, filter(None, text.split(separator))))


def _escaped(text: str) -> str:
    return re.sub(r"([*<\[\]])", r"\\\1", text)
