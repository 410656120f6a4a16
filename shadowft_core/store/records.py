"""Small documents kept by content beside the deltas: the recipes and verdicts that releases are judged by.

A record lies under the SHA-256 of its bytes, is written once and never removed: a registry anywhere may name it.
"""

import re
from collections.abc import Iterator

from shadowft_core.errors import StoreCorruptError, StoreError
from shadowft_core.files import bytes_digest
from shadowft_core.store.backends import Objects
from shadowft_core.store.manifest import DIGEST

RECORDS = "records"
LARGEST_RECORD = 16 << 20  # bytes; most take 2 to 50 kB


def record_key(digest: str) -> str:
    """Raises StoreError for what is no digest."""
    if not re.match(DIGEST, digest):
        raise StoreError(f"{digest[:80]!r} is not a digest; pass sha256: and 64 hex digits")
    return f"{RECORDS}/{digest.removeprefix('sha256:')}"


def write_record(objects: Objects, raw: bytes) -> str:
    """Put a record where its digest says and return that digest; one that is there already is left alone.

    Raises StoreError when it is too large, StoreConflictError when other bytes lie in its place, StoreUnreachableError.
    """
    if len(raw) > LARGEST_RECORD:
        raise StoreError(f"{objects.location}: a record has {len(raw)} bytes, at most {LARGEST_RECORD} are allowed")
    digest = bytes_digest(raw)
    objects.put_if_absent(record_key(digest), raw, digest)
    return digest


def read_record(objects: Objects, digest: str) -> bytes | None:
    """The bytes with this digest, None when there is no such record.

    Raises StoreCorruptError when other bytes lie in its place, StoreUnreachableError.
    """
    key = record_key(digest)
    found = objects.read(key, LARGEST_RECORD)
    if found is None:
        return None
    if (real := bytes_digest(found[0])) != digest:
        raise StoreCorruptError(
            f"{objects.location}: {key} is damaged: it is {real}; remove it and register the run that made it again"
        )
    return found[0]


def recorded(objects: Objects) -> Iterator[tuple[str, int]]:
    """Digest and bytes of every record, sorted. Raises StoreCorruptError for a key that is no digest."""
    for entry in objects.entries(RECORDS):
        digest = "sha256:" + entry.key.removeprefix(f"{RECORDS}/")
        if not re.match(DIGEST, digest):
            raise StoreCorruptError(
                f"{objects.location}: {entry.key} is no digest of a record; move it out of {RECORDS}/"
            )
        yield digest, entry.size
