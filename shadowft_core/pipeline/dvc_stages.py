"""Asks DVC for the stages of the workspace in the current folder: their order, and which are out of date.

Uses DVC's Python interface (3.67). Only reads, except for the locks of killed processes, which it removes. A child
process reproduces a stage (stage_process.py).
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shadowft_core.errors import InputError
from shadowft_core.files import read_json_object, write_json_atomically


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml. `seconds` is its `meta.seconds`, by default 1; `outs` are paths in the workspace."""

    name: str
    description: str
    seconds: float
    outs: tuple[str, ...]

    def out(self, suffix: str) -> str:
        """The output with a path that ends with `suffix`. Raises InputError unless there is exactly one."""
        matching = [path for path in self.outs if path.endswith(suffix)]
        if len(matching) != 1:
            raise InputError(
                f"dvc.yaml: stage {self.name}: {len(matching)} outputs end with {suffix!r}, expected one; it has "
                f"{', '.join(self.outs)}"
            )
        return matching[0]


@dataclass(frozen=True)
class Plan:
    """The stages in DVC's order (each after its dependencies), and those that may have to run.

    `stale` has the names of the changed and the forced stages, and of all stages downstream of them. Other stages are
    up to date and stay so during the run. A stale stage is checked again before it runs, because its inputs may be
    unchanged by then.
    """

    stages: tuple[Stage, ...]
    stale: frozenset[str]
    forced: frozenset[str] = frozenset()
    """stages to run even if nothing changed, because they read what DVC does not watch"""

    def __getitem__(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise InputError(f"dvc.yaml: no stage {name}; it has {', '.join(stage.name for stage in self.stages)}")


def read_plan(forced: frozenset[str] = frozenset()) -> Plan:
    """Read dvc.yaml, dvc.lock and the files they name. Raises InputError with a one-line message when DVC fails.

    `forced` are names of stages; those that dvc.yaml lacks are left out.

    First removes the locks of killed processes.
    """
    import networkx
    from dvc.repo.reproduce import get_active_graph, plan_repro

    with repository() as opened:
        _remove_dead_locks(opened)
        graph = get_active_graph(opened.index.graph)
        order = [stage for stage in plan_repro(graph) if stage.cmd]
        changed = set(opened.status()) | forced
        stale = {
            name.addressing
            for stage in order
            if stage.addressing in changed
            for name in {stage, *networkx.ancestors(graph, stage)}  # edges point from a stage to its dependencies
        }
        stages = tuple(
            Stage(
                name=stage.addressing,
                description=stage.desc or "",
                seconds=float((stage.meta or {}).get("seconds", 1)),
                outs=tuple(out.def_path for out in stage.outs),
            )
            for stage in order
        )
    return Plan(stages, frozenset(stale), forced & {stage.name for stage in stages})


def changed(stage: str) -> bool:
    """Whether DVC would run this stage now: its command, inputs, parameters or outputs differ from dvc.lock."""
    with repository() as opened:
        return bool(opened.status(targets=[stage]))


def _remove_dead_locks(opened: Any) -> None:
    """Remove the locks of killed processes from `.dvc/tmp/rwlock`.

    A lock has the number of its process. DVC removes the lock only if no process has that number, but after a restart
    of the machine or container another process may have it. A process that started after the file was last written
    holds no lock.
    """
    file = Path(opened.tmp_dir, "rwlock")
    with opened.lock:  # DVC holds it when it edits the file
        if not file.exists():
            return
        written, locks = file.stat().st_mtime, read_json_object(file)

        def may_live(holder: dict[str, Any]) -> bool:
            try:
                return bool(psutil.Process(holder["pid"]).create_time() <= written)
            except psutil.NoSuchProcess:
                return False

        write = {path: holder for path, holder in locks.get("write", {}).items() if may_live(holder)}
        read = {path: list(filter(may_live, holders)) for path, holders in locks.get("read", {}).items()}
        kept = {"write": write, "read": {path: holders for path, holders in read.items() if holders}}
        if kept != {"write": {}, "read": {}} | locks:
            write_json_atomically(file, kept)


@contextlib.contextmanager
def repository() -> Iterator[Any]:
    """Open the DVC repository of the current folder. Turns DVC's exceptions into InputError, and hides its log."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.CRITICAL)
    try:
        with Repo(_wait_for_lock=True) as opened:
            yield opened
    except NotDvcRepoError:
        raise InputError(
            f"{Path.cwd()}: expected a folder of a DVC repository, found none; go to its folder, make one with "
            "`shadowft init DIR`, or run `git init` and `dvc init` here"
        ) from None
    except DvcException as error:
        raise InputError(f"dvc: {' '.join(str(error).split())}") from error
