"""The verbs that only read models and report on them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shadowft_core.cli.options import INSPECT, IgnoreOption, JsonOption
from shadowft_core.cli.output import print_answer
from shadowft_core.cli.tables import show_diff, show_pair, show_receipt

verbs = typer.Typer()

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="folder of safetensors files")]


@verbs.command(rich_help_panel=INSPECT)
def pair(
    base: Annotated[str, typer.Option(help="a folder, hf:OWNER/NAME@REVISION, s3://BUCKET/PREFIX or pico:base")],
    instruct: Annotated[str, typer.Option(help="the same for the Instruct; or pico:instruct")],
    full: Annotated[bool, typer.Option("--full", help="read all weights instead of a sample, and add digests")] = False,
    aggregations: Annotated[
        bool, typer.Option("--aggregations", help="add three other definitions of sigma, each with its source")
    ] = False,
    ignore: IgnoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether a Base and an Instruct may be paired. Exit code 4 if the pair is refused.

    Reads headers, configs, tokenizers and a sample of the weights (byte ranges of a remote model); writes nothing.

    Example: shadowft pair --base pico:base --instruct pico:instruct --full
    """
    from contextlib import ExitStack

    from shadowft_core.pair import compare_models, opened

    named: dict[str, dict[str, Any]] = {"base": {"ref": base, "label": ""}, "instruct": {"ref": instruct, "label": ""}}
    with ExitStack() as stack:
        models = {}
        for role, side in named.items():
            models[role], side["label"] = stack.enter_context(opened(side["ref"], download=full))
        both = models["base"], models["instruct"]
        result = compare_models(*both, full=full, digests=full, aggregations=aggregations, ignore=ignore or ())
    result |= {role: {**named[role], **result[role]} for role in named}
    if as_json:
        print_answer("pair", result)
    else:
        show_pair(result)


@verbs.command(rich_help_panel=INSPECT)
def receipt(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder made by `graft`")], as_json: JsonOption = False
) -> None:
    """Show which tensors were grafted, which were not and why, and how much of the delta survived rounding.

    Reads recipe.json and receipt.json of a grafted folder, no weights; writes nothing.

    Example: shadowft receipt work/grafted/shadow
    """
    from shadowft_core.grafting.receipt import read_receipt

    account = read_receipt(folder)
    if as_json:
        print_answer("receipt", account)
    else:
        show_receipt(account)


@verbs.command(rich_help_panel=INSPECT)
def diff(first: FolderArgument, second: FolderArgument, as_json: JsonOption = False) -> None:
    """Compare the tensors of two model folders. Exit code 0 if they are equal, 1 if they differ, 3 on an error.

    Reads all weights, but no config and no tokenizer; writes nothing.

    Example: shadowft diff work/pair/instruct work/grafted/shadow
    """
    from shadowft_core.weights.diff import diff as compare

    found = compare(first, second)
    if as_json:
        print_answer("diff", found)
    else:
        show_diff(found)
    if not found["equal"]:
        raise typer.Exit(1)
