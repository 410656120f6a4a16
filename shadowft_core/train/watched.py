"""The files that `train.command` names, and whether DVC watches them."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.errors import ParamsError, TrainError
from shadowft_core.files.yamlfile import read_yaml

STAGES = ("train", "seeds")  # the stages that run the command
_INTERPRETER = re.compile(r"(python|pypy)[\d.]*|bash|sh|zsh")


def named_files(words: Sequence[str]) -> list[str]:
    """The words of a command that are files below the current folder, also after `=`, and the modules after `-m`.

    The program itself counts if it is such a file. Files of a Python environment in the folder do not.
    """
    found: dict[str, None] = {}
    for before, word in zip(["", *words], words, strict=False):
        names = [word, word.partition("=")[2]]
        if before == "-m":
            module = word.replace(".", "/")
            names += [f"{module}.py", f"{module}/__main__.py"]
        for name in names:
            if place := _inside(name):
                found[place] = None
    return list(found)


def program(name: str) -> str:
    """The path of a command's program: of this Python's environment, else on the PATH, else in the current folder.

    Raises TrainError if there is none.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if (found := shutil.which(name, path=path)) is None:
        raise TrainError(
            f"train.command: no program {name} on the PATH; install it, or name it by its path, such as "
            "/opt/my-trainer/bin/python"
        )
    return found


def require_runnable(words: Sequence[str]) -> None:
    """Raise TrainError if the program of a command, or the script that it interprets, does not exist."""
    program(words[0])
    script = next((word for word in words[1:2] if not word.startswith("-")), None)
    if script and _INTERPRETER.fullmatch(Path(words[0]).name) and "$" not in script and not Path(script).exists():
        raise TrainError(f"train.command: {script} does not exist in {Path.cwd()}; correct the path")


def require_watched(
    words: Sequence[str], route: str, model: str, dvc_yaml: Path = Path("dvc.yaml"), params: Path = Path("params.yaml")
) -> None:
    """Raise ParamsError if a stage that runs the command does not depend on a file that the command names.

    DVC would not see that the file changes, and keep the results of the former one. The error has the lines to add.
    """
    named = named_files(words)
    if not named or not dvc_yaml.is_file():
        return
    stages = read_yaml(dvc_yaml).get("stages") or {}
    values = {**dict(_flat(read_yaml(params) if params.is_file() else {})), "key": route, "item.model": model}
    lacking = {
        stage: missing
        for stage in STAGES
        if isinstance(spec := stages.get(stage), Mapping)
        and (missing := [name for name in named if not _depends(spec.get("do", spec).get("deps") or [], name, values)])
    }
    if lacking:
        lines = "; ".join(f"{stage}: {', '.join(f'`- {name}`' for name in names)}" for stage, names in lacking.items())
        raise ParamsError(
            f"train.command names {', '.join(next(iter(lacking.values())))}, whose changes DVC would not see; add to "
            f"the deps of these stages in {dvc_yaml}: {lines}"
        )


def _inside(name: str) -> str | None:
    """The path, relative to the current folder, of a file in it; None for anything else."""
    here, place = Path.cwd(), Path(os.path.abspath(name))
    try:
        if not (place.is_relative_to(here) and place.is_file()):
            return None
    except OSError:  # the name is too long
        return None
    environments = (parent for parent in place.parents if parent.is_relative_to(here) and parent != here)
    if any((parent / "pyvenv.cfg").is_file() for parent in environments):
        return None
    return place.relative_to(here).as_posix()


def _depends(deps: Sequence[Any], name: str, values: Mapping[str, str]) -> bool:
    """Whether a list of dependencies has the file, or a folder that contains it."""
    for dep in deps:
        text = next(iter(dep)) if isinstance(dep, Mapping) else dep
        path = re.sub(r"\$\{([\w.]+)\}", lambda match: values.get(match[1], match[0]), str(text))
        if Path(name).is_relative_to(os.path.normpath(path)):
            return True
    return False


def _flat(tree: Any, above: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _flat(value, f"{above}{name}.")
    else:
        yield above.removesuffix("."), str(tree)
