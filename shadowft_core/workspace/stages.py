"""The numbers of the stages: installed with the package, recorded in the stages.yaml of a workspace.

stages.yaml of a workspace is tracked by git and has, besides a number for each stage, `written_by`, the version of this
package that wrote it, and `templates`, digests of the files that came with that version.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shadowft_core.errors import InputError
from shadowft_core.files import bytes_digest, real_path, write_atomically
from shadowft_core.files.yamlfile import read_yaml
from shadowft_core.workspace import template

STAGES = "stages.yaml"
INSTALLED = Path(__file__).with_name(STAGES)
MISREAD = '{}?%":'  # in the path of a workspace
RESTORE = "restore it with git"
HEADER = """\
# Written by `shadowft init`: every stage depends on its number. A version of shadowft that changes the results of a
# stage raises it; `shadowft run` and `shadowft init --upgrade` then update this file. Commit it, but do not edit it.
"""


@dataclass(frozen=True)
class Upgrade:
    """What `upgrade` changed: the stages that are now out of date, files that were replaced, and files that were kept
    because somebody changed them (the new one is beside it, as NAME.new)."""

    stages: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stages or self.replaced or self.kept)

    def lines(self) -> list[str]:
        """One line for each kind of change."""
        found = [f"out of date, because their results changed: {', '.join(self.stages)}"] * bool(self.stages)
        found += [f"replaced, as nobody had changed them: {', '.join(self.replaced)}"] * bool(self.replaced)
        return found + [f"{name}: changed here, so it stays; the new one is {name}.new" for name in self.kept]


def numbers(file: Path | None = None) -> dict[str, int]:
    """The number of each stage in a stages.yaml; by default in that of the package."""
    return {name: value for name, value in _read(file or INSTALLED).items() if isinstance(value, int)}


def require_same_stage(stage: str, workspace: Path = Path()) -> None:
    """Raise InputError if the workspace records another number for a stage than the installed package has.

    `stage` as DVC names it, such as train@shadow. A folder without stages.yaml, such as a checkout, and a stage of the
    user's own have no number.
    """
    name, file = stage.partition("@")[0], workspace / STAGES
    installed = numbers()
    if name not in installed or not file.is_file():
        return
    recorded = numbers(file)
    if recorded.get(name) != installed[name]:
        _refuse_newer(file, installed)
        raise InputError(
            f"{STAGES}: the results of the stage {name} changed: its number is {recorded.get(name)} here, written by "
            f"{_writer(file)}, and {installed[name]} in {_this()}; run `shadowft init --upgrade`, then the stage again"
        )


def planned(workspace: Path) -> Upgrade:
    """What `upgrade` would change; writes nothing. Raises what `upgrade` raises."""
    file = workspace / STAGES
    if not file.is_file():
        raise InputError(
            f"{workspace}: has no {STAGES}, so it is no workspace that `shadowft init` made; a checkout of the project "
            "needs no upgrade, and `shadowft init DIR` makes a workspace"
        )
    installed, recorded = numbers(), numbers(file)
    _refuse_newer(file, installed)
    before, now = _read(file).get("templates") or {}, template.digests()
    if not isinstance(before, dict):
        raise InputError(f"{file}: templates: expected a digest for each file, found {_short(before)}; {RESTORE}")
    replaced: list[str] = []
    kept: list[str] = []
    for path in template.FILES:
        place = workspace / path
        found = bytes_digest(place.read_bytes()) if place.is_file() else None
        if now[path] not in (before.get(path), found):
            (replaced if found == before.get(path) else kept).append(path)
    stale = tuple(name for name in installed if recorded.get(name) != installed[name])
    return Upgrade(stale, tuple(replaced), tuple(kept))


def upgrade(workspace: Path) -> Upgrade:
    """Bring a workspace to the installed package: numbers of stages, and files that are as `init` wrote them.

    A file that was changed stays; if the package has a new one, it is written beside it as NAME.new. params.yaml and
    the tasks are never changed. Raises InputError for a folder that is no workspace, and for one that a newer version
    wrote.
    """
    changes = planned(workspace)
    for path in changes.replaced:
        write_atomically(workspace / path, template.content(template.FILES[path]))
    for path in changes.kept:
        write_atomically(workspace / f"{path}.new", template.content(template.FILES[path]))
    if changes:
        write_stages(workspace)
    return changes


def require_usable_path(workspace: Path) -> None:
    """Raise InputError for a path that the tools of a run misread.

    DVC takes { and } in a path for a format. In the URL of a database, ? ends the path: MLflow and Prefect would write
    to one file outside of the workspace. MLflow takes a folder named a%20b for `a b`, cannot load a version there, and
    writes the path into an SQL statement, which " may end and : makes a parameter. In PYTHONPATH, : ends a path.
    DVC fails on a path that is not UTF-8, and a terminal obeys control characters in the paths that tools print.
    """
    path = str(real_path(workspace))
    if any(letter < " " or "\x7f" <= letter < "\xa0" or "\ud800" <= letter <= "\udfff" for letter in path):
        raise InputError(f"{path!r}: the path has control characters or is not UTF-8; use another folder")
    if Path(path).is_symlink():
        raise InputError(f"{path}: is a link to itself; use another folder")
    if found := sorted(set(MISREAD) & set(path)):
        raise InputError(
            f"{path}: the path has {' and '.join(found)}, which DVC, MLflow or Prefect misreads; use a "
            f"folder whose path has none of {' '.join(MISREAD)}"
        )


def write_stages(workspace: Path) -> None:
    """Write stages.yaml of a workspace whose files are those of the installed package."""
    lines = [f"{name}: {number}" for name, number in numbers().items()]
    lines += [f"written_by: {_this()}", "templates:"]
    lines += [f"  {path}: {digest}" for path, digest in template.digests().items()]
    write_atomically(workspace / STAGES, (HEADER + "\n".join(lines) + "\n").encode())


def _refuse_newer(file: Path, installed: Mapping[str, int]) -> None:
    newer = {name: number for name, number in numbers(file).items() if number > installed.get(name, number)}
    if newer:
        name, number = next(iter(newer.items()))
        raise InputError(
            f"{file}: the number of the stage {name} is {number}, written by {_writer(file)}, and {installed[name]} in "
            f"{_this()}; install that version of shadowft or a newer one"
        )


def _read(file: Path) -> dict[str, Any]:
    found = read_yaml(file)
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected a number for each stage, found {_short(found)}; {RESTORE}")
    return found


def _short(value: object) -> str:
    return json.dumps(value, default=str)[:80]


def _writer(file: Path) -> str:
    return str(_read(file).get("written_by", "an unknown version"))


def _this() -> str:
    return f"shadowft {version('shadowft')}"
