"""Which version is `@champion`: the ledger decides. MLflow's alias only mirrors it; a different alias is an error."""

import time
from pathlib import Path
from typing import Any

from shadowft_core.errors import LedgerError, RegistryError
from shadowft_core.params import Registry, Store
from shadowft_core.promotion import records
from shadowft_core.promotion.ledger import Entry, Ledger
from shadowft_core.registry import copies, rebuild, store_for, tracking

CHAMPION = "champion"
PAUSE = 1.0  # seconds that a promotion in progress gets to move the alias after the ledger


def recipe_named(reference: str, registry: Registry, store: Store) -> dict[str, Any]:
    """The recipe of `models:/NAME@champion`, by the ledger in `store`, of another alias, or of `models:/NAME/3`.

    Raises LedgerError when ledger and alias are apart, RegistryError for an unknown version or a record that was
    changed, store errors.
    """
    name, version = tracking.parsed(reference)
    with tracking.connected(registry) as client:
        if not is_champion(version):
            return records.recipe_of(store, tracking.find(client, name, version))
        entry = agreed(client, Ledger(store, name))
        return copies.recipe_of(tracking.find(client, name, str(entry.version)), entry.recipe)


def materialize(
    reference: str,
    out: Path,
    registry: Registry,
    store: Store,
    instruct: Path | None = None,
    deltas: Store | None = None,
) -> dict[str, Any]:
    """Rebuild a registered model, bit for bit, from its recipe; `reference` and `store` as for `recipe_named`.

    `instruct` is the folder of the Instruct when its recorded reference cannot be resolved here, `deltas` the store
    where its deltas are now. Returns the recipe. Raises what `recipe_named` raises, store errors, PairError, or
    GraftError when the result is not what was registered; `out` is then absent.
    """
    recipe = recipe_named(reference, registry, store)
    rebuild(recipe, out, instruct, deltas or store_for(recipe, store))
    return recipe


def require_alias_agrees(registry: Registry, store: Store, version: int, recipe: str) -> None:
    """Check a version that MLflow resolved: raise when `champion` names it and the ledger does not.

    `version` is a number of the registered model `registry.name`, `recipe` the digest of its recipe, and `store` holds
    the ledger. A version that is not called champion passes: nobody was told that it is one.
    Raises LedgerError naming alias and ledger, RegistryError when MLflow does not answer, store errors.
    """
    with tracking.connected(registry) as client:
        if tracking.alias_of(client, registry.name, CHAMPION) != version:
            return
        entry = agreed(client, Ledger(store, registry.name))
    if entry.recipe != recipe:
        raise LedgerError(
            f"{registry.name} version {version}: its recipe is {recipe}, the ledger made {entry.recipe} champion in "
            f"entry {entry.number}; the record was changed, run `shadowft reconcile {registry.name}`"
        )


def is_champion(version: str) -> bool:
    """Whether a version is requested by the ledger's alias; some databases ignore case."""
    return version.casefold() == CHAMPION


def agreed(client: Any, ledger: Ledger) -> Entry:
    """The entry of the current champion. Raises LedgerError when the alias names another version than the ledger."""
    entry, alias = ledger.tip().entry, tracking.alias_of(client, ledger.name, CHAMPION)
    if entry is not None and alias != entry.version:  # a promotion may be between ledger and alias: look once more
        time.sleep(PAUSE)
        entry, alias = ledger.tip().entry, tracking.alias_of(client, ledger.name, CHAMPION)
    if entry is None and alias is None:
        remedy = f"`shadowft promote {ledger.name} VERSION` makes a champion"
        raise RegistryError(f"{ledger.where}: nothing was ever promoted; {remedy}")
    if entry is None or alias != entry.version:
        says = f"ends at entry {entry.number}, version {entry.version}" if entry else "is empty"
        points = "nowhere" if alias is None else f"at version {alias}"
        raise LedgerError(
            f"{ledger.where}: {says}, yet {CHAMPION} points {points}; the ledger counts; run "
            f"`shadowft reconcile {ledger.name}`"
        )
    return entry
