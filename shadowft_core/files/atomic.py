"""Files and folders that are complete or absent."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shadowft_core.errors import ShadowError


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, where absent. One called `var` gets mode 700: it holds databases."""
    for place in reversed([folder, *folder.parents]):
        if not place.is_dir():
            place.mkdir(mode=0o700 if place.name == "var" else 0o777, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Make an empty file of mode 600, unless it exists, for a database to fill."""
    make_folder(path.parent)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; the folder is made if absent."""
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `out` when the block ends well, and vanishes when it raises.

    An existing `out` is replaced as a whole. A killed process leaves only `.NAME.partial`, which the next one clears,
    and, killed between the two renames, the former folder as `.NAME.old`, which the next one puts back.
    Raises ShadowError when `out` is a file, holds the current folder, or is being written by another process.
    """
    out = out.resolve()  # a link stays a link to the new folder
    if out.exists() and not out.is_dir():
        raise ShadowError(f"{out}: is a file, a folder is wanted; choose another --out")
    if Path.cwd().is_relative_to(out):
        raise ShadowError(f"{out}: holds the current folder and would be replaced; choose another --out")
    make_folder(out.parent)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    lock = _claim(partial, out)
    try:
        if old.exists() and not out.exists():  # a run killed between its two renames left the former folder aside
            os.rename(old, out)
        for rest in partial.iterdir():
            shutil.rmtree(rest) if rest.is_dir() and not rest.is_symlink() else rest.unlink()
        shutil.rmtree(old, ignore_errors=True)
        yield partial
        for folder, _, files in os.walk(partial, topdown=False):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        if out.exists():
            os.rename(out, old)
        os.rename(partial, out)
        _sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    finally:
        os.close(lock)


def _claim(partial: Path, out: Path) -> int:
    """Make and lock the partial folder; the lock lives as long as the descriptor, so a killed owner releases it."""
    patience = time.monotonic() + 1  # seconds: the workers of an owner that was killed end a moment after it
    while True:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            if time.monotonic() < patience:
                time.sleep(0.02)
                continue
            raise ShadowError(f"{out}: another process is writing it; wait for it or end it") from None
        try:
            if os.path.samestat(os.fstat(lock), os.stat(partial)):
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)  # the former owner finished between our open and our lock


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
