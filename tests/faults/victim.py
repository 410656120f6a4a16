"""Processes that run one verb of the command line and are killed with SIGKILL at a point that the test chooses.

They are forked from a server process that has imported everything once, so a kill costs tens of milliseconds.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import boto3  # noqa: F401  imported for the processes forked later
import botocore.client  # noqa: F401
import ml_dtypes  # noqa: F401
import numpy  # noqa: F401

import shadowft_core.cli
import shadowft_core.delta
import shadowft_core.grafting
import shadowft_core.store

CHUNK = 4_000  # bytes; gives the delta of a tiny model more than four chunks
KILLED = -signal.SIGKILL

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["__main__", __name__])


def spawn(act: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Start a process that calls `act(*arguments)`."""
    process = _context.Process(target=act, args=arguments, daemon=True)
    process.start()
    return process


def ended(process: ForkServerProcess, seconds: float = 120) -> int:
    """Wait for the process; return its exit code, or minus the number of the signal that killed it."""
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
        raise AssertionError(f"process {process.pid} did not end within {seconds} s")
    process.close()
    return code


def barrier(parties: int) -> Any:
    """A barrier that processes started by `spawn` can share."""
    return _context.Barrier(parties)


def verb(arguments: Iterable[str], environment: Mapping[str, str], log: Path, kill: tuple[int, Path] | None) -> None:
    """Run `shadowft ARGUMENTS` in this process with its output in `log`; `kill` is (N, folder) as in `die_at`."""
    small_chunks()
    os.environ.update(environment)
    sys.argv = ["shadowft", *arguments]
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        if kill:
            die_at(*kill)
        shadowft_core.cli.main()


def small_chunks() -> None:
    """Make the store cut files into pieces of CHUNK bytes in this process."""
    assert isinstance(shadowft_core.store.CHUNK, int)
    shadowft_core.store.CHUNK = CHUNK


def die_at(number: int, folder: Path) -> None:
    """Kill this process when it, or a worker it forks, starts the `number`-th change of a file.

    A change is a file opened for writing (below `folder` only), each half of a write, a sync, an allocation, a copy, a
    rename, a removal, or a new folder. Buffered writes of Python are seen only at the opening and at the next sync.
    """
    changes, root, victim = multiprocessing.Value("q", 0), str(folder), os.getpid()

    def change() -> None:
        with changes.get_lock():
            changes.value += 1
            if changes.value == number:
                os.kill(victim, signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(root):
                change()
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            change()

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            change()
            return real(*arguments, **named)

        return call

    def torn(file: int, data: Any, offset: int) -> int:
        change()
        half = len(data) // 2
        written = real_pwrite(file, data[:half], offset) if half else 0
        change()
        return written + real_pwrite(file, data[written:], offset + written)

    real_pwrite = os.pwrite
    os.pwrite = torn  # type: ignore[assignment]
    for name in ("fsync", "fdatasync", "posix_fallocate", "ftruncate", "sendfile", "copy_file_range", "write"):
        setattr(os, name, counted(name))
    sys.addaudithook(watch)
