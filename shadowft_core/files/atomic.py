"""Atomic writes: a file or folder is complete or absent, also after a crash."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shadowft_core.errors import InputError, ShadowError
from shadowft_core.files.regular import real_path


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents. A folder named `var` gets mode 700 because it holds databases."""
    for place in reversed([folder, *folder.parents]):
        if not place.is_dir():
            place.mkdir(mode=0o700 if place.name == "var" else 0o777, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Create an empty file of mode 600 for a database, unless the file exists."""
    make_folder(path.parent)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part. Creates the parent folder.

    Raises InputError for a path without a last name, such as `.` and `/`.
    """
    if not path.name:
        raise InputError(f"{path}: a folder; name a file to write")
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
    sync(path.parent)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield an empty sibling folder, renamed to `out` when the block succeeds and deleted when it raises.

    An existing `out` is replaced as a whole. A killed process leaves `.NAME.partial`, which the next one empties. If it
    was killed between the two renames, it also leaves the previous folder as `.NAME.old`, which the next one restores.
    Raises ShadowError when `out` is a file, contains the current folder, or is being written by another process.
    """
    out = real_path(out)  # a symbolic link keeps pointing to the new folder
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        what = "a link to itself" if out.is_symlink() else "a file"
        raise ShadowError(f"{out}: is {what}, expected a folder; choose another --out")
    if Path.cwd().is_relative_to(out):
        raise ShadowError(f"{out}: contains the current folder and would be replaced; choose another --out")
    make_folder(out.parent)
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    lock = claim_folder(partial, out)
    try:
        if old.exists() and not out.exists():  # the last run was killed between its two renames
            os.rename(old, out)
        for stale in partial.iterdir():
            shutil.rmtree(stale) if stale.is_dir() and not stale.is_symlink() else stale.unlink()
        shutil.rmtree(old, ignore_errors=True)
        yield partial
        for folder, _, files in os.walk(partial, topdown=False):
            for name in files:
                sync(Path(folder, name))
            sync(Path(folder))
        if out.exists():
            os.rename(out, old)
        os.rename(partial, out)
        sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    finally:
        os.close(lock)


def claim_folder(folder: Path, named: Path) -> int:
    """Create and lock a folder; returns the open lock. The kernel releases it when its owner closes it or dies.

    Raises ShadowError, with the name `named`, while another process holds the lock.
    """
    deadline = time.monotonic() + 1  # seconds: workers of a killed owner end a moment after it
    while True:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            raise ShadowError(f"{named}: another process is writing this folder; wait for it or end it") from None
        try:
            if os.path.samestat(os.fstat(lock), os.stat(folder)):
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)  # the previous owner finished between our open and our lock


def sync(path: Path) -> None:
    """Have the kernel write a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
