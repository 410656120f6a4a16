"""The verb `power`, and the warning of `prepare` and `plan` about too few items."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadowft_core.cli.options import (
    PARAMS,
    PLANNING,
    AllowCodeOption,
    JsonOption,
    ParamsOption,
    finite,
    further_file,
)
from shadowft_core.cli.options import read_params_with_code as read_params
from shadowft_core.cli.output import print_answer, say
from shadowft_core.cli.tables import new_console, new_table, print_line

if TYPE_CHECKING:
    from shadowft_core.params import Params

verbs = typer.Typer()


@verbs.command(rich_help_panel=PLANNING)
def power(
    instruct: Annotated[
        Path, typer.Option(help="folder of the untouched Instruct; only tokenizer and config are read")
    ] = Path("work/pair/instruct"),
    data: Annotated[Path, typer.Option(help="folder made by `prepare`; tasks may read its held-out rows")] = Path(
        "work/data"
    ),
    scores: Annotated[
        Path | None,
        typer.Option(help="scores of an earlier run (work/scores), which tell how much arms differ"),
    ] = None,
    differ: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=finite,
            help="without scores: share of 0/1 items on which two equal arms differ; default: 0.25",
        ),
    ] = None,
    look: Annotated[
        int | None, typer.Option(min=1, help="which look at the test items it will be; default: counted in the store")
    ] = None,
    plot: Annotated[Path | None, further_file("the figure, .html, .svg or .png")] = None,
    as_json: JsonOption = False,
    allow_code: AllowCodeOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Say, before a training, which gains the test items can show, and how many items would decide.

    Reads the task files as `evaluate` and `sweep` do, and the store's record of earlier looks at these items. Loads no
    weights and scores nothing.

    Example: shadowft power --plot power.html

    With the spread of an earlier run: shadowft power --scores work/scores --look 1
    """
    from shadowft_core.power import power as computed
    from shadowft_core.report.power import plot as draw
    from shadowft_core.verdict.power import DIFFER

    settings = read_params(params, allow_code)
    found = computed(instruct, data, settings, scores, DIFFER if differ is None else differ, look)
    if plot is not None:
        draw(found, plot)
    if as_json:
        print_answer("power", found)
    else:
        show_power(found)
        earlier = instruct.parent.parent / "scores"
        if scores is None and (earlier / "instruct").is_dir():
            say(f"`--scores {earlier}` measures the spread on the scores of an earlier run")


def show_power(found: Mapping[str, Any]) -> None:
    """Print the sentences, and tables of gains and of guards."""
    console = new_console()
    for line in found["lines"]:
        print_line(console, line)
    table = new_table("the domain", "true gain", "shown", "promoted, guards unharmed", "items to show it with 0.8")
    for one in found["domain"]["gains"]:
        table.add_row(_gain(one["gain"]), _p(one["shown"]), _p(one["promoted"]), _items(one["needed"]))
    console.print(table)
    if found["guards"] is not None:
        guards = found["guards"]
        table = new_table(
            "guards of a candidate that harms nothing", "claim", "items", "margin", "passes", "items to pass with 0.95"
        )
        rows = {"all together": guards["together"], **guards["each"]}
        for name, one in rows.items():
            table.add_row(name, f"{one['n']:,}", _gain(one["margin"]), _p(one["passes"]), _items(one["needed"]))
        table.add_section()
        table.add_row("all of these claims", "", "", _p(guards["all"]), "")
        console.print(table)
    for line in found["assumed"]:
        print_line(console, f"assumed: {line}")


def _gain(value: float) -> str:
    return f"{value:.3g}"


def _p(value: float) -> str:
    return f"{value:.2f}"


def _items(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def warn_of_few(verb: str, settings: "Params", data: Path, tasks: Path | None = None) -> None:
    """Say on stderr that the domain's dev or test items can probably not decide (verdict/power.py, `too_few`).

    Says nothing of tasks whose items only the harness can count.
    """
    from shadowft_core.errors import EvaluationError
    from shadowft_core.suites import rows_of
    from shadowft_core.verdict.power import too_few

    for role, names in (("dev", settings.sweep.domain), ("test", settings.evaluate.domain)):
        try:
            rows = rows_of(tasks or Path(settings.evaluate.tasks), data, names, settings.evaluate.limit)
        except EvaluationError:
            continue  # the stage that needs the tasks says what is wrong
        if not rows or not all(one.count for one in rows.values()):
            continue
        sizes = {name: one.count for name, one in rows.items()}
        likelihood = {name for name, one in rows.items() if one.likelihood and name not in settings.evaluate.metrics}
        if line := too_few(role, sizes, likelihood, settings.verdict):  # type: ignore[arg-type]
            say(f"{verb}: {line}", err=True)
