"""The verbs of the stages in dvc.yaml that score, judge and report."""

from pathlib import Path
from typing import Annotated

import typer

from shadowft_core.cli.options import (
    OUTPUT,
    PARAMS,
    STAGES,
    AllowCodeOption,
    DataOption,
    InstructOption,
    ParamsOption,
    WorkOption,
    out_file,
    out_folder,
    read_params,
    read_params_with_code,
)

verbs = typer.Typer()


@verbs.command(rich_help_panel=STAGES)
def evaluate(
    instruct: InstructOption,
    data: DataOption,
    out: Annotated[Path, out_folder("one folder of scores for each arm")],
    delta: Annotated[
        Path | None, typer.Option(help="folder made by `extract`: score its arms instead of the Instruct")
    ] = None,
    grafted: Annotated[Path | None, typer.Option(help="folder made by `graft` from the same delta")] = None,
    route: Annotated[
        str, typer.Option(help="name of the route; its arms are called ROUTE and ROUTE_scaled")
    ] = "shadow",
    allow_code: AllowCodeOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Score the Instruct, or both arms of one delta, with lm-evaluation-harness.

    Reads the models and the task folder, which may contain code that is run; writes scores and items. Code is run only
    with --allow-code-execution; without it, only functions of the installed harness are.

    Example: shadowft evaluate --instruct work/pair/instruct --data work/data --out work/scores/instruct
    """
    from shadowft_core import evaluate as room

    settings = read_params_with_code(params, allow_code)
    room.evaluate(instruct, data, delta, grafted, route, settings.evaluate, out, settings.render)


@verbs.command(rich_help_panel=STAGES)
def verdict(
    scores: Annotated[Path, typer.Option(help="folder with the folders made by `evaluate`")],
    recipe: Annotated[Path, typer.Option(help="recipe.json of the candidate")],
    out: Annotated[Path, out_file("the verdict, JSON")],
    metrics: Annotated[
        Path | None, typer.Option(help="file to write: the numbers that compare runs, JSON", rich_help_panel=OUTPUT)
    ] = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Decide, with paired statistics, whether the graft beats the untouched Instruct and direct tuning.

    Reads the scores of all arms; writes the decision (promote, hold or undecided). Exit code 0 for each of them.

    Example: shadowft verdict --scores work/scores --recipe work/grafted/shadow/recipe.json --out work/verdict.json
    """
    from shadowft_core import verdict as room

    settings = read_params(params)
    room.verdict(scores, recipe, list(settings.routes), settings.verdict, out, metrics)


@verbs.command(rich_help_panel=STAGES)
def report(
    work: WorkOption,
    out: Annotated[Path, out_file("the page, HTML")],
    plots: Annotated[
        Path | None,
        typer.Option(help="folder to write: the points of the figures, for `dvc plots`", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Write the page that a person reads before promoting a version.

    Reads the outputs of all stages; writes one HTML file that opens without a network.

    Example: shadowft report --work work --out work/report.html
    """
    from shadowft_core import report as room

    room.report(work, out, plots)
