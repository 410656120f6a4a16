"""Child processes that cannot outlive their parent.

`start` runs a command as the child of a guard process, which executes this file. The guard leads its own session, so
Ctrl-C on a terminal reaches only the parent. The parent holds the write end of the guard's stdin and writes nothing.
The pipe closes when the parent closes it or dies, even by kill -9; the guard then ends all its descendants, with TERM
and after a grace (`GRACE` seconds, or as many as the command needs to save its state) with KILL. The guard is a
subreaper, so orphans and processes that left the session remain its descendants. The guard also ends whatever a command
leaves running when it exits.
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
SAVING = 60.0  # the same for a stage, which may have to save the state of a training
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log: IO[str] | None = None,
    grace: float = GRACE,
) -> subprocess.Popen[str]:
    """Start a command under a guard and return the guard.

    The command's stdout and stderr both go to the `stdout` of the returned process, or to the open file `log`. The
    return code is the command's, or 128 + n after signal n.
    """
    return subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).resolve()), str(grace), *command],
        stdin=subprocess.PIPE,
        stdout=log or subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )


def stop(guard: subprocess.Popen[str]) -> None:
    """End the command and all its descendants, and wait until they are gone."""
    if guard.stdin:
        guard.stdin.close()
    try:
        guard.wait(timeout=_grace_of(guard) + GRACE)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
    if guard.returncode == -signal.SIGKILL:  # the guard was killed; its process group remains
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)


def _grace_of(guard: subprocess.Popen[str]) -> float:
    arguments = guard.args
    return float(arguments[3]) if isinstance(arguments, list) else GRACE


def _end_descendants(grace: float) -> None:
    me = psutil.Process()
    while alive := me.children(recursive=True):  # repeat: a dying process may still fork
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(alive, timeout=grace)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        grace = 0.2


def _wait_for_parent_end() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def main(grace: float, command: Sequence[str]) -> int:
    """Run as the guard: start the command, and end all descendants when the command or the parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        threading.Thread(target=_wait_for_parent_end, daemon=True).start()
        code = subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
        return code if code >= 0 else 128 - code
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _end_descendants(grace)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
