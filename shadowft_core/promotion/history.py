"""Reads the ledger: every change of the champion, and the champion at a given time. Lists the looks at test items."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import shadowft_core.store as stores
from shadowft_core.errors import InputError, LedgerError, RegistryError, say
from shadowft_core.params import Registry, Store
from shadowft_core.promotion.chain import Chain
from shadowft_core.promotion.ledger import Entry, Ledger
from shadowft_core.promotion.looks import ROOT, Looks
from shadowft_core.registry import tracking
from shadowft_core.registry.connection import connected, may_exist, uri_of
from shadowft_core.registry.rebuild import parse_recipe
from shadowft_core.registry.registration import waits
from shadowft_core.verdict.looks import alpha_left, alpha_of


def history(registry: Registry, store: Store) -> Chain[Entry]:
    """The whole chain, first entry first.

    A dangling entry is not an error: a promotion may be running, or was cut off. It may also be the only trace of a
    head that was moved back by one.

    Raises LedgerError for an edited, missing or reordered entry, RegistryError when neither registry nor ledger has the
    model. Queries MLflow only if the ledger is empty.
    """
    chain = Ledger(store, registry.name).chain()
    require_known(registry, store, chain)
    return chain


def require_known(registry: Registry, store: Store, chain: Chain[Entry]) -> None:
    """Raise RegistryError for a name that has no ledger, no registered model and no waiting registration."""
    if chain.entries or chain.dangling or waits(registry.name):
        return
    if may_exist(registry):
        with connected(registry, create=False) as client:
            if tracking.registered_model(client, registry.name) is not None:
                return
    raise RegistryError(
        f"{registry.name}: the registry at {uri_of(registry)} has no model of this name, and store {store.uri} has no "
        "ledger of it; correct the name, go to the folder of its workspace, or set MLFLOW_TRACKING_URI to its registry "
        "and SHADOWFT_STORE_URI to its store"
    )


def who_was(store: Store, name: str, at: datetime) -> Entry:
    """The last entry written at or before `at`, which must have a time zone.

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


def looked(registry: Registry, store: Store, alpha: float) -> list[dict[str, Any]]:
    """The looks at test items with each Instruct that the model `registry.name` was judged with, oldest first.

    Looks of other models are among them, because they count as well. `look` counts those that share items, up to this
    one; `alpha` is what it spent of `alpha`, `left` what was left after it. `decision` is that of a registered version
    of this model, as the recipe in the store has it, or null. The head does not name `dangling` ones; they count.

    Raises RegistryError for a name that neither looks nor ledger nor registry know, LedgerError, store errors.
    """
    rows: list[dict[str, Any]] = []
    for instruct in sorted({key.split("/")[1] for key in stores.open_store(store).list(ROOT)}):
        looks = Looks(store, f"sha256:{instruct}")
        chain = looks.chain()
        entries = [*chain.entries, *chain.dangling]
        if not any(look.model_name == registry.name for look in entries):
            continue
        for place, look in enumerate(entries):
            number = looks.counted(entries[: place + 1], looks.items_of(look), look.candidate).number
            facts = look.model_dump(exclude={"format", "name", "means", "costs", "previous"}) | {"digest": look.digest}
            spent = {"look": number, "alpha": alpha_of(alpha, number), "left": alpha_left(alpha, number)}
            rows.append(facts | spent | {"instruct": f"sha256:{instruct}", "dangling": look in chain.dangling})
    if not rows:
        require_known(registry, store, Ledger(store, registry.name).chain())
    decisions = _decisions(registry, store, {row["candidate"] for row in rows})
    return [row | {"decision": decisions.get(row["candidate"])} for row in rows]


def _decisions(registry: Registry, store: Store, models: Iterable[str]) -> dict[str, str]:
    """The decision about each of these models that has a version; of several versions, the latest."""
    found: dict[str, str] = {}
    if not may_exist(registry):
        return found
    try:
        with connected(registry, create=False) as client:
            for model in models:
                for version in tracking.versions_with(client, registry.name, "shadowft.model", model):
                    digest = tracking.tag_of(version, "shadowft.recipe")
                    raw = stores.record(digest, store)
                    recipe = parse_recipe(raw, f"store {store.uri}: recipe {digest}") if raw else None
                    if recipe and recipe["digest"] == model:
                        found[model] = recipe["verdict"]["decision"]
    except RegistryError as error:
        say(f"{error}; decisions are not shown")
    return found
