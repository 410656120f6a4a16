"""Runs one DVC stage, or a command, in a guarded child process, and explains a failure in one line."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from shadowft_core.errors import plain, without_passwords
from shadowft_core.files import process

_children: set[subprocess.Popen[str]] = set()


def run_stage(stage: str, show: Callable[[str], None], force: bool = False) -> str | None:
    """Have DVC reproduce a stage of the workspace in the current folder. Returns why it failed; None on success.

    With `force`, its command runs even if nothing changed. Every line the stage writes goes to `show`, with passwords
    masked and control characters escaped. The child and all its processes end when this function returns and when this
    process ends, for any reason.
    """
    program = str(Path(__file__).with_name("reproduce.py"))
    return run_command([sys.executable, "-P", program, stage, *["force"] * force], show)


def run_command(command: Sequence[str], show: Callable[[str], None]) -> str | None:
    """Run a command as `run_stage` runs a stage."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    child = process.start(
        command,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        grace=process.SAVING,
    )
    _children.add(child)
    try:
        error = ""
        for raw in map(str.strip, child.stdout or ()):
            if line := plain(without_passwords(raw)):
                show(line)
                error = line if _rank(line) >= _rank(error) else error
        code = child.wait()
    finally:
        process.stop(child)
        if child.stdout:
            child.stdout.close()
        _children.discard(child)
    return explain_failure(code, error) if code else None


def stop_all() -> None:
    """End every running stage with all its processes."""
    for child in list(_children):
        process.stop(child)
        _children.discard(child)


_SIGNAL_WORDS = {signal.strsignal(number) for number in signal.Signals}  # "Killed": how a shell reports a dead child


def _rank(line: str) -> int:
    """How well a line explains a failure: the stage's own error best, then DVC's, then any other line."""
    if line.removesuffix(" (core dumped)") in _SIGNAL_WORDS:
        return -1
    return 2 if line.startswith("error:") else 1 if line.startswith("ERROR:") else 0


def explain_failure(code: int, error: str) -> str:
    """Explain an exit code other than 0 of a stage; `error` is the line that explains it best, or empty."""
    number = -code if code < 0 else code - 128  # negative when the guard process itself was killed
    text = re.sub(r"^error:\s*", "", error, flags=re.IGNORECASE)
    if number not in set(signal.Signals) or (_rank(error) == 2 and number != signal.SIGKILL):
        return text or f"exit code {code}, without a message"
    reason = f"killed by signal {number} ({signal.Signals(number).name})"
    if number == signal.SIGKILL:
        reason += (
            ", as the kernel does when memory runs out; add memory, or reduce batch_size, max_length or rank of the "
            "stage, then run again"
        )
    return f"{reason}. Its last line: {text}" if text else reason
