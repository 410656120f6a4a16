"""The verb that runs the flow: all stages."""

import os
import sys
from pathlib import Path

import typer

from shadowft_core.cli.options import STAGES
from shadowft_core.errors import InputError

verbs = typer.Typer()


@verbs.command(rich_help_panel=STAGES, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def retrain(context: typer.Context) -> None:
    """Run all stages, publish the delta and register the recipe: the flow of the project in this folder.

    Passes its options on to `python -m flows.retrain`, whose --help lists them.

    Example: shadowft retrain --name my-model
    """
    if not Path("flows/retrain.py").is_file():
        raise InputError("flows/retrain.py: no such file; run `shadowft retrain` in the project's folder")
    os.execv(sys.executable, [sys.executable, "-m", "flows.retrain", *context.args])  # noqa: S606
