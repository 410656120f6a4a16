"""Documents of datatrove, `{"text", "id", "metadata": {...}}`, as its JsonlWriter and ParquetWriter write them."""

import json
from typing import Any

DOCUMENT = {"text", "id", "media", "metadata"}


def row_of(value: Any) -> Any:
    """The row in a document: its metadata and its text, or its metadata and the fields of a JSON object in its text.

    Returns any other value unchanged.
    """
    if not isinstance(value, dict) or "text" not in value or not value.keys() <= DOCUMENT:
        return value
    metadata, inside = value.get("metadata"), _object(value["text"])
    if inside is None and not isinstance(metadata, dict):
        return value
    rest = {name: value[name] for name in ("id", "media") if name in value}
    return rest | (metadata if isinstance(metadata, dict) else {}) | (inside or {"text": value["text"]})


def _object(text: Any) -> dict[str, Any] | None:
    """The JSON object in a text; None if it holds anything else."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
