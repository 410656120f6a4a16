"""Backend in a local folder."""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shadowft_core.errors import StoreCorruptError
from shadowft_core.files import bytes_digest, make_folder
from shadowft_core.limits import OBJECT_BYTES
from shadowft_core.store.backends.interface import (
    BLOCK,
    KEY,
    Damaged,
    Entry,
    Head,
    checked,
    corrupt,
    ends_early,
    missing,
    moved,
    require_same,
    stream,
)

_UNFINISHED = ".tmp-"


class FolderBackend:
    """Objects as files. A writer gets a key by renaming a complete, synced file while it holds one file lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        make_folder(self.root)
        with open(self._opened(self.root / ".lock", ".lock", os.O_WRONLY | os.O_CREAT), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _opened(self, path: Path, key: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a regular file. Raises FileNotFoundError, StoreCorruptError for anything else in its place.

        It follows no link, and waits for nothing: a pipe would block.
        """
        try:
            handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._odd(key, str(error.strerror)) from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise self._odd(key, "a folder, pipe or device")
        return handle

    def _odd(self, key: str, found: str) -> StoreCorruptError:
        return StoreCorruptError(
            f"{self.location}: {key} is no plain file or folder ({found}); move it away: a store has no links, pipes "
            "or devices"
        )

    def _place(self, key: str) -> Path:
        """The path of an object. Raises StoreCorruptError if a folder above it is something else."""
        above, _, name = checked(key).rpartition("/")
        return self._folder(above) / name

    def _folder(self, prefix: str) -> Path:
        """The path of a folder, which may not exist. Raises StoreCorruptError if it is reached through a link."""
        path = self.root
        for name in prefix.split("/") if prefix else ():
            path /= name
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    raise self._odd(path.relative_to(self.root).as_posix(), "expected a folder")
        return path

    def _read(self, key: str) -> BinaryIO:
        """An object, opened. Raises FileNotFoundError, StoreCorruptError if it is no plain file."""
        return open(self._opened(self._place(key), key), "rb")

    @contextmanager
    def _written(self, path: Path, data: bytes) -> Iterator[Path]:
        """`data` in a synced temporary file in the folder of `path`; removed unless the caller renames it."""
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    @staticmethod
    def _name(temporary: Path, path: Path) -> None:
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def put_if_absent(self, key: str, data: bytes, digest: str, ask: bool = True) -> bool:
        path = self._place(key)
        found = bytes_digest(data)
        if found != digest:
            raise StoreCorruptError(f"{self.location}: {key} refused: its bytes have digest {found}, expected {digest}")
        if not os.path.lexists(path):
            with self._written(path, data) as temporary, self._lock():
                if not os.path.lexists(path):
                    self._name(temporary, path)
                    return True
        require_same(self, key, len(data), digest)
        return False

    def get(self, key: str, size: int, digest: str, sink: BinaryIO) -> None:
        try:
            with self._read(key) as file:
                if (found := os.fstat(file.fileno()).st_size) != size:
                    raise Damaged(f"{found} bytes, not {size}")
                stream(iter(lambda: file.read(BLOCK), b""), size, digest, sink)
        except FileNotFoundError:
            raise missing(self, key) from None
        except Damaged as error:
            raise corrupt(self, key, digest, error) from None

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        try:
            with self._read(key) as file:
                data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
        except FileNotFoundError:
            return None
        if len(data) > limit:
            raise StoreCorruptError(
                f"{self.location}: {key} is larger than the {limit} bytes allowed for it; remove it if it is damaged"
            )
        return data, bytes_digest(data)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        try:
            with self._read(key) as file:
                data = os.pread(file.fileno(), length, start)
        except FileNotFoundError:
            raise missing(self, key) from None
        if len(data) != length:
            raise ends_early(self, key, start, length)
        return data

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        path = self._place(key)
        with self._written(path, data) as temporary, self._lock():
            head = self.head(key)
            if (head.tag if head else None) != tag:
                raise moved(self, key)
            self._name(temporary, path)
        return bytes_digest(data)

    def head(self, key: str) -> Head | None:
        sha, size = hashlib.sha256(), 0
        try:
            with self._read(key) as file:
                about = os.fstat(file.fileno())
                if about.st_size > OBJECT_BYTES:
                    raise StoreCorruptError(
                        f"{self.location}: {key} has {about.st_size} bytes, the limit is {OBJECT_BYTES}; remove it"
                    )
                while block := file.read(BLOCK):
                    sha.update(block)
                    size += len(block)
        except FileNotFoundError:
            return None
        digest = "sha256:" + sha.hexdigest()
        return Head(size, digest, digest, about.st_mtime)

    def entries(self, prefix: str) -> Iterator[Entry]:
        folder = self._folder(checked(prefix) if prefix else "")
        found = []
        for path in folder.rglob("*"):
            key = path.relative_to(self.root).as_posix()
            with suppress(FileNotFoundError):  # removed while we list
                about = os.lstat(path)
                if not KEY.fullmatch(key) or stat.S_ISDIR(about.st_mode):
                    continue
                if not stat.S_ISREG(about.st_mode):
                    raise self._odd(key, "a link, pipe, socket or device")
                found.append(Entry(key, about.st_size, about.st_mtime))
        return iter(sorted(found, key=lambda entry: entry.key))

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def delete(self, key: str) -> None:
        with self._lock():
            self._place(key).unlink(missing_ok=True)

    def discard_unfinished(self, before: float, dry_run: bool = False) -> int:
        removed = 0
        for path in self.root.rglob(f"{_UNFINISHED}*"):
            with suppress(FileNotFoundError):  # its writer has just finished
                about = os.lstat(path)
                if stat.S_ISREG(about.st_mode) and about.st_mtime < before:
                    if not dry_run:
                        path.unlink()
                    removed += about.st_size
        return removed
