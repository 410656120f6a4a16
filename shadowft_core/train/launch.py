"""Starts the processes of `train.launch` through torchrun's agent, and finds the place of this process among them.

`place` reads the environment of torchrun, Slurm, Kubernetes or a person. `run_processes` has agent.py start the same
command once per process of this node, under a guard (files/process.py), so that nothing outlives it. A process that
fails leaves a report; `run_processes` raises the error of the one that failed first. This module imports no torch.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import ConfigDict, Field, RootModel

from shadowft_core import errors
from shadowft_core.errors import ShadowError, StoppedError, TrainError
from shadowft_core.files import open_regular, process
from shadowft_core.files.record import Record, read_record
from shadowft_core.params import Launch
from shadowft_core.train.cluster import in_slurm_step, node_of

REPORTS = "SHADOWFT_RANK_REPORTS"  # set by run_processes: the folder in which a process leaves why it failed
LOOPBACK = "lo"
AGAIN = "train again"
LOG_BYTES = 1 << 16  # at the end of a log, in which its last line is searched


class Report(Record):
    """Why a process failed: the class of a ShadowError, or null and a traceback."""

    time: float
    error: str | None
    exit_code: int = Field(ge=1, le=255)
    message: str = Field(pattern=r"\S")


class Ended(RootModel[list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=-64, le=255)]]]]):
    """ended.json of the agent: rank and exit code, or negative signal, of the processes that failed, in order."""

    model_config = ConfigDict(strict=True)


@dataclass(frozen=True)
class Place:
    """`rank` of `world` processes; `local_rank` of those on this node."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def place(launch: Launch) -> Place | None:
    """The place of this process among those of `launch`; None if this command has to start them.

    Raises TrainError if the processes were started in another number.
    """
    world, environment = launch.processes * launch.nodes, os.environ
    wanted = f"train.launch has {launch.processes} processes on {launch.nodes} nodes, {world} in all"
    if "WORLD_SIZE" in environment:
        given = _number("WORLD_SIZE")
        if given != world:
            raise TrainError(
                f"started as one of {given} processes (WORLD_SIZE), but {wanted}; start as many, or without torchrun"
            )
        if world == 1:
            return Place()
        if missing := [name for name in ("RANK", "LOCAL_RANK") if name not in environment]:
            raise TrainError(f"WORLD_SIZE is {given}, but {', '.join(missing)} is not set; torchrun sets all of them")
        return Place(_number("RANK"), world, _number("LOCAL_RANK"))
    if tasks := in_slurm_step():
        if tasks == world > 1:
            found = Place(_number("SLURM_PROCID"), world, _number("SLURM_LOCALID"))
            node = node_of(launch, found.rank // launch.processes)
            environment |= {"RANK": str(found.rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(found.local_rank)}
            environment |= {"MASTER_ADDR": node.address, "MASTER_PORT": str(node.port)}
            return found
        if tasks != launch.nodes:
            raise TrainError(
                f"srun started {tasks} tasks (SLURM_NTASKS), but {wanted}; start one task per node, or one per process"
            )
    return Place() if world == 1 else None


def starts_processes(launch: Launch) -> bool:
    """True if this command has to start the processes of `launch`, with `run_processes`. Raises what `place` raises."""
    return place(launch) is None


def placed(launch: Launch) -> Place:
    """The place of this process. Raises TrainError if the processes have not been started."""
    if (found := place(launch)) is None:
        raise TrainError(
            f"train.launch has {launch.processes * launch.nodes} processes, but this is the only one; run `shadowft "
            "train`, which starts them"
        )
    return found


def run_alone(arguments: Sequence[str]) -> None:
    """Run `shadowft ARGUMENTS` in a process of its own, which prints as usual, and wait for it.

    It ends with this process, in time to save its state. Raises TrainError with its exit code if it fails.
    """
    root = str(Path(errors.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with os.fdopen(os.dup(2), "w") as log:
        guard = process.start(
            [sys.executable, "-P", "-m", "shadowft_core.cli", *arguments],
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            log=log,
            grace=process.SAVING,
        )
        try:
            code = guard.wait()
        finally:
            process.stop(guard)
    if code:
        error = TrainError(f"shadowft {' '.join(arguments[:1])} ended with exit code {code}; its own error is above")
        error.exit_code = code
        raise error


def run_processes(launch: Launch, arguments: Sequence[str]) -> None:
    """Run `shadowft ARGUMENTS` once for each process of this node, and wait for all.

    Rank 0 prints as usual, the others print nothing. SIGTERM and SIGINT are passed on to all processes. Raises the
    ShadowError of the process that failed first, or TrainError with its rank and signal; the others are ended.
    """
    node = node_of(launch)
    root = str(Path(errors.__file__).parents[1])
    with tempfile.TemporaryDirectory(prefix="shadowft-ranks-") as scratch:
        environment = os.environ | {
            REPORTS: scratch,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
        }
        environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        if launch.nodes == 1:
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                environment.setdefault(name, LOOPBACK)
        job = {"processes": launch.processes, "nodes": launch.nodes, **asdict(node), "scratch": scratch}
        agent = [sys.executable, "-P", str(Path(__file__).with_name("agent.py")), json.dumps(job)]
        with os.fdopen(os.dup(2), "w") as log, _passing_on_signals() as started:
            guard = process.start(
                [*agent, "-P", "-m", "shadowft_core.cli", *arguments], env=environment, log=log, grace=process.SAVING
            )
            started.append(guard.pid)
            try:
                code = guard.wait()
            finally:
                process.stop(guard)
        if code:
            raise _failure(Path(scratch), code)


@contextlib.contextmanager
def _passing_on_signals() -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on to the child of the guard whose pid is put into the list: the agent, which passes them
    on to its processes."""
    guards: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        for guard in guards:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(guard).children():
                    child.send_signal(number)

    before = [(number, signal.signal(number, pass_on)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield guards
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def reporting(launch: Launch) -> Iterator[None]:
    """Silence this process if it is not rank 0. Under `run_processes`, leave a report when it fails, and print nothing.

    Under another torchrun, each process prints its own error.
    """
    found = placed(launch)
    with contextlib.ExitStack() as stack:
        if found.rank:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(silence))
        try:
            yield
        except Exception as error:
            folder = os.environ.get(REPORTS)
            if folder is None or found.world == 1:
                raise
            known = isinstance(error, ShadowError)
            report: dict[str, Any] = {
                "time": time.time(),
                "error": type(error).__name__ if known else None,
                "exit_code": error.exit_code if isinstance(error, ShadowError) else 1,
                "message": str(error) if known else "".join(traceback.format_exception(error)),
            }
            partial = Path(folder, f".{found.rank}")
            partial.write_text(json.dumps(report))
            partial.rename(Path(folder, f"{found.rank}.json"))
            # Not sys.exit: threads of the collectives may wait for other processes for ever.
            os._exit(report["exit_code"])


def _failure(scratch: Path, code: int) -> ShadowError:
    """The error to raise for the failed processes."""
    reports = {
        int(path.stem): read_record(path, Report, AGAIN, error=TrainError) for path in scratch.glob("[0-9]*.json")
    }
    ended = scratch / "ended.json"
    # The order in which the agent saw them end; it ends the rest with SIGTERM.
    codes = dict(read_record(ended, Ended, AGAIN, error=TrainError).root if ended.exists() else ())
    for rank in [*codes, *(set(reports) - set(codes))]:
        end, report = codes.get(rank, 1), reports.get(rank)
        if report and report.error:
            return _as_raised(report)
        if report is None and end < 0 and -end != signal.SIGTERM:
            name = signal.Signals(-end).name if -end in set(signal.Signals) else "unknown"
            reason = ", as the kernel does when memory runs out" if -end == signal.SIGKILL else ""
            return TrainError(f"rank {rank} was killed by signal {-end} ({name}){reason}; all processes were ended")
    if reports:  # an error of the code, and then errors of the others, which lost the connection
        rank, report = min(reports.items(), key=lambda item: item[1].time)
        print(report.message, file=sys.stderr)
        last = report.message.strip().splitlines()[-1]
        return TrainError(f"rank {rank} failed: {last:.300}")
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return StoppedError(f"stopped by {signal.Signals(code - 128).name} outside of the steps", code - 128)
    logs = map(_last_line, sorted(scratch.glob("logs/*/*/*/stderr.log")))
    said = next(filter(None, logs), "no message")
    return TrainError(f"the processes ended with exit code {code} ({said:.300}); all were ended")


def _last_line(log: Path) -> str:
    """The last line of a log that is not blank."""
    with open(open_regular(log, TrainError), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
        lines = file.read(LOG_BYTES).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _as_raised(report: Report) -> ShadowError:
    kind = getattr(errors, report.error or "", TrainError)
    kind = kind if isinstance(kind, type) and issubclass(kind, ShadowError) else TrainError
    error = kind(report.message)
    error.exit_code = report.exit_code
    return error


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise TrainError(f"{name}: {text!r} is not a number; torchrun and srun set it")
    return int(text)
