"""Cuts the files of a delta into chunks, and sends or receives several chunks at once."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from shadowft_core.errors import DeltaError, say
from shadowft_core.files import bytes_digest, threaded
from shadowft_core.store.backends import Backend
from shadowft_core.store.manifest import CERTIFICATE, LARGEST_CHUNK, OBJECTS, File, Manifest, object_key
from shadowft_core.weights import read_header

THREADS = 4
SMALL = 1 << 16  # bytes; tensors up to this size share chunks, because a request costs more than they do
LISTED = 10  # keys of a listing to read for each piece to send
REPORT_EVERY = 5.0  # seconds

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """A range of a file that is sent as one chunk."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the range. Raises DeltaError when the file has become shorter."""
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) != self.size:
            raise DeltaError(
                f"{self.path}: expected at least {self.offset + self.size} bytes, found {self.offset + len(data)}; "
                "it changed while it was published, publish it again"
            )
        return data


def cut(path: Path, largest: int) -> list[Piece]:
    """The pieces of a delta's file, in order, of at most `largest` bytes each.

    A safetensors header is a piece. Every tensor starts a new piece, so that a tensor that two deltas share is stored
    once, wherever it is in the file; but consecutive tensors of at most SMALL bytes share a piece. delta.json is one
    piece.
    Raises CheckpointError for a malformed safetensors file, DeltaError for a delta.json above 256 MiB.
    """
    if path.name == CERTIFICATE:
        size = path.stat().st_size
        if size > LARGEST_CHUNK:
            raise DeltaError(f"{path}: {size} bytes, at most {LARGEST_CHUNK} are allowed; extract fewer tensors")
        return [Piece(path, 0, size)]
    header, tensors = read_header(path)
    runs, together = [len(header)], 0
    for size in (info.nbytes for info in tensors.values()):
        if size > SMALL or together + size > largest:
            runs.append(together)
            together = 0
        if size > SMALL:
            runs.append(size)
        else:
            together += size
    pieces, offset = [], 0
    for run in (*runs, together):
        pieces += [Piece(path, offset + start, min(largest, run - start)) for start in range(0, run, largest)]
        offset += run
    return pieces


class Progress:
    """Reports the progress of a long transfer on stderr. Threads may share it."""

    def __init__(self, what: str, total: int) -> None:
        self.moved = 0
        self._what, self._total, self._done = what, total, 0
        self._started = self._reported = time.monotonic()
        self._lock = threading.Lock()

    def add(self, done: int, moved: int) -> None:
        """Count `done` bytes as complete; `moved` of them were sent or received."""
        with self._lock:
            self._done += done
            self.moved += moved
            now = time.monotonic()
            if now - self._reported > REPORT_EVERY:
                self._reported, rate = now, self._done / (now - self._started)
                say(
                    f"{self._what}: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB, {rate / 1e6:.0f} MB/s, "
                    f"{(self._total - self._done) / rate:.0f} s left"
                )


def each(act: Callable[..., T], work: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Yield the results of `act` in order, from THREADS threads; the first error stops them."""
    return threaded(lambda arguments: act(*arguments), work, THREADS)


def send(pieces: list[Piece], backend: Backend, progress: Progress) -> list[str]:
    """Send every piece that the store lacks; return the digests of all."""
    # A page of a listing has 1000 keys: at most one request per 100 pieces, instead of one per piece.
    limit = LISTED * len(pieces)
    listed = list(islice(backend.list(OBJECTS), limit))
    present, last = set(listed), listed[-1] if len(listed) == limit else "~"  # keys after `last` were not listed

    def one(piece: Piece) -> str:
        data = piece.read()
        digest = bytes_digest(data)
        key = object_key(digest)
        sent = backend.put_if_absent(key, data, digest, ask=key in present or key > last)
        progress.add(piece.size, piece.size if sent else 0)
        return digest

    return list(each(one, ((piece,) for piece in pieces)))


def send_missing(pieces: list[Piece], digests: list[str], backend: Backend, progress: Progress) -> None:
    """Send again the pieces that were removed since `send`. Raises DeltaError when a file has changed since."""

    def one(piece: Piece, digest: str) -> None:
        if backend.head(object_key(digest)) is None:
            data = piece.read()
            if (found := bytes_digest(data)) != digest:
                raise DeltaError(
                    f"{piece.path}: bytes {piece.offset} to {piece.offset + piece.size} had digest {digest}, now "
                    f"{found}; the file changed while it was published, publish it again"
                )
            backend.put_if_absent(object_key(digest), data, digest)
            progress.add(0, piece.size)

    for _ in each(one, zip(pieces, digests, strict=True)):
        pass


def receive(manifest: Manifest, backend: Backend, folder: Path, progress: Progress) -> None:
    """Write the files of a delta into an empty folder, and verify each chunk as it arrives.

    Raises StoreError for a missing chunk, StoreCorruptError for a damaged one.
    """

    def one(name: str, digest: str, size: int, offset: int) -> None:
        with (folder / name).open("r+b") as sink:
            sink.seek(offset)
            backend.get(object_key(digest), size, digest, sink)
            sink.flush()
            os.fdatasync(sink.fileno())  # overlaps with other downloads, which shortens the final sync
        progress.add(size, size)

    for name, file in manifest.files.items():
        with (folder / name).open("xb") as empty:
            empty.truncate(file.bytes)
    for _ in each(one, places(manifest)):
        pass


def places(manifest: Manifest) -> Iterator[tuple[str, str, int, int]]:
    """(file name, digest, bytes, offset in the file) of every chunk."""
    for name, file in manifest.files.items():
        offset = 0
        for digest, size in file.chunks:
            yield name, digest, size, offset
            offset += size


def differs(path: Path, file: File) -> str | None:
    """None when a local file has the chunks of `file`, else a description of the difference with both values."""
    if (length := path.stat().st_size) != file.bytes:
        return f"{file.bytes} bytes in the store, {length} here"
    with path.open("rb") as local:
        for number, (digest, size) in enumerate(file.chunks):
            if (found := bytes_digest(local.read(size))) != digest:
                return f"chunk {number} is {digest} in the store, {found} here"
    return None
