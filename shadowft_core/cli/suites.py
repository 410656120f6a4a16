"""The verbs `shadowft suite ...`: benchmarks by name, fetched once into the task folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shadowft_core.cli.options import DATA, OUTPUT, PARAMS, PARAMS_FILE, JsonOption, ParamsOption, read_params
from shadowft_core.cli.output import print_answer, say

verbs = typer.Typer()
suite = typer.Typer(help="Suites of benchmarks: list them, show them, fetch their data.", no_args_is_help=True)
verbs.add_typer(suite, name="suite", rich_help_panel=DATA)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="a suite, or a task or group of lm-evaluation-harness")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="folder of the fetched benchmarks; default: suites/ in evaluate.tasks, or here without params.yaml",
        file_okay=False,
        rich_help_panel=OUTPUT,
    ),
]


def _place(out: Path | None, params: Path | None) -> Path:
    if out is None and params is None and not PARAMS_FILE.exists():
        return Path("suites")
    return out or Path(read_params(params).evaluate.tasks) / "suites"


@suite.command("list")
def names(out: OutOption = None, as_json: JsonOption = False, params: ParamsOption = PARAMS) -> None:
    """List the suites: benchmarks, items, licences, and what has been fetched.

    Reads the records of what was fetched; writes no files.

    Example: shadowft suite list
    """
    from shadowft_core.suites.describe import listed

    rows = listed(_place(out, params))
    if as_json:
        print_answer("suite.list", {"suites": rows})
        return
    _print_table(
        ("suite", "benchmarks", "items", "here", "licence", "extras"),
        (
            (
                row["name"],
                " ".join(row["benchmarks"]),
                f"{row['items']:,}",
                f"{len(row['here'])} of {len(row['benchmarks'])}" if row["here"] else "no",
                "; ".join(row["licences"]),
                " ".join(row["extras"]),
            )
            for row in rows
        ),
    )


@suite.command()
def show(
    wanted: NameArgument, out: OutOption = None, as_json: JsonOption = False, params: ParamsOption = PARAMS
) -> None:
    """Show each benchmark of a suite: task, shots, metric, parser, source, licence, difference from the paper.

    Reads the installed harness and the records of what was fetched; writes no files.

    Example: shadowft suite show math7
    """
    from shadowft_core.suites.catalogue import suite_of
    from shadowft_core.suites.describe import shown

    found = suite_of(wanted)
    lines = shown(found, _place(out, params))
    if as_json:
        print_answer("suite.show", {"name": wanted, "about": found.about, "lines": lines})
        return
    say(f"{wanted}: {found.about}")
    for line in lines:
        say("")
        say(f"{line.pop('paper') or line['benchmark']}")
        for key, value in line.items():
            if value not in (None, "", [], {}):
                say(f"  {key:<10} {', '.join(map(str, value)) if isinstance(value, list) else value}")


@suite.command()
def fetch(
    wanted: NameArgument,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="folder with the data, as the hub or the benchmark's authors publish it; default: the hub"
        ),
    ] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Fetch the task files and data of a suite once; evaluation then needs no network.

    Writes one folder per benchmark, with suite.json: source, commit, licence, SHA-256. Keeps benchmarks that are
    already there and intact.

    Example: shadowft suite fetch gsm8k --from my_copies/gsm8k
    """
    from dataclasses import asdict

    from shadowft_core.suites.catalogue import suite_of
    from shadowft_core.suites.fetch import fetch_suite

    place = _place(out, params)
    found = fetch_suite(suite_of(wanted), place, source, _download)
    if as_json:
        print_answer("suite.fetch", {"out": str(place), "benchmarks": [asdict(one) for one in found]})
        return
    for one in found:
        tasks = "1 task" if one.tasks == 1 else f"{one.tasks} tasks"
        say(f"{one.name}: {one.state}" + (f", {tasks}, {one.items:,} items" if one.tasks else ""))
        for note in one.notes:
            say(f"  {note}")
    say(f"add {wanted} to evaluate.domain or evaluate.guards; the tasks are in {place}")


def _download(dataset: str, revision: str | None, out: Path) -> tuple[str, str | None]:
    from shadowft_core.remote.data import download_data
    from shadowft_core.remote.hub import current_commit

    commit = revision or current_commit(dataset, "dataset")
    return commit, download_data(f"hf:{dataset}@{commit}", out).licence


def _print_table(head: tuple[str, ...], rows: Any) -> None:
    from shadowft_core.cli.tables import new_console, new_table

    table = new_table("", *head)
    for row in rows:
        table.add_row(*row)
    new_console().print(table)
