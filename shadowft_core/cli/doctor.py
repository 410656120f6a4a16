"""The verb `doctor`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from shadowft_core.cli.options import INSPECT, PARAMS_FILE, JsonOption
from shadowft_core.cli.output import print_answer, say

if TYPE_CHECKING:
    from shadowft_core.doctor import Finding

verbs = typer.Typer()


@verbs.command(rich_help_panel=INSPECT)
def doctor(as_json: JsonOption = False) -> None:
    """Examine this installation, this folder and what params.yaml names; say what is wrong, each with its remedy.

    Checks versions, arithmetic, GPU and memory, disk and cache, git and dvc, the version of the workspace, the store,
    the registry and the ports of Prefect and MLflow. Changes nothing, and ends within a minute. Exit code 1 if a check
    fails; a warning is none.

    Example: shadowft doctor
    """
    from shadowft_core.doctor import CHECKS, FAIL, examine

    findings = examine(Path(PARAMS_FILE), (*CHECKS, stages))
    failed = [finding for finding in findings if finding.state == FAIL]
    if as_json:
        print_answer("doctor", {"checks": [asdict(finding) for finding in findings], "failed": len(failed)})
    else:
        for one in findings:
            say(f"{one.state:4}  {one.check}: {one.said}{f'; {one.remedy}' if one.remedy else ''}")
    if failed:
        raise typer.Exit(1)


def stages(params: Path) -> "list[Finding]":
    """Whether the workspace is that of the installed package, and which stages an upgrade would make stale."""
    from shadowft_core.doctor import FAIL, OK, WARN, Finding
    from shadowft_core.errors import ShadowError
    from shadowft_core.workspace import STAGES, planned

    folder = params.parent
    if not (folder / STAGES).is_file():
        return []  # a checkout, or no workspace
    try:
        changes = planned(folder)
    except ShadowError as error:
        return [Finding("stages", FAIL, str(error), "then run `shadowft doctor` again")]
    if not changes:
        return [Finding("stages", OK, f"{STAGES} is that of this version")]
    found = [f"makes stale {', '.join(changes.stages)}"] * bool(changes.stages)
    found += [f"replaces {', '.join(changes.replaced)}"] * bool(changes.replaced)
    found += [f"writes {', '.join(f'{name}.new' for name in changes.kept)}"] * bool(changes.kept)
    said = f"{STAGES} is of another version; an upgrade {' and '.join(found)}"
    return [Finding("stages", WARN, said, "run `shadowft init --upgrade`; `shadowft run` does the same")]
