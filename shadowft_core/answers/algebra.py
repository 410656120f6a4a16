"""math_verify in a child process, so that an expression that takes for ever ends alone: it needs no signals."""

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

from shadowft_core.errors import EvaluationError

SECONDS = 5.0  # for one comparison
START = 120.0  # for a process to load sympy


class _Verifier:
    """The child process, started when it is first asked, and again after it was ended."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # one question at a time

    def same(self, wanted: str, stated: str) -> bool:
        question = json.dumps([wanted, stated]).encode() + b"\n"
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._child = self._start()
            reply = self._ask(self._child, question)
            if reply not in (b"true\n", b"false\n"):
                self.end()
            return reply == b"true\n"

    def end(self) -> None:
        """End the child; the next question starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in filter(None, (child.stdin, child.stdout)):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    @staticmethod
    def _ask(child: subprocess.Popen[bytes], question: bytes, seconds: float = SECONDS) -> bytes:
        """The child's next line, or nothing if it takes longer or has ended."""
        if child.stdin is None or child.stdout is None:
            raise RuntimeError("the child was started without pipes")
        with contextlib.suppress(BrokenPipeError), DefaultSelector() as ready:
            child.stdin.write(question)
            child.stdin.flush()
            ready.register(child.stdout, EVENT_READ)
            if ready.select(seconds):
                return child.stdout.readline()
        return b""

    def _start(self) -> subprocess.Popen[bytes]:
        require()
        command = [sys.executable, "-I", str(Path(__file__).parent / "verifier.py")]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if self._ask(child, b"", START) != b"ready\n":
            self._child = child
            self.end()
            raise EvaluationError(
                f"scorer math: math_verify did not start within {START:g} seconds; try `python -c 'import math_verify'`"
            )
        return child


_VERIFIER = _Verifier()
atexit.register(_VERIFIER.end)


def same(wanted: str, stated: str) -> bool:
    """Whether math_verify calls two expressions in LaTeX equal; False if it takes longer than SECONDS.

    Raises EvaluationError if the package math_verify is missing.
    """
    return _VERIFIER.same(wanted, stated)


def require() -> None:
    """Raise EvaluationError if the package math_verify is missing."""
    if find_spec("math_verify") is None:
        raise EvaluationError(
            "scorer math: the package math_verify is missing; install the extra: pip install 'shadowft[math]'"
        )
