"""Started as `python -I -S launcher.py PARENT LIMITS... -- PACKAGES...`; request on stdin, outcome on stdout.

Three processes: this one waits outside; its child runs the tests, as the first process of a PID namespace; the child of
that runs the program, as the first process of an inner one. When the first process of a namespace ends, the kernel ends
all others in it; each of the three is killed when the one above it ends.
"""

import sys
from types import ModuleType

if __name__ == "__main__":  # the packages themselves would import what is not needed here
    for name, depth in (("shadowft_core", 2), ("shadowft_core.sandbox", 1)):
        package = ModuleType(name)
        package.__path__ = [__file__.rsplit("/", depth)[0]]
        sys.modules[name] = package

import os
import select
import signal
from collections.abc import Callable

from shadowft_core.sandbox import isolation, judge, program
from shadowft_core.sandbox.channel import message, read_message, write_all
from shadowft_core.sandbox.limits import Limits

SIGNALS = {signal.SIGCHLD, signal.SIGTERM}


def main(parent: int, limits: Limits, packages: list[str]) -> None:
    """Isolate, run, and wait until every process is gone."""
    isolation.die_with_parent(lambda: os.getppid() != parent)
    isolation.enter_namespaces()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    lifeline, held = os.pipe()
    tests = os.fork()
    if tests == 0:
        try:
            os.close(held)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            _test(limits, packages, lambda: bool(select.select([lifeline], [], [], 0)[0]))
        except BaseException as error:
            _report(error)
        os._exit(0)
    in_time = signal.sigtimedwait(SIGNALS, limits.of_tests().wall)
    os.kill(tests, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(tests, 0)[1])
    if in_time is None or code == -signal.SIGKILL:  # it wrote nothing; SIGKILL is the limit of CPU time
        write_all(1, message(("timeout", "the tests did not end in time"), id))
    elif code < 0:
        write_all(1, message(("crashed", f"the tests were ended by {signal.Signals(-code).name}"), id))


def _report(error: BaseException) -> None:
    """Say that the program was not run, and why."""
    write_all(1, message(("unavailable", f"{type(error).__name__}: {error}"[:500]), id))


def _test(limits: Limits, packages: list[str], gone: Callable[[], bool]) -> None:
    """`gone` tells whether the launcher has ended: its number is not known in this namespace."""
    isolation.die_with_parent(gone)
    isolation.enter_root(limits, packages)
    isolation.call("unshare", isolation.libc.unshare(isolation.NEWPID))  # for the program alone
    requests, replies, output = os.pipe(), os.pipe(), os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    pid = os.fork()
    if pid == 0:
        try:
            program.run(limits, null, requests[0], replies[1], output[1])
        finally:
            os._exit(0)
    for descriptor in (requests[0], replies[1], output[1]):
        os.close(descriptor)
    isolation.drop(limits.of_tests())
    isolation.die_with_parent(gone)  # again, as the user has changed
    request = read_message(0, 1 << 32)
    verdicts = os.dup(1)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    remote = judge.Program(limits, pid, requests[1], replies[0], output[0])
    outcome = judge.judge(remote, *request)
    write_all(verdicts, message(outcome, id))
    os._exit(0)


if __name__ == "__main__":
    try:
        end = sys.argv.index("--")
        main(int(sys.argv[1]), Limits(*map(int, sys.argv[2:end])), sys.argv[end + 1 :])
    except BaseException as error:
        _report(error)
