"""The stage start: where a training begins. For weekly retraining, that is the champion's delta.

The folder has start.json and, for the champion, `delta/`, fetched from the store and verified. It pins the champion: a
later promotion changes nothing until the stage runs again.
"""

from pathlib import Path
from typing import Any

import shadowft_core.store as stores
from shadowft_core.delta import open_delta
from shadowft_core.errors import RegistryError, WrongBaseError, say
from shadowft_core.files import new_folder, write_json_atomically
from shadowft_core.params import Registry, Store
from shadowft_core.promotion.ledger import Ledger
from shadowft_core.promotion.recorded import recipe_of
from shadowft_core.registry import store_for
from shadowft_core.weights.pairfile import read_pair


def write_scratch(out: Path, reason: str = "") -> None:
    """Write the folder `out` for a training that begins at the model itself; `reason` is recorded if given."""
    with new_folder(out) as folder:
        facts: dict[str, Any] = {"format": 1, "start": "scratch"}
        write_json_atomically(folder / "start.json", facts | ({"reason": reason} if reason else {}))


def write_champion(registry: Registry, store: Store, pair: Path, out: Path) -> None:
    """Write the folder `out` with the delta of the champion of `registry.name`, as the ledger in `store` has it.

    `pair` is the pair.json of the run. The champion's delta is against its Base or, of a route that tunes the Instruct,
    against its Instruct. If nothing was ever promoted, the start is scratch, which start.json and stderr say.

    Raises WrongBaseError if the champion was made from another model, RegistryError if its recipe is missing or has
    several deltas, LedgerError, store errors. Then nothing is written.
    """
    ledger = Ledger(store, registry.name)
    entry = ledger.tip().entry
    if entry is None:
        reason = f"{ledger.where}: nothing was ever promoted"
        say(f"start: {reason}; training starts from scratch")
        write_scratch(out, f"{registry.name} has no champion")
        return
    where = f"champion of {registry.name}, version {entry.version}"
    recipe = recipe_of(entry, where, store, "name its store with SHADOWFT_STORE_URI, or set train.start to scratch")
    sides, base = read_pair(pair), recipe["base"]["digest"]
    if base not in (sides.base.digest, sides.instruct.digest):
        own = base == recipe["instruct"]["digest"]
        what, here = ("Instruct", sides.instruct) if own else ("Base", sides.base)
        raise WrongBaseError(
            f"{where}: was made from the {what} {base}, {pair} has {here.digest}; set train.start to "
            f"scratch, or fetch that {what}"
        )
    if len(recipe["deltas"]) != 1:
        raise RegistryError(
            f"{where}: its recipe merges {len(recipe['deltas'])} deltas, a training can start from one; set "
            "train.start to scratch"
        )
    digest = recipe["deltas"][0]["digest"]
    with new_folder(out) as folder:
        place = folder / "delta"
        stores.fetch_delta(
            digest, store_for(recipe, store), place, lambda got, digests: open_delta(got).verify(digests)
        )
        if (found := open_delta(place).base_digest) != base:
            raise WrongBaseError(
                f"{where}: its delta {digest} is against {found}, expected {base}; set train.start to scratch"
            )
        facts = {"format": 1, "start": "champion", "name": registry.name, "version": entry.version, "delta": digest}
        write_json_atomically(folder / "start.json", facts | {"recipe": entry.recipe, "base": base})
    say(f"start: {where}, delta {digest}")
