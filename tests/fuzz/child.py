"""Names what a reader raised, and runs readers in child processes: a library in C may end the process instead."""

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from shadowft_core.errors import ShadowError


class Died(Exception):
    """What happened in the child, or to it."""

    def __init__(self, kind: str, details: str) -> None:
        super().__init__(details)
        self.kind = kind


def kind_of(error: BaseException) -> str:
    """The class of an error and the innermost module of the package that it passed."""
    if isinstance(error, Died):
        return error.kind
    names = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = next((name for name in reversed(names) if name.startswith("shadowft_core")), names[-1])
    return f"{type(error).__name__} {ours}"


def in_child(read: Callable[[Path], object]) -> Callable[[Path], None]:
    """The same reader, in a fork. Raises ShadowError as it does, and Died for anything else."""

    def run(folder: Path) -> None:
        out, into = os.pipe()
        if (child := os.fork()) == 0:
            said: list[str] = []
            try:
                read(folder)
            except ShadowError as error:
                said = ["refused", str(error)]
            except BaseException as error:
                said = [kind_of(error), str(error)]
            os.write(into, json.dumps([text[:5_000] for text in said]).encode())
            os._exit(0)
        os.close(into)
        try:
            with os.fdopen(out, "rb") as pipe:
                raw = pipe.read()
        finally:
            os.kill(child, signal.SIGKILL)  # no effect after its end; on a hang it ends
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not raw:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise Died(name, "the process of the reader ended")
        kind, details = json.loads(raw) or ("", "")
        if kind:
            raise ShadowError(details) if kind == "refused" else Died(kind, details)

    return run
