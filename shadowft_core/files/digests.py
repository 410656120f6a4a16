"""SHA-256 digests, written `sha256:<64 hex>`, and canonical JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(obj: Any) -> bytes:
    """Serialise a JSON value in its only valid form: UTF-8, sorted keys, separators `,` and `:`.

    Raises ValueError for NaN or infinity, TypeError for a type that JSON lacks.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def bytes_digest(data: bytes) -> str:
    """Return `sha256:<64 hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def file_digest(path: Path) -> str:
    """Return `sha256:<64 hex>` of a file, read in blocks."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
