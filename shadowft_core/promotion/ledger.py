"""The ledger of one registered model: its champions in order, and who promoted them. The order does not use clocks.

For each model name, the delta store has `ledger/NAME/entries/<hex>`, an entry under the SHA-256 of its bytes, and
`ledger/NAME/head`, which names the last entry. Each entry names the one before it, so an edited, missing or reordered
entry is detected. The head is replaced only by compare-and-swap, so one of several writers wins.

A writer that is killed before it replaces the head leaves a dangling entry: it follows the last entry, but the head
does not name it. A head moved back by one looks the same. `history` lists dangling entries, and `reconcile` records
them in the chain. A person with write access can still move the head back and remove the later entries, or let another
promotion replace them; versioning of the bucket protects against that.
"""

import getpass
import json
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import shadowft_core.store as stores
from shadowft_core.errors import LedgerError, StoreConflictError, StoreUnreachableError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Store

LARGEST = 64 << 10  # bytes of an entry; a usual one has 900
_DIGEST = r"^sha256:[0-9a-f]{64}$"

M = TypeVar("M", bound="_Strict")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Entry(_Strict):
    """One change of the champion: the new champion, and why."""

    format: int = Field(1, ge=1, le=1)
    name: str
    number: int = Field(ge=1, description="1, 2, 3 ...: the order")
    id: str = Field(description="random, so that two equal moves are two entries")
    action: Literal["promote", "rollback", "reconcile"]
    version: int = Field(ge=1, description="of the registered model")
    model: str = Field(pattern=_DIGEST, description="digest of the weights that the version rebuilds to")
    recipe: str = Field(pattern=_DIGEST)
    verdict: str = Field(pattern=_DIGEST)
    decision: str
    override: bool
    reason: str
    who: str
    when: str = Field(description="ISO 8601, UTC, by the clock of the machine that wrote it")
    run_id: str
    source: str = Field(description="where MLflow keeps the recipe; outlives the version")
    previous: str | None = Field(pattern=_DIGEST, description="the entry before, by digest")
    undo: str | None = Field(pattern=_DIGEST, description="the entry a rollback returns to, by digest")

    @property
    def digest(self) -> str:
        return bytes_digest(self.raw)

    @property
    def raw(self) -> bytes:
        return canonical_json(self.model_dump())


class _Head(_Strict):
    format: int = Field(ge=1, le=1)
    name: str
    number: int = Field(ge=1)
    entry: str = Field(pattern=_DIGEST)


@dataclass(frozen=True)
class Tip:
    """The end of a ledger; `entry` is None when nothing was ever promoted."""

    entry: Entry | None
    tag: str | None

    @property
    def number(self) -> int:
        return self.entry.number if self.entry else 0


@dataclass(frozen=True)
class Chain:
    """A whole ledger: its entries, first to last, and the dangling ones, which follow the last without being head."""

    tip: Tip
    entries: list[Entry]
    dangling: list[Entry]

    @property
    def remarks(self) -> list[str]:
        """One line about each dangling entry."""
        return [
            f"entry {entry.number} ({entry.action}, version {entry.version}, {entry.who}, {entry.when}, "
            f"{entry.digest}) exists, but the head does not name it: a promotion was cut off or is running, or the "
            "head was moved back"
            for entry in self.dangling
        ]


class Ledger:
    """The ledger of the registered model `name` in a store.

    All methods raise LedgerError for a damaged ledger, and StoreUnreachableError.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._backend = stores.open_store(store)
        self.name = name
        self.where = f"ledger of {name} in {self._backend.location}"

    def tip(self) -> Tip:
        key = f"ledger/{self.name}/head"
        found = self._backend.read(key, LARGEST)
        if found is None:
            return Tip(None, None)
        head = self._parse(_Head, found[0], key)
        entry = self.entry(head.entry)
        if entry.number != head.number:
            raise LedgerError(
                f"{self.where}: {key} names entry {head.number}, but that entry has number {entry.number}; restore the "
                "head from the bucket's versions"
            )
        return Tip(entry, found[1])

    def entry(self, digest: str) -> Entry:
        """An entry by its digest, verified."""
        key = self._key(digest)
        found = self._backend.read(key, LARGEST)
        if found is None:
            raise LedgerError(f"{self.where}: {key} is missing; restore it from a backup or the bucket's versions")
        if (real := bytes_digest(found[0])) != digest:
            raise LedgerError(
                f"{self.where}: {key} was edited: its digest is {real}, the chain has {digest}; restore it from a "
                "backup or the bucket's versions"
            )
        entry = self._parse(Entry, found[0], key)
        if entry.name != self.name:
            raise LedgerError(f"{self.where}: {key} belongs to {entry.name!r}; restore the entry of {self.name!r}")
        return entry

    def backwards(self, tip: Tip) -> Iterator[Entry]:
        """The entries from the last to the first, each link verified."""
        entry = tip.entry
        while entry is not None:
            yield entry
            before = self.entry(entry.previous) if entry.previous else None
            if (before.number if before else 0) != entry.number - 1:
                raise LedgerError(
                    f"{self.where}: entry {entry.number} follows entry {before.number if before else 'none'}; entries "
                    "are missing or reordered, restore them from a backup or the bucket's versions"
                )
            entry = before

    def chain(self) -> Chain:
        """All entries, and the dangling ones. Raises LedgerError when the head was moved back by more than one entry.

        A writer that lost a race leaves an entry without a successor; an entry with a successor was once the head.
        """
        # Listed before the head is read, so the chain has every listed entry that was ever the head.
        keys = list(self._backend.list(f"ledger/{self.name}/entries"))
        tip = self.tip()
        chain = list(self.backwards(tip))[::-1]
        known, dangling = {entry.digest for entry in chain}, []
        last = tip.entry.digest if tip.entry else None
        for digest in ("sha256:" + key.rpartition("/")[2] for key in keys):
            if digest in known:
                continue
            entry = self.entry(digest)
            if entry.previous == last:
                dangling.append(entry)
            elif entry.previous is not None and entry.previous not in known:
                raise LedgerError(
                    f"{self.where}: ends at entry {tip.number}, yet entry {entry.number} of {entry.when} follows one "
                    "that is no longer in it: the head was moved back; restore it from the bucket's versions"
                )
        return Chain(tip, chain, dangling)

    def append(self, tip: Tip, undo: str | None, **facts: Any) -> Entry:
        """Write the entry that follows `tip` and return it. Raises LedgerError naming the winner of a race.

        `facts` are the remaining fields of Entry.
        """
        entry = Entry(
            name=self.name,
            number=tip.number + 1,
            id=uuid.uuid4().hex,
            who=_who(),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            previous=tip.entry.digest if tip.entry else None,
            undo=undo,
            **facts,
        )
        head = _Head(format=1, name=self.name, number=entry.number, entry=entry.digest)
        self._backend.put_if_absent(self._key(entry.digest), entry.raw, entry.digest)
        try:
            self._backend.swap(f"ledger/{self.name}/head", canonical_json(head.model_dump()), tip.tag)
        except StoreConflictError:
            raise self.lost(self.tip()) from None
        except StoreUnreachableError as error:
            raise LedgerError(
                f"{self.where}: entry {entry.number} may or may not have been written ({error}); see "
                f"`shadowft history {self.name}`, then run `shadowft reconcile {self.name}`"
            ) from None
        return entry

    def lost(self, tip: Tip) -> LedgerError:
        """The error for a writer with an outdated view of the ledger."""
        if tip.entry is None:
            return LedgerError(f"{self.where}: is empty now; nothing was changed, check it and try again")
        won = tip.entry
        return LedgerError(
            f"{self.where}: {won.who} won with entry {won.number} ({won.action}, version {won.version}, {won.when}); "
            "nothing was changed, check it and try again"
        )

    def _key(self, digest: str) -> str:
        return f"ledger/{self.name}/entries/{digest.removeprefix('sha256:')}"

    def _parse(self, model: type[M], raw: bytes, key: str) -> M:
        try:
            parsed = model.model_validate_json(raw)
            if canonical_json(json.loads(raw)) != raw:
                raise ValueError("not canonical JSON")
        except (ValidationError, ValueError) as error:
            first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise LedgerError(
                f"{self.where}: {key} is damaged ({first}); restore it from a backup or the bucket's versions"
            ) from None
        return parsed


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"
