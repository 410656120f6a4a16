"""Read and write JSON files."""

import json
from pathlib import Path
from typing import Any

from shadowft_core.errors import CheckpointError
from shadowft_core.files.atomic import write_atomically
from shadowft_core.files.digests import canonical_json


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError when the file is missing, not JSON, or another JSON value."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; correct the path, or run the stage that writes it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; expected a readable JSON file") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}; correct or replace the file") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, found {type(value).__name__}; correct or replace the file"
        )
    return value


def write_json_atomically(path: Path, obj: Any) -> None:
    """Write `canonical_json(obj)` atomically, without a final newline."""
    write_atomically(path, canonical_json(obj))
