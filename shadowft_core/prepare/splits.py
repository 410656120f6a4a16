"""Which split each row belongs to, or why it is left out; and the four files."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shadowft_core.params import Prepare
from shadowft_core.prepare.accounts import Accounts
from shadowft_core.prepare.near import Signatures, confirmed
from shadowft_core.prepare.newest import Ages, hold_out
from shadowft_core.prepare.table import SCHEMA, SPLITS, Table, first_of_equals

REASONS = (  # by number; 0 is a row that is used
    "",
    "duplicate",
    "in a test item",
    "near duplicate",
    "beyond max_rows",
    "near a held-out question",
    "same conversation as a held-out row",
    "question of a newer held-out row",
    "question of a held-out row",
    "beyond prepare.replay.share",
    "",
)
(DUPLICATE, LEAK, NEAR, BEYOND, NEAR_HELD, TIED, ASKED_AGAIN, HELD_QUESTION, BEYOND_SHARE, UNDECIDED) = range(
    1, len(REASONS)
)
REPLAY = len(SPLITS)  # the number, in place of a split's, of rows that are added to the training split
FILES = (*SPLITS, "replay")


@dataclass
class Choice:
    """Per row the number of its split and of the reason it is left out (0: used); replay rows begin at `own`."""

    split: np.ndarray
    reason: np.ndarray
    distinct: int
    own: int
    lengths: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        used = self.split[self.reason == 0]
        return {name: int(np.count_nonzero(used == number)) for number, name in enumerate(SPLITS)}

    def of(self, name: str) -> np.ndarray:
        """Which rows a split holds, bool."""
        held: np.ndarray = (self.reason == 0) & (self.split == SPLITS.index(name))
        return held

    @property
    def held(self) -> np.ndarray:
        """Which rows are used and not trained on, bool."""
        held: np.ndarray = (self.reason == 0) & (self.split > 0) & (self.split < REPLAY)
        return held

    def counts(self, *, replay: bool = False) -> dict[str, int]:
        """Rows left out, by reason."""
        reason = self.reason[self.own :] if replay else self.reason[: self.own]
        found = Counter(reason[reason > 0].tolist())
        return {REASONS[number]: count for number, count in sorted(found.items())}

    def told(self, *, replay: bool = False) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts(replay=replay).items())


def choose(
    table: Table,
    leaks: dict[int, tuple[str, str]],
    signatures: tuple[Signatures, Signatures] | None,
    params: Prepare,
    ages: Ages | None = None,
    own: int | None = None,
) -> Choice:
    """The split of every row by its first question, or of the newest rows by `ages`; what is not used, with the reason.

    Rows from `own` on are those of replay; they are left undecided.

    Left out of training are rows that share a conversation's id with a held-out row, or whose question is a near
    duplicate of a held-out one.
    """
    own = len(table) if own is None else own
    first = first_of_equals(table.ids)
    split, reason = np.full(len(table), REPLAY, np.uint8), np.where(first, 0, DUPLICATE).astype(np.uint8)
    choice = Choice(split, reason, int(np.count_nonzero(first[:own])), own)
    choice.reason[own:] = UNDECIDED
    leaked = np.array(sorted(leaks), np.int64)
    choice.reason[leaked[choice.reason[leaked] == 0]] = LEAK
    if ages is None:
        choice.split[:own] = _split(table.prompts[:own], params)
    else:
        choice.split[:own], asked_again = hold_out(
            table.ids[:own], table.prompts[:own], ages, choice.reason[:own] == 0, params
        )
        choice.reason[:own][asked_again] = ASKED_AGAIN
    if signatures and params.near is not None:
        leave_out_near(table, choice, signatures, params.near, np.arange(len(table)) < own)
    if params.max_rows is not None and np.count_nonzero(choice.reason == 0) > params.max_rows:
        kept = np.flatnonzero(choice.reason == 0)
        ranks = np.array([rank("max_rows", *table.ids[row].tolist()) for row in kept], np.uint64)
        choice.reason[kept[np.argsort(ranks, kind="stable")[params.max_rows :]]] = BEYOND
    ids = table.conversation_ids
    tied = (ids != 0) & np.isin(ids, ids[choice.held])
    choice.reason[tied & (choice.split == 0) & (choice.reason == 0)] = TIED
    return choice


def write(table: Table, choice: Choice, accounts: tuple[Accounts, Accounts], folder: Path) -> str:
    """Write a file for each split, and replay.parquet if there are such rows, and record what is left out.

    `accounts` are those of the data and of replay. Returns the digest of the data.
    """
    names = FILES if choice.own < len(table) else SPLITS
    writers = [pq.ParquetWriter(folder / f"{name}.parquet", SCHEMA, use_dictionary=False) for name in names]
    ids: dict[str, list[np.ndarray]] = {name: [] for name in names}
    sizes: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start, batch in table.batches():
        reason = choice.reason[start : start + batch.num_rows]
        split = choice.split[start : start + batch.num_rows]
        for row in np.flatnonzero(reason):
            file, _, line = batch.column("source")[int(row)].as_py().rpartition(":")
            accounts[int(start + row >= choice.own)].drop(file, int(line), REASONS[reason[row]])
        for number, (name, writer) in enumerate(zip(names, writers, strict=True)):
            mask = (reason == 0) & (split == number)
            if mask.any():
                part = batch.filter(pa.array(mask))
                writer.write_table(pa.Table.from_batches([part]))  # write_batch would keep a million rows in memory
                ids[name].append(np.array(part.column("id").to_pylist(), "S64"))
                lengths = [np.asarray(pc.utf8_length(part.column(key))) for key in ("prompt", "reply")]
                sizes[name].append(np.stack(lengths, axis=1))
    for writer in writers:
        writer.close()
    choice.lengths = {
        name: {"prompt": _spread(all_of_it[:, 0]), "reply": _spread(all_of_it[:, 1])}
        for name, parts in sizes.items()
        if parts and len(all_of_it := np.concatenate(parts))
    }
    return _digest(ids)


def _split(prompts: np.ndarray, params: Prepare) -> np.ndarray:
    """The number of the split whose share holds the hash of the question, read as a fraction."""
    place = prompts.astype(np.float64) / 2.0**64
    found = np.zeros(len(prompts), np.uint8)
    end = 0.0
    for name, share in (("test", params.test), ("dev", params.dev), ("valid", params.valid)):
        found[(place >= end) & (place < end + share)] = SPLITS.index(name)
        end += share
    return found


def leave_out_near(
    table: Table, choice: Choice, signatures: tuple[Signatures, Signatures], threshold: float, ours: np.ndarray
) -> None:
    """Leave out those of the rows `ours`, a mask, that are near a held-out row or, as a whole, near an earlier one."""
    questions, conversations = signatures
    held = choice.held
    for signs, column in ((questions, "prompt"), (conversations, "messages")):
        for one, other in _near(table, choice, signs.candidates(held), column, threshold):
            if held[one] != held[other] and ours[left := other if held[one] else one]:
                choice.reason[left] = NEAR_HELD
    for one, other in _near(table, choice, conversations.candidates(choice.reason == 0), "messages", threshold):
        if held[one] == held[other] and ours[other] and not choice.reason[one]:
            choice.reason[other] = NEAR


def _near(table: Table, choice: Choice, pairs: np.ndarray, column: str, threshold: float) -> Iterator[tuple[int, int]]:
    """The pairs of used rows that are near duplicates in a column, the prompt or the messages."""
    used = pairs[(choice.reason[pairs] == 0).all(axis=1)] if len(pairs) else pairs
    rows = np.unique(used)
    texts = table.values(column, rows) if len(rows) else {}
    if column == "messages":
        texts = {row: "\n".join(one["content"] for one in turns) for row, turns in texts.items()}
    return confirmed(used, texts, threshold)


def rank(purpose: str, high: int, low: int) -> int:
    """The order in which rows are kept for a purpose, such as max_rows; `high` and `low` are the numbers of an id."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {high:016x}{low:016x}".encode()).digest()[:8], "big")


def _spread(values: np.ndarray) -> dict[str, int]:
    low, median, high, top = np.percentile(values, [0, 50, 95, 100], method="nearest")
    return {"min": int(low), "median": int(median), "p95": int(high), "max": int(top)}


def _digest(ids: dict[str, list[np.ndarray]]) -> str:
    """SHA-256 of the canonical JSON {split: sorted ids}, hashed piece by piece."""
    found = hashlib.sha256()
    for number, (name, parts) in enumerate(sorted(ids.items())):
        found.update(b"{" if number == 0 else b",")
        found.update(f'"{name}":['.encode())
        for place, one in enumerate(np.sort(np.concatenate(parts)) if parts else ()):
            found.update(b',"%b"' % one if place else b'"%b"' % one)
        found.update(b"]")
    found.update(b"}")
    return f"sha256:{found.hexdigest()}"
