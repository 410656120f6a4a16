"""Starts a sandbox for every program and reads its verdict."""

import importlib.util
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from shadowft_core.errors import SandboxError
from shadowft_core.sandbox import plain, syscalls
from shadowft_core.sandbox.channel import message
from shadowft_core.sandbox.limits import Limits

Kind = Literal["passed", "failed", "timeout", "memory", "output", "crashed"]
LIMITS = Limits()
LAUNCHER = Path(__file__).with_name("launcher.py")
SLACK = 10  # seconds beyond the time of the tests before a sandbox that does not answer is an error
LONGEST = 1 << 16  # bytes of a verdict
LONGEST_SOURCE = 1 << 20
LONGEST_REQUEST = 128 << 20  # bytes
REMEDY = (
    "programs are never run without the sandbox. It needs Linux (x86_64 or aarch64) with user namespaces: allow them "
    "in a container (Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined); on Ubuntu, set "
    "kernel.apparmor_restrict_unprivileged_userns to 0"
)


@dataclass(frozen=True)
class Program:
    """An untrusted program, and trusted tests of it."""

    source: str
    """the untrusted program, run as a module"""
    tests: str
    """trusted code that calls the program, and raises if it is wrong"""
    names: tuple[str, ...]
    """what the tests take from the program; anything else is a built-in name or defined by `setup`"""
    setup: str = ""
    """trusted code that runs before the tests: imports and helper functions"""
    check: str = ""
    """a function in `tests`, to be called with the first of `names`; empty if the tests run by themselves"""


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed its tests, and the first line of the reason if not."""

    kind: Kind
    reason: str = ""


def run(programs: Sequence[Program], limits: Limits = LIMITS) -> list[Verdict]:
    """Run every program in a sandbox of its own, as many at once as there are CPUs; the verdicts in the same order.

    When this returns, no process of a program is left. Raises SandboxError where programs cannot be isolated; nothing
    of them is run then.
    """
    if not programs:
        return []
    if not syscalls.supported() or sys.platform != "linux":
        raise SandboxError(f"{sys.platform} on {os.uname().machine}: no sandbox for this system; {REMEDY}")
    with ThreadPoolExecutor(min(len(programs), len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(lambda program: _run(program, limits), programs))


def require() -> None:
    """Raise SandboxError, with the reason and the remedy, where programs cannot be isolated."""
    source = "def probe():\n    import decimal, json, random, re\n    return True\n"
    [verdict] = run([Program(source, "assert probe() is True", ("probe",))])
    if verdict.kind != "passed":
        raise SandboxError(f"a trivial program does not run in the sandbox: {verdict.kind}, {verdict.reason}; {REMEDY}")


def _run(program: Program, limits: Limits) -> Verdict:
    if len(program.source) > LONGEST_SOURCE:
        return Verdict("failed", f"a program of {len(program.source)} characters; at most {LONGEST_SOURCE} are run")
    request = [program.source, program.setup, program.tests, list(program.names), program.check]
    try:
        data = message(request, id, LONGEST_REQUEST)
    except ValueError as error:
        raise SandboxError(f"the tests of a program cannot be passed on: {error}; shorten them") from None
    python = [sys.executable, "-I", "-S", "-X", "utf8"]
    command = [*python, str(LAUNCHER), str(os.getpid()), *map(str, limits), "--", *_packages()]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"OPENBLAS_NUM_THREADS": "1"},
        cwd="/",
        start_new_session=True,
        bufsize=0,
    ) as process:
        try:
            answer = _talk(process, data, time.monotonic() + limits.of_tests().wall + SLACK)
        finally:
            process.terminate()  # it ends the program and all else, then itself
            try:
                process.wait(SLACK)
            except subprocess.TimeoutExpired:
                process.kill()
    if len(answer) < 4:
        raise SandboxError("the sandbox ended without a verdict, killed from outside; run the same command again")
    kind, reason = plain.decode(answer[4:])
    if kind == "unavailable":
        raise SandboxError(f"programs cannot be isolated here: {reason}; {REMEDY}")
    return Verdict(kind, str(reason).partition("\n")[0])


@cache
def _packages() -> list[str]:
    """The folders of numpy, which tests and programs may import besides the standard library."""
    found = importlib.util.find_spec("numpy")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    return [str(place) for one in folders for place in (one, one.with_name("numpy.libs")) if place.is_dir()]


def _talk(process: "subprocess.Popen[bytes]", data: bytes, ends: float) -> bytes:
    """Write the request and read the answer, at most LONGEST bytes; empty if there is none."""
    if process.stdin is None or process.stdout is None:
        raise TypeError("the sandbox needs pipes")
    answer, rest = bytearray(), memoryview(data)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdin, selectors.EVENT_WRITE)
        ready.register(process.stdout, selectors.EVENT_READ)
        while (left := ends - time.monotonic()) > 0 and len(answer) < LONGEST:
            for key, _ in ready.select(left):
                if key.fileobj is process.stdin:
                    try:
                        rest = rest[os.write(key.fd, rest[: 1 << 16]) :]
                    except BrokenPipeError:
                        rest = rest[:0]
                    if not rest:
                        ready.unregister(process.stdin)
                else:
                    part = os.read(key.fd, 1 << 16)
                    answer += part
                    if not part or len(answer) >= 4 + int.from_bytes(answer[:4].ljust(4, b"\xff"), "big"):
                        return bytes(answer)
    return b""
