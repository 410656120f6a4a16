"""The ledger of one registered model: its champions in order, and who promoted them. The order does not use clocks.

It is the chain `ledger/NAME` in the delta store (chain.py). `history` lists dangling entries, and `reconcile` records
them in the chain.
"""

import uuid
from typing import Any, Literal

from pydantic import Field

from shadowft_core.errors import LedgerError, StoreConflictError, StoreUnreachableError
from shadowft_core.limits import COUNT
from shadowft_core.params import Store
from shadowft_core.promotion.chain import DIGEST, Link, Links, Text, Tip


class Entry(Link):
    """One change of the champion: the new champion, and why."""

    id: Text = Field(description="random, so that two equal moves are two entries")
    action: Literal["promote", "rollback", "reconcile"]
    version: int = Field(ge=1, le=COUNT, description="of the registered model")
    model: str = Field(pattern=DIGEST, description="digest of the weights that the version rebuilds to")
    recipe: str = Field(pattern=DIGEST)
    verdict: str = Field(pattern=DIGEST)
    decision: Text
    override: bool
    reason: Text
    run_id: Text
    source: Text = Field(description="where MLflow keeps the recipe; outlives the version")
    undo: str | None = Field(pattern=DIGEST, description="the entry a rollback returns to, by digest")

    @property
    def what(self) -> str:
        return f"{self.action}, version {self.version}"


class Ledger(Links[Entry]):
    """The ledger of the registered model `name` in a store.

    All methods raise LedgerError for a damaged ledger, and StoreUnreachableError.
    """

    root, kind = "ledger", Entry

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store, name, f"ledger of {name}")

    def append(self, tip: Tip[Entry], undo: str | None, **facts: Any) -> Entry:
        """Write the entry that follows `tip` and return it. Raises LedgerError naming the winner of a race.

        `facts` are the remaining fields of Entry.
        """
        entry = self.next(tip, id=uuid.uuid4().hex, undo=undo, **facts)
        self.write(entry)
        try:
            self.point(tip, entry)
        except StoreConflictError:
            raise self.lost(self.tip()) from None
        except StoreUnreachableError as error:
            raise LedgerError(
                f"{self.where}: entry {entry.number} may or may not have been written ({error}); see "
                f"`shadowft history {self.name}`, then run `shadowft reconcile {self.name}`"
            ) from None
        return entry

    def lost(self, tip: Tip[Entry]) -> LedgerError:
        """The error for a writer with an outdated view of the ledger."""
        if tip.entry is None:
            return LedgerError(f"{self.where}: is empty now; nothing was changed, check it and try again")
        won = tip.entry
        return LedgerError(
            f"{self.where}: {won.who} won with entry {won.number} ({won.what}, {won.when}); nothing was changed, check "
            "it and try again"
        )
