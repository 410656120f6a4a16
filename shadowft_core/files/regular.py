"""Opens regular files only: a pipe or device would block, or never end."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shadowft_core.errors import ShadowError


def real_path(path: str | Path) -> Path:
    """The path without links. A link to itself stays one and fails when opened; Path.resolve raises RuntimeError."""
    return Path(os.path.realpath(path))


def open_regular(path: Path, error: type[ShadowError]) -> int:
    """A descriptor for reading a regular file, or one that a link leads to.

    Raises `error` when it is missing, a folder, pipe, socket or device, or not readable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block until someone writes
    except FileNotFoundError:
        raise error(f"{path}: no such file; correct the path, or run the stage that writes it") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"{path}: {getattr(problem, 'strerror', None) or problem}; expected a readable file") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise error(f"{path}: expected a regular file, found a folder, pipe, socket or device; replace it")
    return handle


def lines_of(path: Path, longest: int, error: type[ShadowError]) -> Iterator[tuple[int, bytes]]:
    """The lines of a regular file with their numbers from 1, one at a time, without line feeds.

    Raises `error` as `open_regular` does, and for a line of more than `longest` bytes.
    """
    with open(open_regular(path, error), "rb") as file:
        number = 0
        try:
            while line := file.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise error(f"{path}:{number}: a line of more than {longest} bytes, the limit; replace the file")
                yield number, line.rstrip(b"\n")
        except OSError as problem:
            raise error(f"{path}: {problem.strerror}; expected a readable file") from None
