"""What objects promise, and the checks and messages that both kinds of place share."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError

BLOCK = 1 << 18  # bytes; blocks of 1 MiB cost a download twice the time in the system: each is mapped anew
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Head:
    """What is known of an object without reading it: bytes, digest if the store keeps it, version tag, time.

    `modified` is the POSIX time of the write in seconds, by the store's clock; S3 gives whole seconds.
    """

    size: int
    digest: str | None
    tag: str
    modified: float


@dataclass(frozen=True)
class Entry:
    """A line of a listing: key, bytes, and when it was written, as in Head."""

    key: str
    size: int
    modified: float


class Objects(Protocol):
    """One place that holds objects under keys like `objects/sha256/ab/...`. Every digest is `sha256:<64 hex>`.

    All methods raise StoreUnreachableError (no answer within seconds, wrong credentials, no such bucket) and
    StoreError.
    """

    location: str
    """How people are told where it is."""

    def put_if_absent(self, key: str, data: bytes, digest: str, ask: bool = True) -> bool:
        """Write `data` unless the key exists; True when the bytes were sent, False when they were already there.

        The outcome never depends on `ask`. Without it, a place that has to be sent the bytes to find out is not asked
        for the key first: cheaper when the key is known to be absent, wasteful when it is not.

        Raises StoreConflictError when the key holds other content, StoreCorruptError when `digest` is not that of
        `data`.
        """

    def get(self, key: str, size: int, digest: str, sink: BinaryIO) -> None:
        """Stream an object of a known size into `sink`, from where it stands, and verify it.

        Raises StoreError when the object is missing, StoreCorruptError when it is not what the digest says; the sink
        may then hold wrong bytes and must be dropped.
        """

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        """Content and version tag of a small object, None when it is absent. StoreCorruptError above `limit` bytes."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on. Raises StoreError when the object is missing or ends before that."""

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        """Replace the version `tag` (None: the key must be absent) by `data`; returns the new tag.

        Raises StoreConflictError when the key has moved on.
        """

    def head(self, key: str) -> Head | None:
        """Size, digest, tag and time, or None when the key is absent."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """All objects below `prefix` (a whole number of path segments, or empty), sorted by key."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys of `entries`."""

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error. Only collecting garbage does this."""

    def discard_unfinished(self, before: float) -> int:
        """Remove what writers killed before that POSIX time left outside any key; returns the bytes."""


def checked(key: str) -> str:
    if len(key) > 300 or not KEY.fullmatch(key):
        raise StoreError(f"object key {key[:80]!r} is not allowed: plain path segments of at most 300 characters are")
    return key


class Damaged(Exception):
    """Bytes arrived that are not the ones asked for; worth another attempt."""


def stream(blocks: Iterator[bytes], size: int, digest: str, sink: BinaryIO) -> None:
    """Copy blocks into the sink; raises Damaged as soon as they cannot be the object any more."""
    start, seen, sha = sink.tell(), 0, hashlib.sha256()
    for block in blocks:
        seen += len(block)
        if seen > size:
            break
        sha.update(block)
        sink.write(block)
    if seen != size or sha.hexdigest() != digest.removeprefix("sha256:"):
        sink.seek(start)
        raise Damaged(f"{seen} bytes, sha256:{sha.hexdigest()}" if seen <= size else f"more than {size} bytes")


def require_same(objects: Objects, key: str, size: int, digest: str, head: Head | None = None) -> None:
    """Raises StoreConflictError unless `key` holds exactly these bytes. A checksum the store does not keep is
    computed.
    """
    head = head or objects.head(key)
    if head is not None and head.size == size and head.digest in (None, digest):
        if head.digest == digest:
            return
        try:
            with open(os.devnull, "wb") as nowhere:
                objects.get(key, size, digest, nowhere)
            return
        except StoreCorruptError:
            pass
    found = f"{head.size} bytes, {head.digest or 'other content'}" if head else "nothing any more"
    raise StoreConflictError(
        f"{objects.location}: {key} holds {found}, expected {size} bytes, {digest}; nothing was overwritten. "
        "Remove that object if it is damaged, or use another store"
    )


def missing(objects: Objects, key: str) -> StoreError:
    return StoreError(f"{objects.location}: {key} is missing; check store.uri, or publish the delta again")


def ends_early(objects: Objects, key: str, start: int, length: int) -> StoreError:
    return StoreError(f"{objects.location}: {key} holds no {length} bytes from byte {start} on; it was cut or replaced")


def moved(objects: Objects, key: str) -> StoreConflictError:
    return StoreConflictError(
        f"{objects.location}: {key} was changed by someone else meanwhile; read it again and repeat"
    )


def corrupt(objects: Objects, key: str, digest: str, found: Exception) -> StoreCorruptError:
    return StoreCorruptError(
        f"{objects.location}: {key} is damaged: found {found}, expected {digest}; remove it and publish the delta again"
    )
