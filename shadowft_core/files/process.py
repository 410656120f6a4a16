"""A child that cannot outlive its parent.

`start` runs a command below a guard: this file as a process of its own, leader of its own session, so that Ctrl-C on a
terminal reaches only the parent. The parent keeps the write end of the guard's stdin and never writes; the pipe closes
when the parent closes it or dies for any reason, kill -9 included, and the guard then ends everything below it: TERM
first, KILL after `GRACE` seconds. The guard is also the subreaper, so orphans and processes that left the session still
count as below it. A command that ends by itself leaves nothing behind either.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

GRACE = 5.0  # seconds between TERM and KILL
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def start(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, log: IO[str] | None = None
) -> subprocess.Popen[str]:
    """Start a command below a guard.

    Its stdout and stderr are merged, line by line, into the `stdout` of the returned process, or into the open file
    `log`. The return code is the command's own, 128 + n after signal n.
    """
    return subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).resolve()), *command],
        stdin=subprocess.PIPE,
        stdout=log or subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )


def stop(guard: subprocess.Popen[str]) -> None:
    """End the command and all processes below it; returns when they are gone."""
    if guard.stdin:
        guard.stdin.close()
    try:
        guard.wait(timeout=2 * GRACE)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
    if guard.returncode == -signal.SIGKILL:  # the guard itself was killed: what it led is still a process group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)


def _end_descendants() -> None:
    me, grace = psutil.Process(), GRACE
    while alive := me.children(recursive=True):  # again until none is left: a dying process may still fork
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(alive, timeout=grace)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        grace = 0.2


def _wait_for_the_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def main(command: Sequence[str]) -> int:
    """The guard's own process: run the command, end all below it when it is over or the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        threading.Thread(target=_wait_for_the_parent, daemon=True).start()
        code = subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
        return code if code >= 0 else 128 - code
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _end_descendants()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
