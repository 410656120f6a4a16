"""Promotes a version: appends to the ledger by compare-and-swap, sets the alias `champion`, verifies it.

The ledger decides and the alias follows it. A process that appends to the ledger sets the alias to the last entry, and
repeats that if another entry was appended meanwhile. If a process is killed in between, `reconcile` sets the alias.
MLflow's stages are not used.
"""

from dataclasses import dataclass
from typing import Any

import shadowft_core.store as stores
from shadowft_core.errors import LedgerError, PromotionRefusedError, StoreError
from shadowft_core.params import Registry, Store
from shadowft_core.promotion import records
from shadowft_core.promotion.chain import Chain
from shadowft_core.promotion.champion import (
    CHAMPION,
    agreed,
    is_champion,
    materialize,
    recipe_named,
    require_alias_agrees,
)
from shadowft_core.promotion.history import history, looked, require_known, who_was
from shadowft_core.promotion.ledger import Entry, Ledger
from shadowft_core.registry import copies, store_for, tracking
from shadowft_core.registry.connection import connected, may_exist

__all__ = [
    "CHAMPION",
    "Chain",
    "Entry",
    "Promotion",
    "Repair",
    "history",
    "looked",
    "materialize",
    "promote",
    "recipe_named",
    "reconcile",
    "require_alias_agrees",
    "rollback",
    "who_was",
]

LONGEST_REASON = 2000  # characters
ATTEMPTS = 20  # times the alias is set while others append to the ledger


@dataclass(frozen=True)
class Promotion:
    """The champion's version now and before; `changed` is False if it already was the champion."""

    name: str
    number: int
    previous: int | None
    changed: bool
    entry: Entry


@dataclass(frozen=True)
class Repair:
    """What `reconcile` did, or would do; empty when alias and ledger agree. `number` is the champion's version."""

    name: str
    number: int | None
    done: tuple[str, ...]


def promote(
    registry: Registry, store: Store, version: str = "challenger", override: str | None = None, after: int | None = None
) -> Promotion:
    """Make a version (a number or an alias) champion, if the claims of its verdict in the store decide `promote`.

    `override` is the reason of a person who promotes against the verdict. `after` is the number of the ledger's last
    entry as the caller saw it: if the ledger has another last entry, nothing changes. By default it is read first.

    Raises PromotionRefusedError with the verdict's reasons; LedgerError naming the winner of a race; RegistryError for
    an unknown version, or a record that the store lacks or that differs in MLflow; StoreError when a delta is not in
    its store.
    """
    if override is not None and not 0 < len(override.strip()) <= LONGEST_REASON:
        raise PromotionRefusedError(
            f"--override needs a reason, at most {LONGEST_REASON} characters; the ledger records it"
        )
    ledger = Ledger(store, registry.name)
    tip = ledger.tip()
    if after is not None and tip.number != after:
        raise ledger.lost(tip)
    with connected(registry, create=False) as client:
        if is_champion(version):
            version = str(agreed(client, ledger).version)
        found = tracking.find(client, registry.name, version)
        recipe, decision, reasons = records.judgement_of(client, store, found)
        if decision != "promote" and override is None:
            raise PromotionRefusedError(
                f"{registry.name} version {found.version}: the verdict is {decision}: {_short(reasons)}. "
                f"Nothing was changed; a person may promote it with --override REASON"
            )
        _require_deltas(recipe, store)
        number, before = tracking.number_of(found), tip.entry
        if before is not None and (before.version, before.recipe) == (
            number,
            tracking.tag_of(found, "shadowft.recipe"),
        ):
            return _unchanged(client, ledger, before)
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


def _short(reasons: str) -> str:
    return f"{reasons:.600}{' ...' if len(reasons) > 600 else ''}" if reasons else "no reason given"


def rollback(registry: Registry, store: Store, to: str | None = None, reason: str = "") -> Promotion:
    """Make an earlier champion champion again. Does not need the current version.

    `to` is the version number, or the digest of the model or recipe, of a former champion. By default it is the
    champion before this one, so each call goes one further back. A version that was deleted from the registry is
    registered again from the facts in the ledger.

    Raises LedgerError when there is no such earlier champion or another process won a race, RegistryError, StoreError.
    """
    ledger = Ledger(store, registry.name)
    tip = ledger.tip()
    if tip.entry is None:
        raise LedgerError(
            f"{ledger.where}: nothing was ever promoted, so there is no earlier champion; promote a version first"
        )
    if to is not None:
        target = next((e for e in ledger.backwards(tip) if to in (str(e.version), e.model, e.recipe)), None)
        if target is None:
            raise LedgerError(
                f"{ledger.where}: {to} was never champion; `shadowft history {registry.name}` lists who was, "
                f"`shadowft promote {registry.name} VERSION` makes a new one"
            )
    elif tip.entry.undo is None:
        raise LedgerError(
            f"{ledger.where}: no champion before version {tip.entry.version}; `shadowft history {registry.name}` lists "
            "all champions, --to VERSION names one of them"
        )
    else:
        target = ledger.entry(tip.entry.undo)
    with connected(registry) as client:
        version = _existing(client, target) or _registered_again(client, target)
        recipe = copies.recipe_of(version, target.recipe)
        _require_deltas(recipe, store)
        if (tip.entry.version, tip.entry.recipe) == (tracking.number_of(version), target.recipe):
            return _unchanged(client, ledger, tip.entry)
        entry = ledger.append(
            tip,
            undo=target.undo,
            action="rollback",
            override=target.override,
            reason=reason.strip()[:LONGEST_REASON] or f"back to entry {target.number}",
            decision=target.decision,
            **_facts(version, recipe),
        )
        _follow(client, ledger)
    return Promotion(registry.name, entry.version, tip.entry.version, changed=True, entry=entry)


def reconcile(registry: Registry, store: Store, dry_run: bool = False) -> Repair:
    """Set the alias to the ledger's champion, after it was moved by hand, its version was deleted or a process died.

    The ledger records the repairs, and each dangling entry with its author. With `dry_run`, nothing is changed or
    created.

    Raises LedgerError when the alias is set but the ledger is empty, when the alias names the version of a dangling
    entry, or when the ledger is damaged; RegistryError when neither registry nor ledger knows the model, or when the
    champion's version was deleted and cannot be registered again, or has another recipe.json. Nothing is changed then.
    """
    ledger = Ledger(store, registry.name)
    chain = ledger.chain()
    tip = chain.tip
    require_known(registry, store, chain)
    if tip.entry is None and not may_exist(registry):  # only a registration that waits knows the model
        return Repair(registry.name, None, ())
    with connected(registry, create=not dry_run) as client:
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
                "or the alias was moved by hand; restore the head from the bucket's versions, or confirm version "
                f"{tip.entry.version} with `shadowft rollback {registry.name} --to {tip.entry.version}`"
            )
        done = chain.remarks
        version = _existing(client, tip.entry)
        if version is None or tracking.number_of(version) != tip.entry.version:
            done.append(f"version {tip.entry.version} was deleted from the registry, or has another recipe")
        if version is None:
            done.append("its recipe is registered again as a new version")
            if not dry_run:
                version = _registered_again(client, tip.entry)
        recipe = copies.recipe_of(version, tip.entry.recipe) if version is not None else {}
        number = tracking.number_of(version) if version is not None else None
        if alias is None or alias != number:
            before = "was not set" if alias is None else f"pointed at version {alias}"
            done.append(f"{CHAMPION} {before}, it is set to version {number or '(new)'}")
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


def _facts(version: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": tracking.number_of(version),
        "model": recipe["digest"],
        "recipe": tracking.tag_of(version, "shadowft.recipe"),
        "verdict": recipe["verdict"]["digest"],
        "run_id": str(version.run_id),
        "source": str(version.source),
    }


def _require_deltas(recipe: dict[str, Any], configured: Store) -> None:
    store = store_for(recipe, configured)
    for delta in recipe["deltas"]:
        if not stores.holds(delta["digest"], store):
            raise StoreError(
                f"store {store.uri}: lacks delta {delta['digest']} of this version, so the version cannot be "
                "rebuilt; publish it again, or name its store with SHADOWFT_STORE_URI. Nothing was changed"
            )


def _existing(client: Any, entry: Entry) -> Any | None:
    """The version of the entry or, if it was deleted, another one with the same recipe; None if there is none."""
    same = tracking.versions_with(client, entry.name, "shadowft.recipe", entry.recipe)
    return next((row for row in same if tracking.number_of(row) == entry.version), next(iter(same), None))


def _registered_again(client: Any, entry: Entry) -> Any:
    return copies.version_again(client, entry.name, entry.source, entry.run_id, entry.recipe)


def _unchanged(client: Any, ledger: Ledger, current: Entry) -> Promotion:
    """The result for a version that already is champion; sets the alias if a killed process did not."""
    if _follow(client, ledger) != current:
        raise ledger.lost(ledger.tip())
    return Promotion(ledger.name, current.version, current.version, changed=False, entry=current)


def _follow(client: Any, ledger: Ledger) -> Entry:
    """Set the alias to the version of the last entry until the two agree; return that entry."""
    for _ in range(ATTEMPTS):
        entry = ledger.tip().entry
        if entry is None:
            break
        tracking.set_alias(client, ledger.name, CHAMPION, entry.version)
        if ledger.tip().entry == entry and tracking.alias_of(client, ledger.name, CHAMPION) == entry.version:
            return entry
    raise LedgerError(
        f"{ledger.where}: changed {ATTEMPTS} times; run `shadowft reconcile {ledger.name}` once no other promotion is "
        "running"
    )
