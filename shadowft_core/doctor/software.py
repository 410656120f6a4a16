"""The installed software: Python, versions of the dependencies, arithmetic, programs on the PATH."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from shadowft_core.doctor.finding import FAIL, OK, WARN, Finding

NAME = "shadowft"
_NOT_INSTALLED = Finding(
    "versions", WARN, f"{NAME} is not installed, only its files are here", "install it: pip install -e ."
)


def python(params: Path) -> list[Finding]:
    """The Python that runs, against the range of the metadata."""
    mine = platform.python_version()
    try:
        needed = metadata(NAME)["Requires-Python"] or ""
    except PackageNotFoundError:
        needed = ""
    if SpecifierSet(needed).contains(mine, prereleases=True):
        return [Finding("python", OK, f"{mine}, {sys.executable}")]
    return [Finding("python", FAIL, f"{mine}, but {NAME} needs {needed}", "make an environment with such a Python")]


def versions(params: Path) -> list[Finding]:
    """The installed versions of all dependencies, against the ranges of the metadata. Imports none of them."""
    try:
        named = metadata(NAME)
    except PackageNotFoundError:
        return [_NOT_INSTALLED]
    extras = ["", *(named.get_all("Provides-Extra") or [])]
    found, right = [], 0
    for text in named.get_all("Requires-Dist") or []:
        needed = Requirement(text)
        asking = [extra for extra in extras if needed.marker is None or needed.marker.evaluate({"extra": extra})]
        if not asking:  # for another Python or platform
            continue
        if (finding := _finding(needed, optional="" not in asking)) is None:
            right += 1
        else:
            found.append(finding)
    found = [finding for finding in found if finding.said]
    return found or [Finding("versions", OK, f"{right} dependencies of {NAME} {version(NAME)} are in their ranges")]


def _finding(needed: Requirement, optional: bool) -> Finding | None:
    """None if the version fits. An optional package that is not installed is no finding: it says nothing."""
    wanted = f"{needed.name}{needed.specifier}"
    try:
        mine = version(needed.name)
    except PackageNotFoundError:
        if optional:
            return Finding("versions", OK, "")
        return Finding("versions", FAIL, f"{needed.name} is not installed", f"pip install '{wanted}'")
    if needed.specifier.contains(mine, prereleases=True):
        return None
    state = WARN if optional else FAIL
    said = f"{canonicalize_name(needed.name)} {mine} is installed, {NAME} {version(NAME)} needs {needed.specifier}"
    return Finding("versions", state, said, f"pip install '{wanted}'")


def arithmetic(params: Path) -> list[Finding]:
    """Whether the compiled kernel is used."""
    from shadowft_core.kernels import bf16

    if bf16.library is not None:
        return [Finding("arithmetic", OK, "compiled")]
    said = f"numpy, the same bits but slower ({bf16.why_numpy})"
    return [Finding("arithmetic", WARN, said, "install the wheel of this platform, or reinstall with a C compiler")]


def programs(params: Path) -> list[Finding]:
    """git, and the `dvc` and `shadowft` that the PATH finds: a stage is a command that a shell finds there."""
    found = []
    try:
        done = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=20, check=True)
        number = done.stdout.strip().removeprefix("git version ")
        if subprocess.run(["git", "var", "GIT_AUTHOR_IDENT"], capture_output=True, timeout=20, check=False).returncode:
            remedy = "git config --global user.name NAME, and user.email ADDRESS"
            found.append(Finding("git", WARN, f"{number} knows no name of yours, so `git commit` refuses", remedy))
        else:
            found.append(_repository(params.absolute().parent) or Finding("git", OK, number))
    except (OSError, subprocess.SubprocessError) as error:
        found.append(Finding("git", FAIL, f"cannot be run ({error})", "install git, and put it on the PATH"))
    return found + [_program(name) for name in ("dvc", NAME)]


def _repository(folder: Path) -> Finding | None:
    """What git refuses about the folder of a run: it is no repository, or that of another user."""
    if not (folder / "dvc.yaml").is_file():
        return None
    done = subprocess.run(["git", "-C", str(folder), "status"], capture_output=True, text=True, timeout=20, check=False)
    if not done.returncode:
        return None
    remedy = "clone the workspace; or git init, add and commit; or make its owner run this"
    return Finding("git", FAIL, f"refuses {folder}: {' '.join(done.stderr.split()):.300}", remedy)


def _program(name: str) -> Finding:
    bin_folder = Path(sys.executable).parent
    ours, first = bin_folder / name, shutil.which(name)
    if not os.access(ours, os.X_OK):
        return Finding(name, FAIL, f"{ours}: no such program", f"reinstall {NAME} in this environment")
    if first is not None and Path(first).parent.resolve() == bin_folder.resolve():
        return Finding(name, OK, str(first))
    seen = "not on the PATH" if first is None else f"the PATH finds {first}, not {ours}"
    said = f"{seen}; `dvc repro` by hand would not run this installation (`{NAME} run` does)"
    return Finding(name, WARN, said, f'export PATH="{bin_folder}:$PATH"')
