"""SHA-256 digests, `sha256:<64 hex>`, and the JSON bytes that they are taken of."""

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(obj: Any) -> bytes:
    """The one spelling of a JSON value: UTF-8, sorted keys, separators `,` and `:`.

    Raises ValueError on NaN or infinity, TypeError on what JSON cannot hold.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def bytes_digest(data: bytes) -> str:
    """`sha256:<64 hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def file_digest(path: Path) -> str:
    """`sha256:<64 hex>` of a file's bytes, streamed."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
