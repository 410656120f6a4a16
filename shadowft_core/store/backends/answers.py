"""Fields of the answers of an S3 server, which may lack them or make no sense."""

import base64
from collections.abc import Mapping
from typing import Any

from shadowft_core.errors import StoreError
from shadowft_core.store.backends.interface import Backend


def field(backend: Backend, answer: Mapping[str, Any], name: str, key: str) -> Any:
    """A field that every server must return. Raises StoreError if it is missing."""
    if (found := answer.get(name)) is None:
        raise StoreError(
            f"{backend.location}: the server returns no {name} for {key or 'its list'}; use another server"
        )
    return found


def sha256_of(answer: Mapping[str, Any]) -> str | None:
    """The digest that the store computed; None if it has none, or that of the parts of a multipart upload."""
    try:
        found = base64.b64decode(answer.get("ChecksumSHA256") or "", validate=True)
    except ValueError:
        return None
    return f"sha256:{found.hex()}" if len(found) == 32 else None
