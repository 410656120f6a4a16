"""The version called `@champion`. The ledger decides it; MLflow's alias must name the same version."""

import time
from pathlib import Path
from typing import Any

from shadowft_core.errors import LedgerError, RegistryError
from shadowft_core.params import Registry, Store
from shadowft_core.promotion import records
from shadowft_core.promotion.ledger import Entry, Ledger
from shadowft_core.registry import copies, rebuild, store_for, tracking
from shadowft_core.registry.connection import connected

CHAMPION = "champion"
PAUSE = 1.0  # seconds that a running promotion may take to set the alias after the ledger


def recipe_named(reference: str, registry: Registry, store: Store) -> dict[str, Any]:
    """The recipe of a version: `models:/NAME/3`, `models:/NAME@ALIAS`, or the champion of the ledger in `store`.

    Raises LedgerError when ledger and alias differ, RegistryError for an unknown version or a record that was changed,
    store errors.
    """
    name, version = tracking.parsed(reference)
    with connected(registry, create=False) as client:
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

    `instruct` is the folder of the Instruct if its recorded reference cannot be resolved here, `deltas` the store of
    its deltas if they have moved. Returns the recipe. Raises what `recipe_named` raises, store errors, InputError when
    the Instruct cannot be resolved, GraftError when the result is not the registered model; `out` is then unchanged.
    """
    recipe = recipe_named(reference, registry, store)
    rebuild(recipe, out, instruct, deltas or store_for(recipe, store))
    return recipe


def require_alias_agrees(registry: Registry, store: Store, version: int, recipe: str) -> None:
    """Check a version that MLflow resolved: raise if the alias `champion` points at it and the ledger differs.

    `version` is a number of the registered model `registry.name`, `recipe` the digest of its recipe, and `store` has
    the ledger. A version without that alias passes.
    Raises LedgerError naming alias and ledger, RegistryError when MLflow does not answer, store errors.
    """
    with connected(registry, create=False) as client:
        if tracking.alias_of(client, registry.name, CHAMPION) != version:
            return
        entry = agreed(client, Ledger(store, registry.name))
    if entry.recipe != recipe:
        raise LedgerError(
            f"{registry.name} version {version}: its recipe is {recipe}, entry {entry.number} of the ledger has "
            f"{entry.recipe}; the record was changed, run `shadowft reconcile {registry.name}`"
        )


def is_champion(version: str) -> bool:
    """Whether a version is requested by the alias `champion`; some databases ignore case."""
    return version.casefold() == CHAMPION


def agreed(client: Any, ledger: Ledger) -> Entry:
    """The entry of the current champion. Raises LedgerError when the alias points at another version."""
    entry, alias = ledger.tip().entry, tracking.alias_of(client, ledger.name, CHAMPION)
    if entry is not None and alias != entry.version:  # a promotion may be about to set the alias
        time.sleep(PAUSE)
        entry, alias = ledger.tip().entry, tracking.alias_of(client, ledger.name, CHAMPION)
    if entry is None and alias is None:
        remedy = f"`shadowft promote {ledger.name} VERSION` makes a champion"
        raise RegistryError(f"{ledger.where}: nothing was ever promoted; {remedy}")
    if entry is None or alias != entry.version:
        end = f"ends at entry {entry.number}, version {entry.version}" if entry else "is empty"
        points = "is not set" if alias is None else f"points at version {alias}"
        raise LedgerError(
            f"{ledger.where}: {end}, yet {CHAMPION} {points}; the ledger decides; run "
            f"`shadowft reconcile {ledger.name}`"
        )
    return entry
