"""The options that several verbs share, each with one spelling and one help text. Also reads the params file."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadowft_core.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowft_core.params import Params, Section, Store, Verdict

# Groups of verbs in `shadowft --help`, and of options in the help of a verb.
START = "Start"
STAGES, PLANNING, DATA, STORE, REGISTRY, INSPECT = "Stages", "Planning", "Data", "Store", "Registry", "Inspect"
OUTPUT, WAIVERS, CONFIGURATION = "Output", "Waivers", "Configuration"

PARAMS: Path | None = None
PARAMS_FILE = Path("params.yaml")


def out_folder(contents: str) -> Any:
    """The option --out of a verb that writes a folder."""
    return typer.Option("--out", help=f"folder to write, replaced if it exists: {contents}", rich_help_panel=OUTPUT)


def out_file(contents: str) -> Any:
    """The option --out of a verb that writes one file."""
    about = f"file to write, replaced if it exists: {contents}"
    return typer.Option("--out", help=about, rich_help_panel=OUTPUT, dir_okay=False)


def further_file(contents: str) -> Any:
    """An option that has a verb write one file more, or this file instead."""
    return typer.Option(help=f"file to write: {contents}", rich_help_panel=OUTPUT, dir_okay=False)


def _existing(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ParamsError(f"{path}: no such file; name an existing one with --params FILE")
    return path


def finite(value: float | None) -> float | None:
    """The number itself, for the callback of an option. NaN and infinity are usage errors: no bound excludes NaN."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


ParamsOption = Annotated[
    Path | None,
    typer.Option(
        "--params",
        callback=_existing,
        help="params file to read; default: params.yaml in this folder, else built-in defaults",
        rich_help_panel=CONFIGURATION,
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="the store: a folder or s3://bucket/prefix; default: store.uri. Endpoint and the rest stay as configured",
        rich_help_panel=CONFIGURATION,
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(help="URL of the S3 server; default: store.endpoint, else AWS", rich_help_panel=CONFIGURATION),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one line of JSON, errors too", rich_help_panel=OUTPUT)]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="change nothing, print what would be done", rich_help_panel=OUTPUT)
]
InstructOption = Annotated[Path, typer.Option(help="folder of the untouched Instruct")]
DataOption = Annotated[Path, typer.Option(help="folder made by `prepare`; tasks may read its held-out rows")]
WorkOption = Annotated[Path, typer.Option(help="folder with the outputs of all stages")]
TUNED = "folder made by `train`, of an adapter or of a checkpoint"  # help of --tuned
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="name of the registered model")]

OntoBaseOption = Annotated[
    bool,
    typer.Option("--onto-base", help="allow the Instruct to be the delta's own Base", rich_help_panel=WAIVERS),
]
UnrelatedOption = Annotated[
    bool,
    typer.Option("--unrelated", help="allow models whose weights are far from the Base's", rich_help_panel=WAIVERS),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option(
        "--allow-code-execution",
        help="run programs that the model wrote, in a sandbox, and Python files that task files name; "
        "also evaluate.allow_code_execution in params.yaml",
        rich_help_panel=WAIVERS,
    ),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="PATTERN",
        help="glob of tensors that only one side may have; repeatable",
        rich_help_panel=WAIVERS,
    ),
]


TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="folder of the Instruct or its tokenizer; also count tokens, rendered as in training",
    ),
]


def measuring(tokenizer: Path, settings: "Params") -> "Callable[[Path], dict[str, Any]]":
    """A function that measures the splits of a folder in tokens. Raises what `load_renderer` raises."""
    from shadowft_core.prepare import SPLITS
    from shadowft_core.rendering import load_renderer, split_lengths

    renderer = load_renderer(tokenizer, settings.render)
    return lambda folder: split_lengths(folder, SPLITS, renderer, settings.train.max_length)


def read_params(path: Path | None, **sections: "Section") -> "Params":
    """The params file given, else params.yaml in this folder, else the defaults with the `sections` given."""
    from shadowft_core.params import default_params, load_params

    if path is None and not PARAMS_FILE.exists():
        return default_params(**sections)
    return load_params(path or PARAMS_FILE)


def read_store(params: Path | None, uri: str | None, endpoint: str | None = None) -> "Store":
    """The store as configured, in the environment or the params file, with --store and --endpoint in its place.

    --store replaces the address alone: endpoint, region, encryption and owner stay as configured. Raises ParamsError
    for an address that cannot be one, and what `read_params` raises.
    """
    from pydantic import ValidationError

    from shadowft_core.params import Store

    given = {name: value for name, value in (("uri", uri), ("endpoint", endpoint)) if value is not None}
    configured = read_params(params).store
    try:
        return Store.model_validate(configured.model_dump() | given)
    except ValidationError as error:
        problem = f"{error.errors()[0]['msg']}; name a folder or s3://bucket/prefix"
        raise ParamsError(f"--store {uri!r}, --endpoint {endpoint!r}: {problem}") from None


def read_verdict_params(path: Path | None) -> "Verdict":
    """The section `verdict` of the params file given, which needs no other section; else as `read_params`."""
    from shadowft_core.params import load_verdict

    if path is None and not PARAMS_FILE.exists():
        return read_params(None).verdict
    return load_verdict(path or PARAMS_FILE)


def read_params_with_code(path: Path | None, allow_code: bool) -> "Params":
    """The params, with `evaluate.allow_code_execution` also set by --allow-code-execution."""
    params = read_params(path)
    if not allow_code:
        return params
    section = params.evaluate.model_copy(update={"allow_code_execution": True})
    return params.model_copy(update={"evaluate": section})


def waivers_of(onto_base: bool, unrelated: bool) -> list[str]:
    """The checks of `graft` to waive, named as in recipe and receipt."""
    from shadowft_core.grafting import ONTO_BASE, UNRELATED

    return [name for name, given in ((ONTO_BASE, onto_base), (UNRELATED, unrelated)) if given]
