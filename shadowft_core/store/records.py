"""Records: the recipes and verdicts that decide promotions, stored by digest.

A record's key is the SHA-256 of its bytes. It is written once and never removed, because any registry may refer to it.
"""

import re
from collections.abc import Iterator

from shadowft_core.errors import StoreCorruptError, StoreError
from shadowft_core.files import bytes_digest
from shadowft_core.store.backends import Backend
from shadowft_core.store.manifest import DIGEST

RECORDS = "records"
LARGEST_RECORD = 16 << 20  # bytes; most take 2 to 50 kB


def record_key(digest: str) -> str:
    """Key of a record. Raises StoreError for a malformed digest."""
    if not re.match(DIGEST, digest):
        raise StoreError(f"{digest[:80]!r} is not a digest; pass sha256: and 64 hex digits")
    return f"{RECORDS}/{digest.removeprefix('sha256:')}"


def write_record(backend: Backend, raw: bytes) -> str:
    """Store a record and return its digest; an existing one is not replaced.

    Raises StoreError when it is too large, StoreConflictError when its key has other bytes, StoreUnreachableError.
    """
    if len(raw) > LARGEST_RECORD:
        raise StoreError(f"{backend.location}: a record has {len(raw)} bytes; at most {LARGEST_RECORD} are allowed")
    digest = bytes_digest(raw)
    backend.put_if_absent(record_key(digest), raw, digest)
    return digest


def read_record(backend: Backend, digest: str) -> bytes | None:
    """The bytes with this digest; None when there is no such record.

    Raises StoreError for a malformed digest, StoreCorruptError when its key has other bytes, StoreUnreachableError.
    """
    key = record_key(digest)
    found = backend.read(key, LARGEST_RECORD)
    if found is None:
        return None
    if (real := bytes_digest(found[0])) != digest:
        raise StoreCorruptError(
            f"{backend.location}: {key} is damaged: its digest is {real}; remove it and register the run that made it "
            "again"
        )
    return found[0]


def recorded(backend: Backend) -> Iterator[tuple[str, int]]:
    """Digest and bytes of every record, sorted. Raises StoreCorruptError for a key that is not a digest."""
    for entry in backend.entries(RECORDS):
        digest = "sha256:" + entry.key.removeprefix(f"{RECORDS}/")
        if not re.match(DIGEST, digest):
            raise StoreCorruptError(
                f"{backend.location}: {entry.key} is not the key of a record; move it out of {RECORDS}/"
            )
        yield digest, entry.size
