"""The verbs from a judged run to a served model: register, promote and its way back, materialize, export."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadowft_core.cli.store import PARAMS, PARAMS_FILE, JsonOption, ParamsOption, print_json, read_params
from shadowft_core.errors import InputError

if TYPE_CHECKING:
    from shadowft_core.params import Registry, Store
    from shadowft_core.promotion import Entry, Promotion

releases = typer.Typer()

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="the registered model")]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="where deltas, records and ledger are, a folder or s3://bucket/prefix")
]
INSTRUCT = "folder of the Instruct; default as recorded"


class Target(StrEnum):
    """What is exported."""

    MERGED = "merged"
    VLLM = "vllm"


@releases.command(rich_help_panel="Acts")
def register(
    work: Annotated[Path, typer.Option(help="folder with the outputs of all stages")] = Path("work"),
    lock: Annotated[Path, typer.Option(help="the dvc.lock of the run")] = Path("dvc.lock"),
    pending: Annotated[bool, typer.Option("--pending", help="send what waits in var/pending, nothing else")] = False,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Record the run in MLflow and register its recipe as `challenger`; the delta is published first.

    When MLflow does not answer, all it needs is kept in var/pending and sent by the next `register`, or by --pending.

    Example: shadowft register --work work
    """
    from dataclasses import asdict

    from shadowft_core.registry import git_state, register_pending
    from shadowft_core.registry import register as run

    read = read_params(params)
    if pending:
        versions = register_pending(read.registry)
    else:
        versions = [run(read, work, lock, params or PARAMS_FILE, git_state(lock.absolute().parent))]
    if as_json:
        print_json({"versions": [asdict(version) for version in versions]})
        return
    for version in versions:
        print(f"models:/{version.name}/{version.number}")
    if not versions:
        print("no registration waits")


@releases.command(rich_help_panel="Acts")
def promote(
    version: Annotated[str, typer.Argument(help="a version number or an alias")] = "challenger",
    override: Annotated[str | None, typer.Option(help="promote against the verdict; the reason is recorded")] = None,
    after: Annotated[
        int | None, typer.Option(min=0, help="only if the ledger still ends at this entry (0: is empty)")
    ] = None,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Make a version the champion, if its verdict says so: first in the ledger, then the alias `champion`.

    Example: shadowft promote challenger
    """
    from shadowft_core.promotion import promote as run

    read = read_params(params)
    _show_promotion(run(read.registry, read.store, version, override, after), as_json)


@releases.command(rich_help_panel="Acts")
def rollback(
    name: NameArgument,
    to: Annotated[str | None, typer.Option(help="a version number, or the digest of a model or recipe")] = None,
    reason: Annotated[str, typer.Option(help="why; recorded")] = "",
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Make the champion before this one champion again; repeated, one further back.

    Example: shadowft rollback shadowft-pico --reason "answers in the wrong language"
    """
    from shadowft_core.promotion import rollback as run

    registry, store = _named(params, name)
    _show_promotion(run(registry, store, to, reason), as_json)


@releases.command(rich_help_panel="Acts")
def reconcile(
    name: NameArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, change nothing")] = False,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Make the alias `champion` follow the ledger again, send every registration that waits, and say what was wrong.

    For an alias moved by hand, a version deleted from the registry, a promotion that was killed half-way, an outage of
    MLflow.

    Example: shadowft reconcile shadowft-pico --dry-run
    """
    from shadowft_core.promotion import reconcile as run
    from shadowft_core.registry import register_pending, waiting

    registry, store = _named(params, name)
    found = run(registry, store, dry_run)
    done, repaired = list(found.done), "would repair" if dry_run else "repaired"
    if not as_json:
        print("".join(f"{repaired}: {line}\n" for line in done), end="")
    late = [f"a registration waited: {line}" for line in waiting()]
    sent = [] if dry_run else register_pending(registry)
    late += [f"registered now: models:/{version.name}/{version.number}" for version in sent]
    done += late
    if as_json:
        print_json({"name": found.name, "champion": found.number, "dry_run": dry_run, "done": done})
        return
    print("".join(f"{repaired}: {line}\n" for line in late), end="")
    if not done:
        champion = f"champion is version {found.number}" if found.number else "nothing was ever promoted"
        print(f"{name}: alias and ledger agree, {champion}")


@releases.command(rich_help_panel="Looks")
def history(name: NameArgument, params: ParamsOption = PARAMS, as_json: JsonOption = False) -> None:
    """Every move of `champion`, first to last. Exit code 9 when an entry was edited, removed or reordered.

    An entry that the head does not name is listed as dangling: a promotion that was cut off, or a head moved back.

    Example: shadowft history shadowft-pico
    """
    from shadowft_core.promotion import history as run

    chain = run(*_named(params, name))
    if as_json:
        print_json({"name": name, "entries": _dumped(chain.entries), "dangling": _dumped(chain.dangling)})
        return
    for entry in chain.entries:
        against = f" AGAINST the verdict {entry.decision}" if entry.override else ""
        print(
            f"{entry.number:>4} {entry.when} {entry.action:<9} version {entry.version} {entry.model} by {entry.who}"
            f"{against}{': ' if entry.reason else ''}{entry.reason}"
        )
    remedy = f"shadowft reconcile {name}" if chain.entries else "shadowft promote"
    for remark in chain.remarks:
        print(f"dangling: {remark}; run `{remedy}`")
    print(f"{len(chain.entries)} entries, the chain is whole{' up to its head' if chain.dangling else ''}")


@releases.command("who-was", rich_help_panel="Looks")
def who_was(
    name: NameArgument,
    at: Annotated[str, typer.Option(help="ISO 8601 with a time zone, for instance 2026-11-22T10:00Z")],
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Which version was champion at a time, and by whose hand.

    Example: shadowft who-was shadowft-pico --at 2026-11-22T10:00Z
    """
    from shadowft_core.promotion import who_was as run

    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise InputError(f"--at {at!r}: not a time; write 2026-11-22T10:00Z") from None
    _, store = _named(params, name)
    entry = run(store, name, moment)
    if as_json:
        print_json(*_dumped([entry]))
        return
    print(
        f"champion of {name} at {at}: version {entry.version}, model {entry.model} "
        f"({entry.action} by {entry.who}, {entry.when}, entry {entry.number})"
    )


@releases.command(rich_help_panel="Acts")
def materialize(
    reference: Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/3")],
    out: Annotated[Path, typer.Option(help="folder to make: the complete Hugging Face model")],
    instruct: Annotated[Path | None, typer.Option(help=INSTRUCT)] = None,
    store: StoreOption = None,
    params: ParamsOption = PARAMS,
) -> None:
    """Rebuild a registered model from its recipe, bit for bit.

    Example: shadowft materialize models:/shadowft-pico@champion --out my_model
    """
    from shadowft_core.promotion import materialize as run

    read, elsewhere = read_params(params), _elsewhere(store, params)
    recipe = run(reference, out, read.registry, elsewhere or read.store, instruct, elsewhere)
    print(f"{out}: {recipe['digest']}, as registered")


@releases.command(rich_help_panel="Acts")
def export(
    target: Annotated[Target, typer.Option("--for", help="merged: a complete model; vllm: a LoRA adapter")],
    out: Annotated[Path, typer.Option(help="folder to make")],
    delta: Annotated[
        str | None, typer.Option(metavar="DIR@SCALE", help="folder made by `extract`, and its scale")
    ] = None,
    recipe: Annotated[str | None, typer.Option(metavar="models:/NAME@ALIAS", help="a registered version")] = None,
    instruct: Annotated[Path | None, typer.Option(help="folder of the Instruct; with --recipe as recorded")] = None,
    max_lora_rank: Annotated[int, typer.Option(help="what the vLLM server is started with")] = 512,
    store: StoreOption = None,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Make what a server loads: a complete model, or the delta alone as an adapter for vLLM.

    The adapter needs a LoRA delta on linear layers at one scale; rules with their sources say what else.

    Example: shadowft export --for vllm --recipe models:/shadowft-pico@champion --out my_adapter

    Example: shadowft export --for vllm --delta my_delta@0.75 --instruct my_instruct --out my_adapter
    """
    if (delta is None) == (recipe is None):
        raise InputError("export: pass either --delta DIR@SCALE or --recipe models:/NAME@ALIAS")
    if delta is not None:
        made = _export_delta(target, delta, instruct, out, max_lora_rank)
    else:
        made = _export_version(target, str(recipe), instruct, out, max_lora_rank, store, params)
    if as_json:
        print_json({"out": str(out), "for": target.value, **made})
    else:
        print(f"{out}: {made.get('digest') or 'an adapter for ' + made['base_model_name_or_path']}")


def _export_delta(target: Target, delta: str, instruct: Path | None, out: Path, max_rank: int) -> dict[str, Any]:
    from shadowft_core.export import export_adapter
    from shadowft_core.graft import graft, parse_delta

    folder, scale = parse_delta(delta)
    if scale is None or instruct is None:
        raise InputError(
            f"--delta {delta}: DIR@SCALE is wanted, for instance my_delta@0.75, and --instruct DIR with it"
        )
    if target is Target.MERGED:
        return graft(instruct, [(folder, scale)], out)
    return export_adapter(instruct, [(folder, scale)], out, max_rank=max_rank)


def _export_version(
    target: Target, version: str, instruct: Path | None, out: Path, max_rank: int, uri: str | None, params: Path | None
) -> dict[str, Any]:
    import tempfile

    from shadowft_core.export import export_adapter
    from shadowft_core.graft import Options, options_of
    from shadowft_core.promotion import materialize as rebuilt
    from shadowft_core.promotion import recipe_named
    from shadowft_core.registry import ingredients, store_for

    read, store = read_params(params), _elsewhere(uri, params)
    if target is Target.MERGED:
        return rebuilt(version, out, read.registry, store or read.store, instruct, store)
    recipe = recipe_named(version, read.registry, store or read.store)
    reference = str(recipe["instruct"]["ref"])  # a server knows hub names and folders
    named = reference.removeprefix("hf:").partition("@")[0] if reference.startswith("hf:") else None
    with tempfile.TemporaryDirectory() as parts:
        folder, deltas = ingredients(recipe, Path(parts), instruct, store or store_for(recipe, read.store))
        return export_adapter(folder, deltas, out, Options(**options_of(recipe)), named, max_rank)


def _elsewhere(uri: str | None, params: Path | None) -> "Store | None":
    return read_params(params).store.model_copy(update={"uri": uri}) if uri else None


def _named(params: Path | None, name: str) -> "tuple[Registry, Store]":
    """Registry and store of params.yaml, for this registered model. Raises ParamsError for an impossible name."""
    read = read_params(params)
    return read.registry.named(name), read.store


def _dumped(entries: "list[Entry]") -> list[dict[str, Any]]:
    return [entry.model_dump() | {"digest": entry.digest} for entry in entries]


def _show_promotion(done: "Promotion", as_json: bool) -> None:
    if as_json:
        facts = {"name": done.name, "champion": done.number, "previous": done.previous, "changed": done.changed}
        print_json(facts | {"entry": _dumped([done.entry])[0]})
        return
    before = f"was version {done.previous}" if done.previous else "was not set"
    print(
        f"champion of {done.name} is version {done.number}"
        + (f" ({before}), ledger entry {done.entry.number}" if done.changed else " already")
    )
