"""The verbs `shadowft data ...`, which show prepared data and compare versions of it."""

from pathlib import Path
from typing import Annotated

import typer

from shadowft_core.cli.data_tables import show_prepared
from shadowft_core.cli.options import INSPECT, JsonOption
from shadowft_core.cli.output import print_answer

verbs = typer.Typer()
data = typer.Typer(help="Show prepared data and compare versions of it.", no_args_is_help=True)
verbs.add_typer(data, name="data", rich_help_panel=INSPECT)

PreparedArgument = Annotated[Path, typer.Argument(metavar="[DIR]", help="folder made by `prepare`")]


@data.command()
def show(folder: PreparedArgument = Path("work/data"), as_json: JsonOption = False) -> None:
    """Show the splits, the rows that look wrong, and ten rows of the training split.

    Reads a folder made by `prepare`; writes nothing.

    Example: shadowft data show work/data
    """
    from shadowft_core.prepare.show import show as read

    found = read(folder)
    if as_json:
        print_answer("data.show", found)
    else:
        show_prepared(found)
