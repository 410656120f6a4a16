"""Files that hold one JSON value."""

import json
from pathlib import Path
from typing import Any

from shadowft_core.errors import CheckpointError
from shadowft_core.files.atomic import write_atomically
from shadowft_core.files.digests import canonical_json


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; a readable JSON file is wanted") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, a JSON object is wanted")
    return value


def write_json_atomically(path: Path, obj: Any) -> None:
    """Write `canonical_json(obj)`, without a final newline, as `write_atomically` does."""
    write_atomically(path, canonical_json(obj))
