"""The verb `doctor`."""

from dataclasses import asdict
from pathlib import Path

import typer

from shadowft_core.cli.options import INSPECT, PARAMS_FILE, JsonOption
from shadowft_core.cli.output import print_answer

verbs = typer.Typer()


@verbs.command(rich_help_panel=INSPECT)
def doctor(as_json: JsonOption = False) -> None:
    """Examine this installation, this folder and what params.yaml names; say what is wrong, each with its remedy.

    Checks versions, arithmetic, GPU and memory, disk and cache, git and dvc, the store, the registry and the ports of
    Prefect and MLflow. Changes nothing, and ends within a minute. Exit code 1 if a check fails; a warning is none.

    Example: shadowft doctor
    """
    from shadowft_core.doctor import FAIL, examine

    findings = examine(Path(PARAMS_FILE))
    failed = [finding for finding in findings if finding.state == FAIL]
    if as_json:
        print_answer("doctor", {"checks": [asdict(finding) for finding in findings], "failed": len(failed)})
    else:
        for one in findings:
            print(f"{one.state:4}  {one.check}: {one.said}{f'; {one.remedy}' if one.remedy else ''}")
    if failed:
        raise typer.Exit(1)
