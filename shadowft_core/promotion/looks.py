"""The looks at test items: which candidates were judged on which items of the domain.

Each verdict on the same test items is another chance to promote by luck, so each spends a part of alpha
(verdict/looks.py). The delta store remembers the looks in a chain for each Instruct, `looks/<hex of its digest>`
(chain.py), whatever the names of the models. An entry is written before its verdict is computed, so an interrupted run
gets no look for free. A dangling entry counts: the next look makes it a part of the chain.

The same candidate on the same items is no new look. The items are the same only if tasks, metrics, template and
settings of generation are the same, because with any other the model gets other scores, and another chance. Looks at
different sets count together if the sets share an item, a question or a passage. Items alone would not do: the digest
of an item changes with its prompt, and the same questions with another prompt are no fresh items.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field

import shadowft_core.store as stores
from shadowft_core.errors import LedgerError, StoreConflictError
from shadowft_core.files import Record, bytes_digest, canonical_json, parse_record
from shadowft_core.limits import SCORE
from shadowft_core.params import Store
from shadowft_core.promotion.chain import DIGEST, Link, Links, Text
from shadowft_core.verdict.scores import Arm

ROOT = "looks"
SHORT = 16  # hex digits of an item's digest that are kept
ATTEMPTS = 100  # times that a look is tried while others are made


Mean = Annotated[float, Field(ge=-SCORE, le=SCORE)]


class Cost(Record):
    """How long a stage took, as the flow measured it."""

    stage: Text
    seconds: float = Field(ge=0)


class Look(Link):
    """One candidate that is judged on a set of items. `name` is the hex part of the Instruct's model digest."""

    model_name: Text = Field(description="registry.name")
    candidate: Text = Field(min_length=1, description="model digest")
    items: str = Field(pattern=DIGEST, description="digest of the record that lists the items")
    means: dict[Text, Mean] = Field(description="mean domain score on these items, by model digest")
    commit: Text | None
    dirty: bool | None
    costs: list[Cost]

    @property
    def what(self) -> str:
        return f"candidate {self.candidate}"


class _Task(Record):
    metric: str
    items: list[str]
    about: list[str]


class ItemSet(Record):
    """The items of the domain, and how they are asked and scored.

    `items` and `about` are sorted short digests: of the items with their prompts, and of what they are about (a
    passage, or the question).
    """

    format: int = Field(1, ge=1, le=1)
    template_digest: str | None
    generation: dict[str, Any] | None
    tasks: dict[str, _Task]

    @classmethod
    def of(
        cls,
        template_digest: str | None,
        generation: Mapping[str, Any] | None,
        tasks: Mapping[str, tuple[str, Iterable[str], Iterable[str]]],
    ) -> "ItemSet":
        """The set of (metric, digests of the items, digests of what they are about) by task.

        What is not named by a digest, as in folders that this program did not write, is left out.
        """
        short = {
            task: _Task(metric=metric, items=_short(items), about=_short(one for one in about if re.match(DIGEST, one)))
            for task, (metric, items, about) in tasks.items()
        }
        settings = None if generation is None else dict(generation)
        return cls(template_digest=template_digest, generation=settings, tasks=short)

    @classmethod
    def of_arm(cls, arm: Arm) -> "ItemSet":
        """The items of the domain that an arm was scored on."""
        tasks = {task: (arm.metrics[task], arm.scores[task], arm.about.get(task, ())) for task in arm.tasks("domain")}
        return cls.of(arm.template_digest, arm.generation, tasks)

    @cached_property
    def raw(self) -> bytes:
        return canonical_json(self.model_dump())

    @cached_property
    def digest(self) -> str:
        return bytes_digest(self.raw)

    def shared(self, other: "ItemSet") -> int:
        """How many items both sets have, or questions and passages if these are more, whatever the task."""
        return max(len(mine & theirs) for mine, theirs in zip(self._ids, other._ids, strict=True))

    @cached_property
    def _ids(self) -> tuple[frozenset[str], frozenset[str]]:
        tasks = self.tasks.values()
        return frozenset(one for task in tasks for one in task.items), frozenset(
            one for task in tasks for one in task.about
        )


def _short(digests: Iterable[str]) -> list[str]:
    return sorted({digest.removeprefix("sha256:")[:SHORT] for digest in digests})


@dataclass(frozen=True)
class Earlier:
    """A look that came before. `number` counts, from 1, those that share items; `overlap` is how many they share."""

    number: int
    look: Look
    overlap: int


@dataclass(frozen=True)
class Counted:
    """A look, or None without a candidate, and those before it that share items with it, first to last."""

    look: Look | None
    earlier: list[Earlier]

    @property
    def number(self) -> int:
        """1 for the first look at these items; 0 without a candidate."""
        return len(self.earlier) + 1 if self.look else 0


class Looks(Links[Look]):
    """The looks at test items with one Instruct. Methods raise LedgerError for a damaged chain, and store errors."""

    root, kind = ROOT, Look

    def __init__(self, store: Store, instruct: str) -> None:
        """`instruct` is its model digest; text of another form stands for itself by its own digest."""
        name = (instruct if re.match(DIGEST, instruct) else bytes_digest(instruct.encode())).removeprefix("sha256:")
        super().__init__(store, name, f"looks with the Instruct {instruct}")
        self._store = store
        self._sets = dict[str, ItemSet]()

    def take(self, items: ItemSet, candidate: str | None, **facts: Any) -> Counted:
        """The look of a candidate at these items: the one that the chain has, else a new entry with these `facts`.

        Without a candidate, nothing is added. Safe to race: each of several processes gets a number of its own.
        """
        for _ in range(ATTEMPTS):
            chain = self.chain()
            if not chain.dangling:
                found = self.counted(chain.entries, items, candidate)
                if found.look or candidate is None:
                    return found
                stores.keep_record(items.raw, self._store)
                entry = self.next(chain.tip, candidate=candidate, items=items.digest, **facts)
                self.write(entry)
            else:
                entry = chain.dangling[0]
            try:
                self.point(chain.tip, entry)
            except StoreConflictError:
                continue  # another process was faster
        raise LedgerError(f"{self.where}: changed {ATTEMPTS} times meanwhile; run `shadowft look` again")

    def counted(self, entries: Sequence[Look], items: ItemSet, candidate: str | None) -> Counted:
        """The look of a candidate among `entries`, and those before it; without one, all that share items."""
        earlier: list[Earlier] = []
        for look in entries:
            if (look.candidate, look.items) == (candidate, items.digest):
                return Counted(look, earlier)
            if overlap := items.shared(self.items_of(look)):
                earlier.append(Earlier(len(earlier) + 1, look, overlap))
        return Counted(None, earlier)

    def means(self, items: ItemSet) -> dict[str, float]:
        """Mean domain scores that looks at exactly these items recorded, by model digest."""
        chain = self.chain()
        found: dict[str, float] = {}
        for look in [*chain.entries, *chain.dangling]:
            if look.items == items.digest:
                found |= look.means
        return found

    def items_of(self, look: Look) -> ItemSet:
        """The items of a look. Raises LedgerError if their record is missing or damaged."""
        if look.items not in self._sets:
            raw = stores.record(look.items, self._store)
            if raw is None:
                raise LedgerError(
                    f"{self.where}: the items of entry {look.number}, record {look.items}, are missing; restore it "
                    "from a backup or the bucket's versions"
                )
            self._sets[look.items] = parse_record(
                raw,
                ItemSet,
                f"{self.where}: the items of entry {look.number}, record {look.items}",
                "a newer version of this program may have written it",
                error=LedgerError,
            )
        return self._sets[look.items]
