"""The acts: verbs that are not stages, because they change something outside the workspace. All are safe to repeat."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadowft_core.errors import ParamsError, StoreCorruptError

if TYPE_CHECKING:
    from shadowft_core.params import Params, Section, Store

acts = typer.Typer()
store = typer.Typer(help="The delta store: deltas by digest, in an S3 bucket or a folder.", no_args_is_help=True)
acts.add_typer(store, name="store", rich_help_panel="Acts")

PARAMS: Path | None = None
PARAMS_FILE = Path("params.yaml")


def _there(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ParamsError(f"{path}: no such file; name an existing one with --params FILE")
    return path


ParamsOption = Annotated[
    Path | None,
    typer.Option(
        "--params", callback=_there, help="the params.yaml to read; default: this folder's, else built-in defaults"
    ),
]
UriOption = Annotated[str | None, typer.Option(help="a folder or s3://bucket/prefix; default from params.yaml")]
EndpointOption = Annotated[str | None, typer.Option(help="URL of an S3 server other than AWS")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object for machines")]

OntoBaseOption = Annotated[bool, typer.Option("--onto-base", help="allow the Instruct to be the delta's own Base")]
UnrelatedOption = Annotated[bool, typer.Option("--unrelated", help="allow an Instruct far from the delta's Base")]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="PATTERN", help="tensors that only one side may hold, a glob; repeatable"),
]


def read_params(path: Path | None, **sections: "Section") -> "Params":
    """The params.yaml given, else the one in this folder, else the defaults with the `sections` given.

    The reader is imported only here, so that `--help` is instant.
    """
    from shadowft_core.params import default_params, load_params

    if path is None and not PARAMS_FILE.exists():
        return default_params(**sections)
    return load_params(path or PARAMS_FILE)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, indented, without NaN: what --json of most verbs prints."""
    print(json.dumps(value, indent=2, allow_nan=False))


def waivers_of(onto_base: bool, unrelated: bool) -> list[str]:
    """The checks of `graft` that a person waived, by their names in recipe and receipt."""
    from shadowft_core.graft import ONTO_BASE, UNRELATED

    return [name for name, given in ((ONTO_BASE, onto_base), (UNRELATED, unrelated)) if given]


def _store(params: Path | None, uri: str | None, endpoint: str | None) -> "Store":
    """The store of the command line, else of the environment, else of params.yaml, which --uri makes unneeded."""
    from shadowft_core.params import Store

    if uri is not None:
        return Store.model_validate({"uri": uri, "endpoint": endpoint})
    store = read_params(params).store
    return store.model_copy(update={"endpoint": endpoint}) if endpoint is not None else store


@store.command()
def publish(
    delta: Annotated[Path, typer.Option(help="folder made by `extract`")] = Path("work/delta/shadow"),
    uri: UriOption = None,
    endpoint: EndpointOption = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Put a delta into the store and print its digest. Only what is not there is sent.

    Example: shadowft store publish --delta work/delta/shadow --uri s3://bucket/deltas
    """
    from shadowft_core.store import publish as run

    print(run(delta, _store(params, uri, endpoint)))


@store.command()
def fetch(
    digest: Annotated[str, typer.Argument(help="sha256:<64 hex digits>, as `store publish` printed it")],
    out: Annotated[Path, typer.Option(help="folder to make")],
    uri: UriOption = None,
    endpoint: EndpointOption = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Get a delta out of the store, every byte verified.

    Example: shadowft store fetch sha256:... --out my_delta
    """
    from shadowft_core.delta import open_delta
    from shadowft_core.store import fetch_delta as run

    run(digest, _store(params, uri, endpoint), out, lambda folder, digests: open_delta(folder).verify(digests))


@store.command()
def probe(uri: UriOption = None, endpoint: EndpointOption = None, params: ParamsOption = PARAMS) -> None:
    """Check that a store keeps the promises publishing relies on.

    Example: shadowft store probe --uri s3://bucket/deltas --endpoint http://127.0.0.1:8333
    """
    from shadowft_core.store import probe as run

    run(_store(params, uri, endpoint))
    print(
        "the store keeps its promises: one winner per name, wrong checksums refused, compare-and-swap, current listings"
    )


@store.command()
def ls(
    uri: UriOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """List the published deltas, the oldest first: digest, kind, bytes, bytes shared with others, when.

    Example: shadowft store ls --uri s3://bucket/deltas
    """
    from shadowft_core.store import ls as run

    found = run(_store(params, uri, endpoint))
    if as_json:
        print(json.dumps({"deltas": [asdict(delta) for delta in found]}))
        return
    for delta in found:
        when = f"{datetime.fromtimestamp(delta.published, UTC):%Y-%m-%d %H:%M} UTC"
        about = f"{delta.bytes / 1e6:.1f} MB ({delta.shared_bytes / 1e6:.1f} shared)"
        print(f"{delta.digest}  {when}  {delta.problem or f'{delta.kind}  {about}'}")


@store.command()
def verify(
    digests: Annotated[
        list[str] | None, typer.Argument(help="deltas, recipes and verdicts to check; all when none is named")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="file that keeps the place of an interrupted run; default var/check-*.txt")
    ] = None,
    uri: UriOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Read every object of the deltas, recipes and verdicts and compare it with its digest. Names every bad one.

    Exit code 8 if there is any.

    Example: shadowft store verify

    Example: shadowft store verify sha256:... --uri s3://bucket/deltas --json
    """
    from shadowft_core.store import check as run

    found = run(_store(params, uri, endpoint), digests or (), state)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        for bad in found.bad:
            print(f"bad: {bad.problem} (needed by {', '.join(bad.deltas) or 'every version that names it'})")
        print(
            f"{found.objects - len(found.bad)} of {found.objects} objects of {found.deltas} deltas and {found.records} "
            f"records are good, {found.bytes / 1e6:.1f} MB; {found.resumed} had been checked before"
        )
    if found.bad:
        raise StoreCorruptError(
            f"{len(found.bad)} of {found.objects} objects are damaged or missing; remove the damaged ones, publish "
            "their deltas and register their runs again"
        )


@store.command()
def gc(
    grace_days: Annotated[float, typer.Option(min=0, help="keep what was written in so many last days")] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="remove nothing, say what would go")] = False,
    uri: UriOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Remove what no published delta uses: left by interrupted publishes, or by deltas whose claim was removed.

    Safe beside running publishes. The grace spares what an interrupted publish has sent, for its next try.

    Example: shadowft store gc --dry-run
    """
    from shadowft_core.store import prune as run

    found = run(_store(params, uri, endpoint), grace_days * 86400, dry_run)
    if as_json:
        print(json.dumps(asdict(found) | {"dry_run": dry_run}))
        return
    print(
        f"{'would remove' if dry_run else 'removed'} {found.removed} objects, {found.removed_bytes / 1e6:.1f} MB; "
        f"{found.in_use} are in use, {found.kept_young} unused ones are too young"
    )


@acts.command(rich_help_panel="Acts")
def regraft(
    recipe: Annotated[Path, typer.Option(help="recipe.json of a grafted folder, or a registered one")],
    instruct: Annotated[Path, typer.Option(help="the new Instruct: a newer release or a variant of the same Base")],
    out: Annotated[Path, typer.Option(help="folder to make: a complete Hugging Face model, recipe.json, receipt.json")],
    delta: Annotated[
        list[Path] | None, typer.Option(help="folder of a delta of the recipe, repeatable; else from its store")
    ] = None,
    onto_base: OntoBaseOption = False,
    unrelated: UnrelatedOption = False,
    ignore: IgnoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the new recipe")] = False,
) -> None:
    """Carry the deltas of a recipe to another Instruct of the same Base. The new recipe needs its own verdict.

    Example: shadowft regraft --recipe work/grafted/shadow/recipe.json --instruct my_newer_instruct
    --delta work/delta/shadow --out my_model
    """
    from shadowft_core.registry.regraft import regraft as run

    made = run(recipe, instruct, delta or [], out, waivers_of(onto_base, unrelated), ignore or ())
    if as_json:
        print_json(made)
