"""Backend in a local folder."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shadowft_core.errors import StoreCorruptError
from shadowft_core.files import bytes_digest, make_folder
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
        with open(self.root / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

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
        path = self.root / checked(key)
        found = bytes_digest(data)
        if found != digest:
            raise StoreCorruptError(f"{self.location}: {key} refused: its bytes have digest {found}, expected {digest}")
        if not path.exists():
            with self._written(path, data) as temporary, self._lock():
                if not path.exists():
                    self._name(temporary, path)
                    return True
        require_same(self, key, len(data), digest)
        return False

    def get(self, key: str, size: int, digest: str, sink: BinaryIO) -> None:
        try:
            with open(self.root / checked(key), "rb") as file:
                stream(iter(lambda: file.read(BLOCK), b""), size, digest, sink)
        except FileNotFoundError:
            raise missing(self, key) from None
        except Damaged as error:
            raise corrupt(self, key, digest, error) from None

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        try:
            with open(self.root / checked(key), "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        if len(data) > limit:
            raise StoreCorruptError(
                f"{self.location}: {key} is larger than the {limit} bytes allowed for it; remove it if it is damaged"
            )
        return data, bytes_digest(data)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        try:
            with open(self.root / checked(key), "rb") as file:
                data = os.pread(file.fileno(), length, start)
        except FileNotFoundError:
            raise missing(self, key) from None
        if len(data) != length:
            raise ends_early(self, key, start, length)
        return data

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        path = self.root / checked(key)
        with self._written(path, data) as temporary, self._lock():
            head = self.head(key)
            if (head.tag if head else None) != tag:
                raise moved(self, key)
            self._name(temporary, path)
        return bytes_digest(data)

    def head(self, key: str) -> Head | None:
        sha, size = hashlib.sha256(), 0
        try:
            with open(self.root / checked(key), "rb") as file:
                while block := file.read(BLOCK):
                    sha.update(block)
                    size += len(block)
                modified = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        digest = "sha256:" + sha.hexdigest()
        return Head(size, digest, digest, modified)

    def entries(self, prefix: str) -> Iterator[Entry]:
        folder = self.root / checked(prefix) if prefix else self.root
        found = []
        for path in folder.rglob("*"):
            key = path.relative_to(self.root).as_posix()
            with suppress(FileNotFoundError):  # removed while we list
                if KEY.fullmatch(key) and path.is_file():
                    about = path.stat()
                    found.append(Entry(key, about.st_size, about.st_mtime))
        return iter(sorted(found, key=lambda entry: entry.key))

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def delete(self, key: str) -> None:
        with self._lock():
            (self.root / checked(key)).unlink(missing_ok=True)

    def discard_unfinished(self, before: float, dry_run: bool = False) -> int:
        removed = 0
        for path in self.root.rglob(f"{_UNFINISHED}*"):
            with suppress(FileNotFoundError):  # its writer has just finished
                about = path.stat()
                if about.st_mtime < before:
                    if not dry_run:
                        path.unlink()
                    removed += about.st_size
        return removed
