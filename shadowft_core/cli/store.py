"""The verbs `shadowft store ...`: deltas by digest, in a folder or an S3 bucket. All are safe to repeat."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from shadowft_core.cli.options import (
    PARAMS,
    STORE,
    DryRunOption,
    EndpointOption,
    JsonOption,
    ParamsOption,
    StoreOption,
    finite,
    out_folder,
    read_store,
)
from shadowft_core.cli.output import print_answer, say
from shadowft_core.errors import InputError, StoreCorruptError

verbs = typer.Typer()
store = typer.Typer(help="Publish, fetch, list, check and prune deltas, by digest.", no_args_is_help=True)
verbs.add_typer(store, name="store", rich_help_panel=STORE)


@store.command()
def publish(
    delta: Annotated[
        Path | None, typer.Option(help="folder made by `extract`; default: that of the candidate, below work/delta")
    ] = None,
    uri: StoreOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Send a delta to the store and print its digest. Sends only the chunks that the store lacks.

    Reads a delta folder; writes objects to the store. The first publish to a store runs `store probe`.

    Example: shadowft store publish --delta work/delta/shadow --store s3://bucket/deltas
    """
    from shadowft_core.store import publish as publish_delta

    digest = publish_delta(delta or _candidate_delta(), read_store(params, uri, endpoint))
    if as_json:
        print_answer("store.publish", {"digest": digest})
    else:
        say(digest)


def _candidate_delta() -> Path:
    """The delta of the candidate or, before there is a candidate.json, that of the route shadow."""
    from shadowft_core.selection import read_candidate

    file, route = Path("work/candidate.json"), "shadow"
    if file.is_file():
        candidate = read_candidate(file)
        if candidate.route is None:
            raise InputError(f"{file}: names no candidate: {candidate.reason} Name a delta with --delta")
        route = candidate.route
    return Path("work/delta", route)


@store.command()
def fetch(
    digest: Annotated[str, typer.Argument(help="sha256:<64 hex digits>, as printed by `store publish`")],
    out: Annotated[Path, out_folder("the delta")],
    uri: StoreOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Download a delta from the store and verify every byte.

    Reads the store; writes a delta folder.

    Example: shadowft store fetch sha256:... --out my_delta
    """
    from shadowft_core.delta import open_delta
    from shadowft_core.store import fetch_delta

    fetch_delta(
        digest, read_store(params, uri, endpoint), out, lambda folder, digests: open_delta(folder).verify(digests)
    )
    if as_json:
        print_answer("store.fetch", {"digest": digest, "out": str(out)})


@store.command()
def probe(
    uri: StoreOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Test whether a store server does what publishing relies on.

    Tests one winner per name among racing writers, wrong checksums refused, compare-and-swap, current listings.
    Reads and writes a few small objects under probe/. Exit code 8 if a test fails.

    Example: shadowft store probe --store s3://bucket/deltas --endpoint http://127.0.0.1:8333
    """
    from shadowft_core.store import probe as probe_store

    tested = read_store(params, uri, endpoint)
    probe_store(tested)
    if as_json:
        print_answer("store.probe", {"store": tested.uri, "passed": True})
    else:
        say("passed: one winner per name, wrong checksums refused, compare-and-swap, current listings")


@store.command()
def ls(
    uri: StoreOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """List the published deltas, oldest first: digest, time, kind, bytes, bytes shared with other deltas.

    Reads the store; writes nothing.

    Example: shadowft store ls --store s3://bucket/deltas
    """
    from shadowft_core.store import ls as list_deltas

    opened = read_store(params, uri, endpoint)
    found = list_deltas(opened)
    if as_json:
        print_answer("store.ls", {"deltas": [asdict(delta) for delta in found]})
        return
    if not found:
        say(f"{opened.uri}: no deltas; --store or SHADOWFT_STORE_URI names another store", err=True)
    for delta in found:
        when = f"{datetime.fromtimestamp(delta.published, UTC):%Y-%m-%d %H:%M} UTC"
        about = f"{delta.bytes / 1e6:.1f} MB ({delta.shared_bytes / 1e6:.1f} shared)"
        say(f"{delta.digest}  {when}  {delta.problem or f'{delta.kind}  {about}'}")


@store.command()
def check(
    digests: Annotated[
        list[str] | None, typer.Argument(help="deltas, recipes and verdicts to check; default: all")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="file that lets an interrupted check resume; default: var/check-*.txt", dir_okay=False),
    ] = None,
    uri: StoreOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Read every object of the deltas, recipes and verdicts and compare it with its digest.

    Lists each damaged or missing object; the exit code is 8 if there is any. Writes nothing to the store.

    Example: shadowft store check

    Example: shadowft store check sha256:... --store s3://bucket/deltas --json
    """
    from shadowft_core.store import check as run

    found = run(read_store(params, uri, endpoint), digests or (), state)
    if as_json:
        print_answer("store.check", asdict(found))
    else:
        for bad in found.bad:
            say(f"bad: {bad.problem} (needed by {', '.join(bad.deltas) or 'every version that names it'})")
        resumed = f"; {found.resumed} were checked before the interruption" if found.resumed else ""
        say(
            f"{found.objects - len(found.bad)} of {found.objects} objects of {found.deltas} deltas and {found.records} "
            f"records are good, {found.bytes / 1e6:.1f} MB{resumed}"
        )
    if found.bad:
        raise StoreCorruptError(
            f"{len(found.bad)} of {found.objects} objects are damaged or missing; remove the damaged ones, publish "
            "their deltas and register their runs again"
        )


@store.command()
def prune(
    grace_days: Annotated[
        float, typer.Option(min=0, max=36_500, callback=finite, help="keep objects written in the last N days")
    ] = 7.0,
    dry_run: DryRunOption = False,
    uri: StoreOption = None,
    endpoint: EndpointOption = None,
    as_json: JsonOption = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Remove the objects that no published delta uses.

    Interrupted publishes leave such objects, and so do deltas whose claim was removed.
    Safe while others publish. The grace period keeps objects that an interrupted publish would have to send again.

    Example: shadowft store prune --dry-run
    """
    from shadowft_core.store import prune as run

    found = run(read_store(params, uri, endpoint), grace_days * 86400, dry_run)
    if as_json:
        print_answer("store.prune", asdict(found) | {"dry_run": dry_run})
        return
    say(
        f"{'would remove' if dry_run else 'removed'} {found.removed} objects, {found.removed_bytes / 1e6:.1f} MB; "
        f"{found.in_use} are in use, {found.kept_young} unused ones are too young"
    )
