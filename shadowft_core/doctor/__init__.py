"""Examines an installation and a workspace: versions, arithmetic, machine, programs, store, registry, ports.

Each check returns findings, and a finding that is not ok has a remedy. Checks change nothing and run side by side, each
with a time limit: one that does not end is a finding too.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shadowft_core.doctor.finding import FAIL, OK, WARN, Finding
from shadowft_core.doctor.inputs import inputs
from shadowft_core.doctor.machine import disk, gpu, memory
from shadowft_core.doctor.services import ports, registry, store
from shadowft_core.doctor.software import arithmetic, programs, python, versions
from shadowft_core.errors import without_passwords

__all__ = ["CHECKS", "FAIL", "LIMIT", "OK", "WARN", "Finding", "examine"]

LIMIT = 60.0  # seconds of a check; a store or registry that does not answer is reported sooner
CHECKS: Sequence[Callable[[Path], list[Finding]]] = (
    *(python, versions, arithmetic, programs),
    *(memory, gpu, disk, inputs, store, registry, ports),
)


def examine(
    params: Path, checks: Sequence[Callable[[Path], list[Finding]]] = CHECKS, limit: float = LIMIT
) -> list[Finding]:
    """The findings of all checks, in order. `params` is a params.yaml, which may be absent.

    Never raises for what a check finds, and returns within `limit` seconds. A check that is still running then goes on
    in a thread that does not keep the process alive.
    """
    done: queue.SimpleQueue[tuple[int, list[Finding]]] = queue.SimpleQueue()

    def run(number: int) -> None:
        done.put((number, _guarded(checks[number], params)))

    for number in range(len(checks)):
        threading.Thread(target=run, args=(number,), daemon=True).start()
    found: dict[int, list[Finding]] = {}
    end = time.monotonic() + limit
    while len(found) < len(checks):
        try:
            number, findings = done.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        found[number] = findings
    late = f"no answer within {limit:.0f} seconds"
    return [
        finding
        for number, check in enumerate(checks)
        for finding in found.get(
            number, [Finding(check.__name__, FAIL, late, "run again; if it stays, see what hangs")]
        )
    ]


def _guarded(check: Callable[[Path], list[Finding]], params: Path) -> list[Finding]:
    try:
        return check(params)
    except Exception as error:  # a broken installation can raise anything, even while it is imported
        said = without_passwords(" ".join(f"{type(error).__name__}: {error}".split()))
        remedy = "reinstall shadowft with its dependencies, in an environment of its own"
        return [Finding(check.__name__, FAIL, f"{said:.300}", remedy)]
