"""Champions as the ledger has them: their recipes, and their deltas fetched from the store and verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import shadowft_core.store as stores
from shadowft_core.delta import open_delta
from shadowft_core.errors import RegistryError, StoreError, StoreUnreachableError
from shadowft_core.params import Registry, Store
from shadowft_core.promotion.ledger import Entry, Ledger
from shadowft_core.registry import store_for
from shadowft_core.registry.rebuild import parse_recipe


@dataclass(frozen=True)
class Version:
    """A version that is or was champion; `recipe` makes the model `digest` of the Instruct."""

    version: int
    digest: str
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Champions:
    """The champion and the earlier ones of a ledger, as far as they are grafts on one Instruct."""

    where: str
    """names the ledger"""
    current: Version | None
    absent: str
    """why there is no current one; empty if there is"""
    earlier: list[Version]
    """latest first, each model once, without the current one"""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """earlier ones that cannot be rebuilt: `version`, `digest`, `reason`"""


def recipe_of(entry: Entry, where: str, store: Store, remedy: str) -> dict[str, Any]:
    """The recipe of an entry. Raises RegistryError, with `where` and `remedy`, if the store lacks it; store errors."""
    raw = stores.record(entry.recipe, store)
    if raw is None:
        raise RegistryError(f"{where}: its recipe {entry.recipe} is not in store {store.uri}; {remedy}")
    return parse_recipe(raw, f"store {store.uri}: recipe {entry.recipe}")


def champions_on(registry: Registry, store: Store, instruct: str) -> Champions:
    """The champions of `registry.name` that are grafts on the Instruct with this model digest.

    An earlier champion whose recipe is missing or damaged is skipped. Raises RegistryError if that of the current one
    is, LedgerError, store errors.
    """
    ledger = Ledger(store, registry.name)
    entries = list(ledger.backwards(ledger.tip()))
    if not entries:
        return Champions(ledger.where, None, f"{ledger.where}: nothing was ever promoted", [])
    last, absent = entries[0], ""
    where = f"champion of {registry.name}, version {last.version}"
    recipe = recipe_of(last, where, store, "name its store with SHADOWFT_STORE_URI")
    current: Version | None = Version(last.version, recipe["digest"], recipe)
    if (found := recipe["instruct"]["digest"]) != instruct:
        current, absent = None, f"{where}: is a graft on the Instruct {found}, this run has {instruct}"
    earlier: dict[str, Version] = {}
    skipped: dict[str, dict[str, Any]] = {}
    for entry in entries[1:]:
        if entry.model in earlier or entry.model in skipped or entry.model == last.model:
            continue
        try:
            recipe = recipe_of(entry, f"version {entry.version}", store, "it is lost")
        except StoreUnreachableError:
            raise
        except (RegistryError, StoreError) as error:
            skipped[entry.model] = skip(entry.version, entry.model, error)
            continue
        if recipe["instruct"]["digest"] == instruct:
            earlier[entry.model] = Version(entry.version, entry.model, recipe)
    return Champions(ledger.where, current, absent, list(earlier.values()), list(skipped.values()))


def skip(version: int, digest: str, reason: object) -> dict[str, Any]:
    """The entry of an earlier champion that cannot be rebuilt."""
    return {"version": version, "digest": digest, "reason": str(reason)}


def lost(version: Version, store: Store) -> str:
    """Why the deltas of a version cannot be had; empty if its store has them. Raises StoreUnreachableError."""
    try:
        where = store_for(version.recipe, store)
    except StoreError as error:
        return str(error)
    digests = [delta["digest"] for delta in version.recipe["deltas"]]
    return "".join(f"store {where.uri} lacks delta {digest}" for digest in digests if not stores.holds(digest, where))


@contextmanager
def fetched(version: Version, store: Store) -> Iterator[list[tuple[Path, float]]]:
    """How to make a version from its Instruct: (folder of a delta, scale), in temporary folders.

    Raises StoreError if a delta is missing, StoreCorruptError, DeltaError, StoreUnreachableError.
    """
    with TemporaryDirectory(prefix="shadowft-") as parts:
        deltas = []
        for number, delta in enumerate(version.recipe["deltas"]):
            place = Path(parts, str(number))
            stores.fetch_delta(
                delta["digest"],
                store_for(version.recipe, store),
                place,
                lambda got, digests: open_delta(got).verify(digests),
            )
            deltas.append((place, float(delta["scale"])))
        yield deltas
