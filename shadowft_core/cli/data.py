"""The verbs `shadowft data ...`: add versions of data to DVC, show prepared data, compare versions."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from shadowft_core.cli.data_tables import show_comparison, show_prepared
from shadowft_core.cli.options import (
    DATA,
    PARAMS,
    EndpointOption,
    JsonOption,
    ParamsOption,
    TokenizerOption,
    measuring,
    out_folder,
    read_params,
)
from shadowft_core.cli.output import print_answer, say

verbs = typer.Typer()
data = typer.Typer(help="Add versions of data to DVC, show prepared data, compare versions.", no_args_is_help=True)
verbs.add_typer(data, name="data", rich_help_panel=DATA)

PreparedArgument = Annotated[Path, typer.Argument(metavar="[DIR]", help="folder made by `prepare`")]


@data.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="a data file, a folder, hf:OWNER/NAME@REVISION[:SPLIT|:PATTERN], s3://..."
        ),
    ],
    version: Annotated[str | None, typer.Option(help="name of this version, such as 2 or 2026-11")] = None,
    licence: Annotated[str | None, typer.Option(help="licence of the data, such as CC-BY-4.0")] = None,
    note: Annotated[str | None, typer.Option(help="what is new in this version, in one line")] = None,
    out: Annotated[Path | None, out_folder("the download; by default data/NAME")] = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Track a file or folder with DVC, and record its version, licence, note and SHA-256 in NAME.dvc.

    Adding the same bytes again changes nothing. If the recorded version has a name, changed bytes need a new --version.
    From then on, `prepare` refuses data with another digest.

    `hf:...` (a data set of a Hugging Face hub, at a commit) and `s3://...` (all objects below a prefix) are downloaded
    first. The endpoint and region of S3 are those of `store` in the params file.

    Example: shadowft data add my_rows.jsonl --version 2 --licence CC-BY-4.0 --note "without duplicates"

    Example: shadowft data add hf:OWNER/NAME@0123456789abcdef0123456789abcdef01234567:train
    """
    from shadowft_core.pipeline.versions import add_data, download_and_add
    from shadowft_core.remote.data import is_remote, name_of

    if is_remote(source):
        place = out or Path("data") / name_of(source)
        store = read_params(params).store
        record, changed = download_and_add(
            source, place, version, licence, note, endpoint or store.endpoint, store.region
        )
    elif out is not None:
        raise typer.BadParameter("--out is only for downloads; pass hf:... or s3://..., or leave it out")
    else:
        place = Path(source)
        record, changed = add_data(place, version, licence, note)
    file = f"{place}.dvc"
    if as_json:
        print_answer("data.add", {**about(record), "path": str(place), "file": file, "changed": changed})
        return
    size = f"{record.content.files} files, {record.content.bytes / 1e6:.1f} MB"
    if not changed:
        say(f"{place}: already added ({size}, {record.title()}); {file} is unchanged")
        return
    say(f"{place}: added ({size}, {record.title()})")
    say(f"{record.content.digest}")
    ignore = place.parent / ".gitignore"
    say(f"next: git add {quote(file)} {quote(str(ignore))} && git commit, then dvc push")


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
def show(
    folder: PreparedArgument = Path("work/data"),
    tasks: Annotated[
        Path | None, typer.Option(help="task folder; also show the training rows most similar to its items")
    ] = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Show the splits, the rows that look wrong, and ten rows of the training split.

    Reads a folder made by `prepare`; writes nothing. With --tokenizer it renders the ten rows with the chat template,
    and marks learned text with {+ and +}.

    Example: shadowft data show work/data --tokenizer work/pair/instruct --tasks my_tasks
    """
    from shadowft_core.params import Prepare
    from shadowft_core.prepare.show import show as read

    found = read(folder, tasks)
    if tokenizer:
        _render(found, folder, tokenizer, read_params(params, prepare=Prepare(data="-")))
    if as_json:
        print_answer("data.show", found)
    else:
        show_prepared(found)


def _render(found: dict[str, Any], folder: Path, tokenizer: Path, settings: Any) -> None:
    """Add lengths in tokens to the splits, and to each sample its sequences or the reason why it is refused."""
    from shadowft_core.rendering import RowError, learned_parts, load_renderer, prepared_rows

    for name, lengths in measuring(tokenizer, settings)(folder).items():
        found["splits"][name]["tokens"] = lengths
    renderer = load_renderer(tokenizer, settings.render)
    rows = prepared_rows(folder / "train.parquet", len(found["samples"]))
    for sample, (messages, tools, _, rejected) in zip(found["samples"], rows, strict=True):
        try:
            sample["sequences"] = learned_parts(messages, tools, renderer, rejected)
        except RowError as reason:
            sample["refused"] = str(reason)


@data.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="V1", help="folder made by `prepare`, or a data file or folder")],
    second: Annotated[Path, typer.Argument(metavar="V2", help="the second version, of the same kind")],
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Compare two versions of data: rows added, removed and moved, changed replies, dropped rows by reason.

    Reads two folders made by `prepare`, or two data files or folders, with `prepare.columns`; writes nothing. The exit
    code is 0 even if they differ.

    Example: shadowft data diff my_data_1 my_data_2
    """
    from shadowft_core.params import Prepare
    from shadowft_core.prepare.compare import compare

    columns = read_params(params, prepare=Prepare(data="-")).prepare.columns
    found = compare(first, second, columns)
    if as_json:
        print_answer("data.diff", found)
    else:
        show_comparison(found)
