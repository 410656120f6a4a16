"""The interface of a backend, and the checks and messages that both backends share."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError

BLOCK = 1 << 18  # bytes; with 1 MiB, a download spends twice the system time, since each block is mapped again
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Head:
    """Metadata of an object: bytes, digest if the store records it, version tag, time.

    `modified` is the POSIX time of the write in seconds, by the store's clock; S3 returns whole seconds.
    """

    size: int
    digest: str | None
    tag: str
    modified: float


@dataclass(frozen=True)
class Entry:
    """A line of a listing: key, bytes, and the time of the write as in Head."""

    key: str
    size: int
    modified: float


class Backend(Protocol):
    """Holds objects under keys like `objects/sha256/ab/...`. Every digest is `sha256:<64 hex>`.

    All methods raise StoreUnreachableError (no answer within seconds, wrong credentials, no such bucket) and
    StoreError.
    """

    location: str
    """the store's address for messages"""

    def put_if_absent(self, key: str, data: bytes, digest: str, ask: bool = True) -> bool:
        """Write `data` unless the key exists; True when the bytes were sent, False when the key already had them.

        The outcome never depends on `ask`. With `ask=False`, S3 is not queried for the key before the upload: cheaper
        when the key is probably absent, wasteful when it exists.

        Raises StoreConflictError when the key has other content, StoreCorruptError when `digest` is not that of `data`.
        """

    def get(self, key: str, size: int, digest: str, sink: BinaryIO) -> None:
        """Stream an object of a known size into `sink`, from its current position, and verify it.

        Raises StoreError when the object is missing, StoreCorruptError when its digest differs; the sink may then hold
        wrong bytes and must be discarded.
        """

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        """Content and version tag of a small object; None when absent. Raises StoreCorruptError above `limit` bytes."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from offset `start`. Raises StoreError when the object is missing or too short."""

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        """Replace the version `tag` (None: the key must be absent) by `data`; return the new tag.

        Raises StoreConflictError when the key has another version.
        """

    def head(self, key: str) -> Head | None:
        """Metadata of an object; None when the key is absent."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """All objects below `prefix` (whole path segments, or empty), sorted by key."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys of `entries`."""

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is not an error.

        Only `prune`, the store's clock and a training, its own checkpoints, remove objects.
        """

    def discard_unfinished(self, before: float, dry_run: bool = False) -> int:
        """Remove temporary files that killed writers left before that POSIX time; return their bytes.

        A dry run only counts them.
        """


def checked(key: str) -> str:
    if len(key) > 300 or not KEY.fullmatch(key):
        raise StoreError(f"object key {key[:80]!r}: expected plain path segments, at most 300 characters in all")
    return key


class Damaged(Exception):
    """The bytes received are not those requested; a retry may succeed."""


def stream(blocks: Iterator[bytes], size: int, digest: str, sink: BinaryIO) -> None:
    """Copy blocks into the sink. Raises Damaged as soon as they cannot be the object."""
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


def require_same(backend: Backend, key: str, size: int, digest: str, head: Head | None = None) -> None:
    """Raise StoreConflictError unless `key` has exactly these bytes. Computes the digest if the store records none."""
    head = head or backend.head(key)
    if head is not None and head.size == size and head.digest in (None, digest):
        if head.digest == digest:
            return
        try:
            with open(os.devnull, "wb") as sink:
                backend.get(key, size, digest, sink)
            return
        except StoreCorruptError:
            pass
    found = f"{head.size} bytes, {head.digest or 'other content'}" if head else "nothing now"
    raise StoreConflictError(
        f"{backend.location}: {key} holds {found}, expected {size} bytes, {digest}; nothing was overwritten. "
        "Remove that object if it is damaged, or use another store"
    )


def missing(backend: Backend, key: str) -> StoreError:
    return StoreError(f"{backend.location}: {key} is missing; check store.uri, or publish the delta again")


def ends_early(backend: Backend, key: str, start: int, length: int) -> StoreError:
    return StoreError(
        f"{backend.location}: {key} does not have {length} bytes from offset {start}; it was truncated or replaced, "
        "upload it again"
    )


def moved(backend: Backend, key: str) -> StoreConflictError:
    return StoreConflictError(f"{backend.location}: another process changed {key} meanwhile; read it again and repeat")


def corrupt(backend: Backend, key: str, digest: str, found: Exception) -> StoreCorruptError:
    return StoreCorruptError(
        f"{backend.location}: {key} is damaged: found {found}, expected {digest}; remove it and publish the delta again"
    )
