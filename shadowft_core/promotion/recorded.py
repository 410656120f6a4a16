"""The champion as the ledger has it: its recipe, and its deltas fetched from the store and verified."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shadowft_core.store as stores
from shadowft_core.delta import open_delta
from shadowft_core.errors import RegistryError
from shadowft_core.params import Registry, Store
from shadowft_core.promotion.ledger import Entry, Ledger
from shadowft_core.registry import store_for
from shadowft_core.registry.rebuild import parse_recipe
from shadowft_core.weights import open_checkpoint


@dataclass(frozen=True)
class Champion:
    """The model of the ledger's last entry, and how to make it from the Instruct: (folder of a delta, scale)."""

    version: int
    recipe: dict[str, Any]
    deltas: list[tuple[Path, float]]


def recipe_of(entry: Entry, where: str, store: Store, remedy: str) -> dict[str, Any]:
    """The recipe of an entry. Raises RegistryError, with `where` and `remedy`, if the store lacks it; store errors."""
    raw = stores.record(entry.recipe, store)
    if raw is None:
        raise RegistryError(f"{where}: its recipe {entry.recipe} is not in store {store.uri}; {remedy}")
    return parse_recipe(raw, f"store {store.uri}: recipe {entry.recipe}")


def fetch_champion(
    registry: Registry, store: Store, instruct: Path, parts: Path, say: Callable[[str], None]
) -> Champion | None:
    """The champion of `registry.name`, with its deltas in the folder `parts`.

    None, and `say` tells why, if nothing was ever promoted, or if the champion is a graft on another Instruct than the
    one in the folder `instruct`. Raises RegistryError if its recipe is missing, LedgerError, CheckpointError, store
    errors.
    """
    ledger = Ledger(store, registry.name)
    entry = ledger.tip().entry
    if entry is None:
        say(f"{ledger.where}: nothing was ever promoted")
        return None
    where = f"champion of {registry.name}, version {entry.version}"
    recipe = recipe_of(entry, where, store, "name its store with SHADOWFT_STORE_URI")
    expected, found = recipe["instruct"]["digest"], open_checkpoint(instruct).digest()
    if found != expected:
        say(f"{where}: is a graft on the Instruct {expected}, {instruct} has {found}")
        return None
    deltas = []
    for number, delta in enumerate(recipe["deltas"]):
        place = parts / str(number)
        stores.fetch_delta(
            delta["digest"], store_for(recipe, store), place, lambda got, digests: open_delta(got).verify(digests)
        )
        deltas.append((place, float(delta["scale"])))
    return Champion(entry.version, recipe, deltas)
