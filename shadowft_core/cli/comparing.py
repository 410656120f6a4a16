"""The verb `compare`: what one arm lost and gained against another, in the terminal, as JSON or as a page."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shadowft_core.cli.options import INSPECT, OUTPUT, JsonOption
from shadowft_core.cli.output import print_answer, say
from shadowft_core.errors import EvaluationError

verbs = typer.Typer()

SCORES = Path("work/scores")
EXAMPLES = 3  # of each task, lost and gained each, in the terminal
ON_A_PAGE = 100


@verbs.command(rich_help_panel=INSPECT)
def compare(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE", help="the arm to compare with: a folder with scores.json, or a name in work/scores"
        ),
    ],
    arm: Annotated[str, typer.Argument(metavar="ARM", help="the other arm, likewise")],
    task: Annotated[str | None, typer.Option(help="only this task")] = None,
    only: Annotated[Literal["lost", "won"] | None, typer.Option(help="show only examples of this kind")] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            min=0, help=f"examples per task, of lost and of won items; default: {EXAMPLES}, with --html {ON_A_PAGE}"
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="write one self-contained HTML page instead of printing",
            dir_okay=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an arm lost and won against another: flipped items by task, KL, length and form.

    Reads the scores and answers that `evaluate` wrote; both arms must have answered the same items. Writes nothing but
    the page of --html.

    Example: shadowft compare instruct shadow_scaled --html compare.html
    """
    from shadowft_core.forgetting import ledger

    count = (ON_A_PAGE if html else EXAMPLES) if examples is None else examples
    found = ledger(_folder(reference), _folder(arm), task=task, only=only, examples=count)
    if html is not None:
        from shadowft_core.files import write_atomically
        from shadowft_core.forgetting.page import render

        write_atomically(html, render(found).encode("utf-8"))
    if as_json:
        print_answer("comparison", found)
    elif html is not None:
        say(f"{html}: {found['total']['lost']} lost, {found['total']['won']} won of {found['total']['n']} items")
    else:
        from shadowft_core.cli.comparison import show_ledger

        show_ledger(found)


def _folder(named: str) -> Path:
    """The score folder that is meant: a folder, or an arm below work/scores."""
    given = Path(named)
    if (given / "scores.json").is_file():
        return given
    places = sorted(path.parent for path in SCORES.glob("*/*/scores.json"))
    found = [path for path in places if path.name == named]
    if len(found) == 1:
        return found[0]
    if found:
        raise EvaluationError(f"{named}: {len(found)} arms have this name; give the folder of one, such as {found[0]}")
    known = f"the arms in {SCORES} are {', '.join(path.name for path in places)}" if places else f"{SCORES} has no arms"
    raise EvaluationError(f"{named:.200}: neither a folder with scores.json nor an arm; {known:.600}")
