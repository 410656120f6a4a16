"""Runs a case under a guard, with its inputs in or out of the page cache, and measures its processes."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.graft.cases import Case
from shadowft_core.errors import ShadowError
from shadowft_core.files.process import start, stop

ROOT = Path(__file__).parent.parent.parent
LAUNCH = Path(__file__).with_name("launch.py")
# Every process uses as many threads as it does by default, and compiled Python files are kept.
_DROPPED = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Sample:
    """One run of a case: seconds of wall and CPU time, peak resident bytes of the largest process, bytes from disk."""

    wall: float
    cpu: float
    peak: int
    read: int


def run(case: Case, cache: str, logs: Path) -> Sample:
    """Time a case once. `cache` is `warm` (inputs read just before) or `cold` (inputs dropped from the page cache).

    Its folder is cleared before and synced after, outside the timing, so that no case pays for another's files.
    Raises ShadowError naming the log when a process fails.
    """
    shutil.rmtree(case.out, ignore_errors=True)
    case.out.mkdir(parents=True)
    for folder in case.inputs:
        drop(folder) if cache == "cold" else warm(folder)
    taken = [_process(case, step, logs / f"{case.name}.log") for step in case.steps]
    drop(case.out)
    for made in case.out.iterdir():
        if made != case.result:
            shutil.rmtree(made)
    return Sample(
        wall=sum(one["wall"] for one in taken),
        cpu=sum(one["cpu"] for one in taken),
        peak=int(max(one["peak"] for one in taken)),
        read=int(sum(one["read"] for one in taken)),
    )


def warm(folder: Path) -> None:
    """Read every file of a folder into the page cache."""
    buffer = bytearray(1 << 20)
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(folder: Path) -> None:
    """Sync every file of a folder and drop it from the page cache."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def last_line(case: Case, logs: Path) -> str:
    """The last line that the last process of a case printed."""
    return (logs / f"{case.name}.log").read_text(encoding="utf-8").rstrip().rpartition("\n")[2]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _process(case: Case, command: list[str], log: Path) -> dict[str, float]:
    report = log.with_suffix(".json")
    report.unlink(missing_ok=True)
    env = {key: value for key, value in os.environ.items() if key not in _DROPPED}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    launcher = [sys.executable, "-I", "-S", str(LAUNCH), str(report)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        guard = start([*launcher, *command], env=env, log=file)
        try:
            code = guard.wait()
        finally:
            stop(guard)
    if code or not report.is_file():
        said = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(said) if line.strip()), "nothing was said")
        raise ShadowError(f"{case.name}: exit code {code} ({last.strip():.200}); run with --keep and read {log}")
    taken: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return taken
