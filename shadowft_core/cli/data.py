"""The verbs `shadowft data ...`: they add versions of data to DVC, show prepared data and compare versions of it."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from shadowft_core.cli.data_tables import show_prepared
from shadowft_core.cli.options import DATA, JsonOption
from shadowft_core.cli.output import print_answer

verbs = typer.Typer()
data = typer.Typer(help="Add versions of data to DVC, show prepared data, compare versions.", no_args_is_help=True)
verbs.add_typer(data, name="data", rich_help_panel=DATA)

PreparedArgument = Annotated[Path, typer.Argument(metavar="[DIR]", help="folder made by `prepare`")]


@data.command()
def add(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="a data file or a folder of them")],
    version: Annotated[str | None, typer.Option(help="name of this version, such as 2 or 2026-11")] = None,
    licence: Annotated[str | None, typer.Option(help="licence of the data, such as CC-BY-4.0")] = None,
    note: Annotated[str | None, typer.Option(help="what this version is, in a line")] = None,
    as_json: JsonOption = False,
) -> None:
    """Track a file or folder with DVC, and record its version, licence, note and SHA-256 in NAME.dvc.

    Adding the same bytes again changes nothing. Changed bytes are a new version and need a new --version if the
    recorded one has a name. `prepare` then refuses data with another digest.

    Example: shadowft data add my_rows.jsonl --version 2 --licence CC-BY-4.0 --note "without duplicates"
    """
    from shadowft_core.pipeline.versions import add_data

    record, changed = add_data(source, version, licence, note)
    file = f"{source}.dvc"
    if as_json:
        print_answer("data.add", {**about(record), "path": str(source), "file": file, "changed": changed})
        return
    size = f"{record.content.files} files, {record.content.bytes / 1e6:.1f} MB"
    if not changed:
        print(f"{source}: already added ({size}, {record.title()}); {file} is unchanged")
        return
    print(f"{source}: added ({size}, {record.title()})")
    print(f"{record.content.digest}")
    ignore = os.path.join(os.path.dirname(source), ".gitignore")
    print(f"next: git add {file} {ignore} && git commit, then dvc push")


def about(record: Any) -> dict[str, Any]:
    """The fields of a record for --json."""
    return {
        "digest": record.content.digest,
        "files": record.content.files,
        "bytes": record.content.bytes,
        "version": record.version,
        "licence": record.licence,
        "note": record.note,
        "origin": record.origin,
    }


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
