"""Reads the ledger: every change of the champion, and the champion at a given time."""

from datetime import datetime

from shadowft_core.errors import InputError, LedgerError, RegistryError
from shadowft_core.params import Registry, Store
from shadowft_core.promotion.ledger import Chain, Entry, Ledger
from shadowft_core.registry import tracking
from shadowft_core.registry.connection import connected, may_exist, uri_of
from shadowft_core.registry.registration import waits


def history(registry: Registry, store: Store) -> Chain:
    """The whole chain, first entry first.

    A dangling entry is not an error: a promotion may be running, or was cut off. It may also be the only trace of a
    head that was moved back by one.

    Raises LedgerError for an edited, missing or reordered entry, RegistryError when neither registry nor ledger has the
    model. Queries MLflow only if the ledger is empty.
    """
    chain = Ledger(store, registry.name).chain()
    require_known(registry, store, chain)
    return chain


def require_known(registry: Registry, store: Store, chain: Chain) -> None:
    """Raise RegistryError for a name that has no ledger, no registered model and no waiting registration."""
    if chain.entries or chain.dangling or waits(registry.name):
        return
    if may_exist(registry):
        with connected(registry, create=False) as client:
            if tracking.registered_model(client, registry.name) is not None:
                return
    raise RegistryError(
        f"{registry.name}: the registry at {uri_of(registry)} has no model of this name, and store {store.uri} has no "
        "ledger of it; correct the name, or set MLFLOW_TRACKING_URI to its registry and SHADOWFT_STORE_URI to its store"
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
