"""A chain of entries in the store that grows by compare-and-swap: the ledger of champions, and the looks at test items.

A chain has `ROOT/NAME/entries/<hex>`, an entry under the SHA-256 of its bytes, and `ROOT/NAME/head`, which names the
last entry. Each entry names the one before it, so an edited, missing or reordered entry is detected. The head is
replaced only by compare-and-swap, so one of several writers wins.

A writer that is killed before it replaces the head leaves a dangling entry: it follows the last entry, but the head
does not name it. A head moved back by one looks the same. A person with write access can still move the head back and
remove the later entries, or let another writer replace them; versioning of the bucket protects against that.
"""

import getpass
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, Field

import shadowft_core.store as stores
from shadowft_core.errors import LedgerError
from shadowft_core.files import Record, bytes_digest, canonical_json, parse_json, parse_record
from shadowft_core.limits import COUNT
from shadowft_core.params import Store

LARGEST = 64 << 10  # bytes of an entry; a usual one has 900
DIGEST = r"^sha256:[0-9a-f]{64}$"

TEXT = 20_000  # characters of a text in an entry
M = TypeVar("M", bound=Record)
Text = Annotated[str, Field(max_length=TEXT)]


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("expected a time with its zone")
    return text


class Link(Record):
    """An entry of a chain. Its other fields are those of the subclass."""

    format: int = Field(1, ge=1, le=1)
    name: Text = Field(description="of the chain")
    number: int = Field(ge=1, le=COUNT, description="1, 2, 3 ...: the order")
    previous: str | None = Field(pattern=DIGEST, description="the entry before, by digest")
    who: Text
    when: Annotated[str, AfterValidator(_moment)] = Field(
        description="ISO 8601, UTC, by the clock of the machine that wrote it"
    )

    @property
    def digest(self) -> str:
        return bytes_digest(self.raw)

    @property
    def raw(self) -> bytes:
        return canonical_json(self.model_dump())

    @property
    def what(self) -> str:
        """The entry in a few words."""
        raise NotImplementedError


E = TypeVar("E", bound=Link)


class _Head(Record):
    format: int = Field(ge=1, le=1)
    name: str
    number: int = Field(ge=1, le=COUNT)
    entry: str = Field(pattern=DIGEST)


@dataclass(frozen=True)
class Tip(Generic[E]):
    """The end of a chain; `entry` is None while it is empty."""

    entry: E | None
    tag: str | None

    @property
    def number(self) -> int:
        return self.entry.number if self.entry else 0


@dataclass(frozen=True)
class Chain(Generic[E]):
    """A whole chain: its entries, first to last, and the dangling ones, which follow the last without being head."""

    tip: Tip[E]
    entries: list[E]
    dangling: list[E]

    @property
    def remarks(self) -> list[str]:
        """One line about each dangling entry."""
        return [
            f"entry {entry.number} ({entry.what}, {entry.who}, {entry.when}, {entry.digest}) exists, but the head does "
            "not name it: a promotion was cut off or is running, or the head was moved back"
            for entry in self.dangling
        ]


class Links(Generic[E]):
    """The chain ROOT/NAME in a store; `where` names it in messages.

    All methods raise LedgerError for a damaged chain, and StoreUnreachableError.
    """

    root: str
    """first part of every key"""
    kind: type[E]
    """the class of an entry"""

    def __init__(self, store: Store, name: str, what: str) -> None:
        """`what` says in messages which chain it is."""
        self._backend = stores.open_store(store)
        self._read = dict[str, E]()  # by digest, verified
        self.name = name
        self.where = f"{what} in {self._backend.location}"

    def tip(self) -> Tip[E]:
        key = f"{self.root}/{self.name}/head"
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

    def entry(self, digest: str) -> E:
        """An entry by its digest, verified."""
        if digest in self._read:
            return self._read[digest]
        key = self._key(digest)
        found = self._backend.read(key, LARGEST)
        if found is None:
            raise LedgerError(f"{self.where}: {key} is missing; restore it from a backup or the bucket's versions")
        if (real := bytes_digest(found[0])) != digest:
            raise LedgerError(
                f"{self.where}: {key} was edited: its digest is {real}, the chain has {digest}; restore it from a "
                "backup or the bucket's versions"
            )
        entry = self._parse(self.kind, found[0], key)
        if entry.name != self.name:
            raise LedgerError(f"{self.where}: {key} belongs to {entry.name!r}; restore the entry of {self.name!r}")
        self._read[digest] = entry
        return entry

    def backwards(self, tip: Tip[E]) -> Iterator[E]:
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

    def chain(self) -> Chain[E]:
        """All entries, and the dangling ones. Raises LedgerError when the head was moved back by more than one entry.

        A writer that lost a race leaves an entry without a successor; an entry with a successor was once the head.
        """
        # Listed before the head is read, so the chain has every listed entry that was ever the head.
        keys = list(self._backend.list(f"{self.root}/{self.name}/entries"))
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

    def write(self, entry: E) -> None:
        """Store an entry. It belongs to the chain only once the head names it, or the entry after it."""
        if len(entry.raw) > LARGEST:
            raise LedgerError(
                f"{self.where}: entry {entry.number} has {len(entry.raw)} bytes, at most {LARGEST} are read"
            )
        self._backend.put_if_absent(self._key(entry.digest), entry.raw, entry.digest)

    def point(self, tip: Tip[E], entry: E) -> None:
        """Make the head name `entry`, which follows `tip` and was written.

        Raises StoreConflictError when another writer won. After StoreUnreachableError, either may be the case.
        """
        head = _Head(format=1, name=self.name, number=entry.number, entry=entry.digest)
        self._backend.swap(f"{self.root}/{self.name}/head", canonical_json(head.model_dump()), tip.tag)

    def next(self, tip: Tip[E], **facts: Any) -> E:
        """The entry that would follow `tip`, by this user and now; `facts` are the fields of the subclass."""
        return self.kind(
            name=self.name,
            number=tip.number + 1,
            previous=tip.entry.digest if tip.entry else None,
            who=_who(),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
        )

    def _key(self, digest: str) -> str:
        return f"{self.root}/{self.name}/entries/{digest.removeprefix('sha256:')}"

    def _parse(self, model: type[M], raw: bytes, key: str) -> M:
        where, remedy = f"{self.where}: {key} is damaged", "restore it from a backup or the bucket's versions"
        if canonical_json(parse_json(raw, where, LedgerError, finite=True)) != raw:
            raise LedgerError(f"{where}: not canonical JSON; {remedy}")
        return parse_record(raw, model, where, remedy, error=LedgerError)


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"
