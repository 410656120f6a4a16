"""The verbs that show and change which version of a registered model is champion."""

from datetime import datetime
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shadowft_core.cli.options import (
    PARAMS,
    REGISTRY,
    DryRunOption,
    JsonOption,
    NameArgument,
    ParamsOption,
    read_params,
)
from shadowft_core.cli.output import print_answer, say
from shadowft_core.errors import InputError

if TYPE_CHECKING:
    from shadowft_core.params import Registry, Store
    from shadowft_core.promotion import Entry, Promotion

verbs = typer.Typer()


@verbs.command(rich_help_panel=REGISTRY)
def promote(
    name: NameArgument,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="a version number or an alias")],
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="promote against the verdict; the reason is recorded")
    ] = None,
    after: Annotated[
        int | None, typer.Option(min=0, help="only if this is the number of the ledger's last entry (0: it is empty)")
    ] = None,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Make a version the champion, if its verdict is promote.

    Reads recipe and verdict from the store; writes an entry to the ledger, then moves the alias `champion`.
    Exit code 10 if the verdict does not allow it.

    Example: shadowft promote shadowft-pico challenger
    """
    from shadowft_core import promotion

    registry, store = _named(params, name)
    done = promotion.promote(registry, store, version, override, after)
    _show_promotion(done, as_json)
    if override is not None and done.changed and not done.entry.override:
        say(
            "promote: --override was not needed, because the verdict is promote; the ledger has the verdict's reasons, "
            "not yours",
            err=True,
        )


@verbs.command(rich_help_panel=REGISTRY)
def rollback(
    name: NameArgument,
    to: Annotated[
        str | None,
        typer.Option(help="an earlier champion: version number, or digest of model or recipe; default: the last one"),
    ] = None,
    reason: Annotated[str, typer.Option(help="why; recorded in the ledger")] = "",
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Make an earlier champion champion again. Each further call goes one champion further back.

    Writes an entry to the ledger, then moves the alias `champion`.

    Example: shadowft rollback shadowft-pico --reason "answers in the wrong language"
    """
    from shadowft_core import promotion

    registry, store = _named(params, name)
    _show_promotion(promotion.rollback(registry, store, to, reason), as_json)


@verbs.command(rich_help_panel=REGISTRY)
def reconcile(
    name: NameArgument,
    dry_run: DryRunOption = False,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Set the alias `champion` to the ledger's champion, send waiting registrations, and report each repair.

    Repairs an alias moved by hand, a deleted version, a promotion that was killed, and an outage of MLflow.

    Example: shadowft reconcile shadowft-pico --dry-run
    """
    from shadowft_core import promotion
    from shadowft_core.registry import register_pending, waiting

    registry, store = _named(params, name)
    found = promotion.reconcile(registry, store, dry_run)
    done, repaired = list(found.done), "would repair" if dry_run else "repaired"
    if not as_json:
        for line in done:
            say(f"{repaired}: {line}")
    late = [f"a registration waited: {line}" for line in waiting()]
    sent = [] if dry_run else register_pending(registry)
    late += [f"registered now: models:/{version.name}/{version.number}" for version in sent]
    done += late
    if as_json:
        answer = {"name": found.name, "champion": found.number, "dry_run": dry_run, "done": done}
        print_answer("reconciliation", answer)
        return
    for line in late:
        say(f"{repaired}: {line}")
    if not done:
        champion = f"champion is version {found.number}" if found.number else "nothing was ever promoted"
        say(f"{name}: alias and ledger agree, {champion}")


@verbs.command(rich_help_panel=REGISTRY)
def history(
    name: NameArgument,
    looks: Annotated[
        bool, typer.Option("--looks", help="list instead the looks at test items, with decisions and alpha left")
    ] = False,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """List every change of `champion`, oldest first. Exit code 9 if an entry was edited, removed or reordered.

    Reads the ledger; writes nothing.
    A dangling entry is one that the head does not name: a promotion was cut off, or the head was moved back.

    Example: shadowft history shadowft-pico

    Candidates judged on the test items: shadowft history shadowft-pico --looks
    """
    from shadowft_core import promotion

    if looks:
        _show_looks(params, name, as_json)
        return
    chain = promotion.history(*_named(params, name))
    if as_json:
        answer = {"name": name, "entries": _dumped(chain.entries), "dangling": _dumped(chain.dangling)}
        print_answer("history", answer)
        return
    for entry in chain.entries:
        against = f" AGAINST the verdict {entry.decision}" if entry.override else ""
        say(
            f"{entry.number:>4} {entry.when} {entry.action:<9} version {entry.version} {entry.model} by {entry.who}"
            f"{against}{': ' if entry.reason else ''}{reason_of(entry)}"
        )
    remedy = f"shadowft reconcile {name}" if chain.entries else f"shadowft promote {name} VERSION"
    for remark in chain.remarks:
        say(f"dangling: {remark}; run `{remedy}`")
    count = f"{len(chain.entries)} entr{'y' if len(chain.entries) == 1 else 'ies'}"
    say(f"{count}, the chain is complete{' up to its head' if chain.dangling else ''}")


def reason_of(entry: "Entry") -> str:
    """The reason of an entry: a person's whole, a verdict's only the first of its claims."""
    if entry.override or entry.action != "promote":
        return entry.reason
    return shorten(entry.reason, 200, placeholder=" ... (--json has all)")


def _show_looks(params: Path | None, name: str, as_json: bool) -> None:
    from shadowft_core import promotion

    read = read_params(params)
    alpha = read.verdict.alpha
    rows = promotion.looked(read.registry.named(name), read.store, alpha)
    if as_json:
        print_answer("looks", {"name": name, "alpha": alpha, "looks": rows})
        return
    for row in rows:
        say(
            f"{row['number']:>4} {row['when']} look {row['look']} {row['candidate']} of {row['model_name']}: "
            f"{row['decision'] or 'no registered version'}; alpha {row['alpha']:.3g}, {row['left']:.3g} left"
            f"{' (dangling: cut off, or the head was moved back; it counts)' if row['dangling'] else ''}"
        )
    count = f"{len(rows)} look{'' if len(rows) == 1 else 's'}"
    say(f"{count}; those that share items count together, and fresh items start again with alpha {alpha:g}")


@verbs.command("who-was", rich_help_panel=REGISTRY)
def who_was(
    name: NameArgument,
    at: Annotated[str, typer.Option(metavar="TIME", help="ISO 8601 with a time zone, for instance 2026-11-22T10:00Z")],
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """Print which version was champion at a time, and who made it champion.

    Reads the ledger; writes nothing. Exit code 9 if there was no champion.

    Example: shadowft who-was shadowft-pico --at 2026-11-22T10:00Z
    """
    from shadowft_core import promotion

    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise InputError(f"--at {at!r}: not a time; write 2026-11-22T10:00Z") from None
    _, store = _named(params, name)
    entry = promotion.who_was(store, name, moment)
    if as_json:
        print_answer("champion", {"name": name, "at": at, "entry": _dumped([entry])[0]})
        return
    say(
        f"champion of {name} at {at}: version {entry.version}, model {entry.model} "
        f"({entry.action} by {entry.who}, {entry.when}, entry {entry.number})"
    )


def _named(params: Path | None, name: str) -> "tuple[Registry, Store]":
    """Registry and store as configured, for this registered model. Raises ParamsError for a malformed name."""
    read = read_params(params)
    return read.registry.named(name), read.store


def _dumped(entries: "list[Entry]") -> list[dict[str, Any]]:
    return [entry.model_dump() | {"digest": entry.digest} for entry in entries]


def _show_promotion(done: "Promotion", as_json: bool) -> None:
    if as_json:
        facts = {"name": done.name, "champion": done.number, "previous": done.previous, "changed": done.changed}
        print_answer("promotion", facts | {"entry": _dumped([done.entry])[0]})
        return
    before = f"was version {done.previous}" if done.previous else "was not set"
    say(
        f"champion of {done.name} is version {done.number}"
        + (f" ({before}), ledger entry {done.entry.number}" if done.changed else " already")
    )
