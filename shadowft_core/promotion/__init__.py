"""Promotion that cannot lie: first the ledger, by compare-and-swap, then the alias `champion`, then a look back.

The ledger is the truth and the alias follows it: whoever moved the ledger sets the alias to the ledger's end, again if
the end has moved meanwhile. A process killed in between leaves the alias behind, and `reconcile` brings it up. MLflow's
stages are not used.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import shadowft_core.store as stores
from shadowft_core.errors import InputError, LedgerError, PromotionRefusedError, StoreError
from shadowft_core.params import Registry, Store
from shadowft_core.promotion import records
from shadowft_core.promotion.champion import (
    CHAMPION,
    agreed,
    is_champion,
    materialize,
    recipe_named,
    require_alias_agrees,
)
from shadowft_core.promotion.ledger import Chain, Entry, Ledger
from shadowft_core.registry import copies, store_for, tracking

__all__ = [
    "CHAMPION",
    "Chain",
    "Entry",
    "Promotion",
    "Repair",
    "history",
    "materialize",
    "promote",
    "recipe_named",
    "reconcile",
    "require_alias_agrees",
    "rollback",
    "who_was",
]

LONGEST_REASON = 2000  # characters
PATIENCE = 20  # times the alias is set while others move the ledger


@dataclass(frozen=True)
class Promotion:
    """Where `champion` points now, and the version before; `changed` is False when it pointed there already."""

    name: str
    number: int
    previous: int | None
    changed: bool
    entry: Entry


@dataclass(frozen=True)
class Repair:
    """What `reconcile` found and did, or would do; empty when alias and ledger agree. `number` is the champion."""

    name: str
    number: int | None
    done: tuple[str, ...]


def promote(
    registry: Registry, store: Store, version: str = "challenger", override: str | None = None, after: int | None = None
) -> Promotion:
    """Make a version (a number or an alias) champion if the claims of its verdict, as the store has it, say `promote`.

    `override` is the reason of a person who promotes against the verdict. `after` is the number of the ledger's last
    entry as the caller saw it: when the ledger has moved on, nothing happens. Without it, the ledger is read first.

    Raises PromotionRefusedError with the verdict's reasons; LedgerError naming the winner of a race; RegistryError for
    an unknown version, a record that the store lacks or MLflow has otherwise; StoreError when a delta is not in its
    store.
    """
    if override is not None and not 0 < len(override.strip()) <= LONGEST_REASON:
        raise PromotionRefusedError(
            f"--override needs a reason in words, at most {LONGEST_REASON} characters; it is kept"
        )
    ledger = Ledger(store, registry.name)
    tip = ledger.tip()
    if after is not None and tip.number != after:
        raise ledger.lost(tip)
    with tracking.connected(registry) as client:
        if is_champion(version):
            version = str(agreed(client, ledger).version)
        found = tracking.find(client, registry.name, version)
        recipe, decision, reasons = records.judgement_of(client, store, found)
        if decision != "promote" and override is None:
            raise PromotionRefusedError(
                f"{registry.name} version {found.version}: the verdict is {decision}: {reasons or 'no reason given'}. "
                f"Nothing was moved; a person may promote with --override REASON"
            )
        _require_deltas(recipe, store)
        number, before = int(found.version), tip.entry
        if before is not None and (before.version, before.recipe) == (number, found.tags["shadowft.recipe"]):
            return _unmoved(client, ledger, before)
        overridden = decision != "promote"
        entry = ledger.append(
            tip,
            undo=before.digest if before else None,
            action="promote",
            override=overridden,
            reason=str(override).strip() if overridden else reasons[:LONGEST_REASON],
            decision=decision,
            **_facts(found, recipe),
        )
        _follow(client, ledger)
    return Promotion(registry.name, number, before.version if before else None, changed=True, entry=entry)


def rollback(registry: Registry, store: Store, to: str | None = None, reason: str = "") -> Promotion:
    """Make an earlier champion champion again; nothing of the newest version is needed for it.

    Without `to`: the champion before this one; repeated, one further back. `to` is a version number, or the digest of
    a model or recipe, that has been champion. A version that was deleted from the registry is registered again from
    what the ledger knows.

    Raises LedgerError when there is no such earlier champion, and as `promote` does.
    """
    ledger = Ledger(store, registry.name)
    tip = ledger.tip()
    if tip.entry is None:
        raise LedgerError(f"{ledger.where}: nothing was ever promoted, so there is nothing to return to")
    if to is not None:
        wanted = next((e for e in ledger.backwards(tip) if to in (str(e.version), e.model, e.recipe)), None)
        if wanted is None:
            raise LedgerError(
                f"{ledger.where}: {to} was never champion; `shadowft history {registry.name}` lists who was, "
                f"`shadowft promote {registry.name} VERSION` makes a new one"
            )
    elif tip.entry.undo is None:
        raise LedgerError(f"{ledger.where}: no champion before version {tip.entry.version}; name one with --to")
    else:
        wanted = ledger.entry(tip.entry.undo)
    with tracking.connected(registry) as client:
        version = _standing(client, wanted) or _registered_again(client, wanted)
        recipe = copies.recipe_of(version, wanted.recipe)
        _require_deltas(recipe, store)
        if (tip.entry.version, tip.entry.recipe) == (int(version.version), wanted.recipe):
            return _unmoved(client, ledger, tip.entry)
        entry = ledger.append(
            tip,
            undo=wanted.undo,
            action="rollback",
            override=wanted.override,
            reason=reason.strip()[:LONGEST_REASON] or f"back to entry {wanted.number}",
            decision=wanted.decision,
            **_facts(version, recipe),
        )
        _follow(client, ledger)
    return Promotion(registry.name, entry.version, tip.entry.version, changed=True, entry=entry)


def reconcile(registry: Registry, store: Store, dry_run: bool = False) -> Repair:
    """Make the alias follow the ledger: moved by hand, its version deleted, or left behind by a killed process.

    What was done stands in the ledger too, and so does an entry that dangles, with whoever wrote it. Raises LedgerError
    when the alias stands without a ledger or at a dangling entry, or when the ledger is damaged; RegistryError when the
    champion's version is gone and cannot be registered again, or has another recipe.json; nothing is moved then.
    """
    ledger = Ledger(store, registry.name)
    chain = ledger.chain()
    tip = chain.tip
    with tracking.connected(registry) as client:
        alias = tracking.alias_of(client, registry.name, CHAMPION)
        if tip.entry is None:
            if alias is not None:
                raise LedgerError(
                    f"{ledger.where}: is empty, yet {CHAMPION} points at version {alias}; "
                    f"`shadowft promote {registry.name} {alias}` makes it the first entry"
                )
            return Repair(registry.name, None, ())
        if alias != tip.entry.version and (ahead := [e for e in chain.dangling if e.version == alias]):
            if (now := ledger.tip()) != tip:
                raise ledger.lost(now)
            raise LedgerError(
                f"{ledger.where}: ends at entry {tip.number}, version {tip.entry.version}, yet {CHAMPION} points at "
                f"version {alias} of entry {ahead[0].number}, which the head does not name: the head was moved back, "
                "or the alias by hand; restore the head from the bucket's versions, or confirm version "
                f"{tip.entry.version} with `shadowft rollback {registry.name} --to {tip.entry.version}`"
            )
        done = chain.remarks
        version = _standing(client, tip.entry)
        if version is None or int(version.version) != tip.entry.version:
            done.append(f"version {tip.entry.version} is gone from the registry, or carries another recipe")
        if version is None:
            done.append("its recipe is registered again as a new version")
            if not dry_run:
                version = _registered_again(client, tip.entry)
        recipe = copies.recipe_of(version, tip.entry.recipe) if version is not None else {}
        number = int(version.version) if version is not None else None
        if alias is None or alias != number:
            where = "nowhere" if alias is None else f"at version {alias}"
            done.append(f"{CHAMPION} pointed {where}, it is set to version {number or '(new)'}")
        if done and not dry_run:
            ledger.append(
                tip,
                undo=tip.entry.undo,
                action="reconcile",
                override=tip.entry.override,
                reason="; ".join(done)[:LONGEST_REASON],
                decision=tip.entry.decision,
                **_facts(version, recipe),
            )
            number = _follow(client, ledger).version
    return Repair(registry.name, number, tuple(done))


def history(store: Store, name: str) -> Chain:
    """The whole chain, first entry first. Raises LedgerError on an edited, missing or reordered entry.

    An entry that dangles is no error: a promotion may be under way, or was cut off. It may also be the only trace of a
    head moved back by one.
    """
    return Ledger(store, name).chain()


def who_was(store: Store, name: str, at: datetime) -> Entry:
    """The last entry of the chain that was written at or before `at` (with its time zone).

    Raises LedgerError when there was no champion yet, InputError for a time without a zone.
    """
    if at.tzinfo is None:
        raise InputError(f"--at {at.isoformat()}: no time zone; write 2026-11-22T10:00Z or with an offset")
    ledger = Ledger(store, name)
    first = None
    for entry in ledger.backwards(ledger.tip()):
        if datetime.fromisoformat(entry.when) <= at:
            return entry
        first = entry
    since = f"the first was made champion at {first.when}" if first else "nothing was ever promoted"
    raise LedgerError(f"{ledger.where}: had no champion at {at.isoformat()}; {since}")


def _facts(version: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": int(version.version),
        "model": recipe["digest"],
        "recipe": version.tags["shadowft.recipe"],
        "verdict": recipe["verdict"]["digest"],
        "run_id": version.run_id,
        "source": version.source,
    }


def _require_deltas(recipe: dict[str, Any], configured: Store) -> None:
    store = store_for(recipe, configured)
    for delta in recipe["deltas"]:
        if not stores.holds(delta["digest"], store):
            raise StoreError(
                f"store {store.uri}: delta {delta['digest']} of this version is not there, so nobody "
                "could rebuild it; publish it again, or name its store with SHADOWFT_STORE_URI. Nothing was moved"
            )


def _standing(client: Any, entry: Entry) -> Any | None:
    """The version of the entry, or another one with the same recipe when that is gone; None when there is none."""
    same = tracking.versions_with(client, entry.name, "shadowft.recipe", entry.recipe)
    return next((row for row in same if int(row.version) == entry.version), next(iter(same), None))


def _registered_again(client: Any, entry: Entry) -> Any:
    return copies.version_again(client, entry.name, entry.source, entry.run_id, entry.recipe)


def _unmoved(client: Any, ledger: Ledger, standing: Entry) -> Promotion:
    """The answer to who asked for the standing champion; the alias is repaired if a killed process left it behind."""
    if _follow(client, ledger) != standing:
        raise ledger.lost(ledger.tip())
    return Promotion(ledger.name, standing.version, standing.version, changed=False, entry=standing)


def _follow(client: Any, ledger: Ledger) -> Entry:
    """Set the alias to the end of the ledger until the two agree; return that entry."""
    for _ in range(PATIENCE):
        entry = ledger.tip().entry
        if entry is None:
            break
        tracking.point(client, ledger.name, CHAMPION, entry.version)
        if ledger.tip().entry == entry and tracking.alias_of(client, ledger.name, CHAMPION) == entry.version:
            return entry
    raise LedgerError(
        f"{ledger.where}: moved on {PATIENCE} times; run `shadowft reconcile {ledger.name}` when it rests"
    )
