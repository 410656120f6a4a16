"""Decides the split of each row or why it is left out, and writes the files of the splits."""

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

REASONS = (  # a row with reason 0 is used
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
REPLAY = len(SPLITS)  # the split number of replay rows
FILES = (*SPLITS, "replay")


@dataclass
class Choice:
    """The split and the reason of each row, as numbers; reason 0 is a used row. `distinct` counts different rows.

    Replay rows follow those of the data, from `replay_start` on. `lengths` are those of each split in characters.
    """

    split: np.ndarray
    reason: np.ndarray
    distinct: int
    replay_start: int
    lengths: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        used = self.split[self.reason == 0]
        return {name: int(np.count_nonzero(used == number)) for number, name in enumerate(SPLITS)}

    def rows_of(self, name: str) -> np.ndarray:
        """A mask of the rows in a split, bool (rows,)."""
        held: np.ndarray = (self.reason == 0) & (self.split == SPLITS.index(name))
        return held

    @property
    def held(self) -> np.ndarray:
        """A mask of the rows in valid, dev and test, bool (rows,)."""
        held: np.ndarray = (self.reason == 0) & (self.split > 0) & (self.split < REPLAY)
        return held

    def counts(self, *, replay: bool = False) -> dict[str, int]:
        """The number of rows left out by reason, of the data or of replay."""
        reason = self.reason[self.replay_start :] if replay else self.reason[: self.replay_start]
        found = Counter(reason[reason > 0].tolist())
        return {REASONS[number]: count for number, count in sorted(found.items())}

    def summary(self, *, replay: bool = False) -> str:
        """The counts in one line."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts(replay=replay).items())


def choose(
    table: Table,
    leaks: dict[int, tuple[str, str]],
    signatures: tuple[Signatures, Signatures] | None,
    params: Prepare,
    ages: Ages | None = None,
    replay_start: int | None = None,
) -> Choice:
    """Choose the split of each row by its first question, or by `ages`, and the rows that are left out.

    A row with the conversation id of a held-out row, or with a question near a held-out one, is left out of training.
    Replay rows, from `replay_start` on, stay undecided.
    """
    data_rows = len(table) if replay_start is None else replay_start
    first = first_of_equals(table.ids)
    split, reason = np.full(len(table), REPLAY, np.uint8), np.where(first, 0, DUPLICATE).astype(np.uint8)
    choice = Choice(split, reason, int(np.count_nonzero(first[:data_rows])), data_rows)
    choice.reason[data_rows:] = UNDECIDED
    leaked = np.array(sorted(leaks), np.int64)
    choice.reason[leaked[choice.reason[leaked] == 0]] = LEAK
    if ages is None:
        choice.split[:data_rows] = _split(table.prompts[:data_rows], params)
    else:
        choice.split[:data_rows], asked_again = hold_out(
            table.ids[:data_rows], table.prompts[:data_rows], ages, choice.reason[:data_rows] == 0, params
        )
        choice.reason[:data_rows][asked_again] = ASKED_AGAIN
    if signatures and params.near is not None:
        leave_out_near(table, choice, signatures, params.near, np.arange(len(table)) < data_rows)
    if params.max_rows is not None and np.count_nonzero(choice.reason == 0) > params.max_rows:
        kept = np.flatnonzero(choice.reason == 0)
        ranks = np.array([rank("max_rows", *table.ids[row].tolist()) for row in kept], np.uint64)
        choice.reason[kept[np.argsort(ranks, kind="stable")[params.max_rows :]]] = BEYOND
    ids = table.conversation_ids
    tied = (ids != 0) & np.isin(ids, ids[choice.held])
    choice.reason[tied & (choice.split == 0) & (choice.reason == 0)] = TIED
    return choice


def write(table: Table, choice: Choice, accounts: tuple[Accounts, Accounts], folder: Path) -> str:
    """Write a file for each split, replay.parquet if there are replay rows, and a line for each row left out.

    `accounts` are those of the data and of replay. Sets `choice.lengths`. Returns the digest of the data.
    """
    names = FILES if choice.replay_start < len(table) else SPLITS
    writers = [pq.ParquetWriter(folder / f"{name}.parquet", SCHEMA, use_dictionary=False) for name in names]
    ids = {name: bytearray() for name in names}
    sizes: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start, batch in table.batches():
        reason = choice.reason[start : start + batch.num_rows]
        split = choice.split[start : start + batch.num_rows]
        for row in np.flatnonzero(reason):
            file, _, line = batch.column("source")[int(row)].as_py().rpartition(":")
            accounts[int(start + row >= choice.replay_start)].drop(file, int(line), REASONS[reason[row]])
        for number, (name, writer) in enumerate(zip(names, writers, strict=True)):
            mask = (reason == 0) & (split == number)
            if mask.any():
                part = batch.filter(pa.array(mask))
                writer.write_table(pa.Table.from_batches([part]))  # write_batch would keep a million rows in memory
                ids[name] += bytes.fromhex("".join(part.column("id").to_pylist()))
                lengths = [np.asarray(pc.utf8_length(part.column(key))) for key in ("prompt", "reply")]
                sizes[name].append(np.stack(lengths, axis=1))
    for writer in writers:
        writer.close()
    choice.lengths = {
        name: {"prompt": _spread(both[:, 0]), "reply": _spread(both[:, 1])}
        for name, parts in sizes.items()
        if parts and len(both := np.concatenate(parts))
    }
    return _digest(ids)


def _split(prompts: np.ndarray, params: Prepare) -> np.ndarray:
    """The split number of each question: its hash, as a fraction of 1, is in the share of that split."""
    place = prompts.astype(np.float64) / 2.0**64
    found = np.zeros(len(prompts), np.uint8)
    end = 0.0
    for name, share in (("test", params.test), ("dev", params.dev), ("valid", params.valid)):
        found[(place >= end) & (place < end + share)] = SPLITS.index(name)
        end += share
    return found


def leave_out_near(
    table: Table, choice: Choice, signatures: tuple[Signatures, Signatures], threshold: float, among: np.ndarray
) -> None:
    """Leave out the rows of the mask `among` that are near a held-out row, or near duplicates of an earlier row."""
    questions, conversations = signatures
    held = choice.held
    for signs, column in ((questions, "prompt"), (conversations, "messages")):
        for one, other in _near(table, choice, signs.candidates(held), column, threshold):
            if held[one] != held[other] and among[trained := other if held[one] else one]:
                choice.reason[trained] = NEAR_HELD
    for one, other in _near(table, choice, conversations.candidates(choice.reason == 0), "messages", threshold):
        if held[one] == held[other] and among[other] and not choice.reason[one]:
            choice.reason[other] = NEAR


def _near(table: Table, choice: Choice, pairs: np.ndarray, column: str, threshold: float) -> Iterator[tuple[int, int]]:
    """The pairs of used rows that are near duplicates in a column, the prompt or the messages."""
    used = pairs[(choice.reason[pairs] == 0).all(axis=1)] if len(pairs) else pairs
    rows = np.unique(used)
    texts: dict[int, str] = {}
    if len(rows):
        texts = table.texts(rows) if column == "messages" else table.values(column, rows)
    return confirmed(used, texts, threshold)


def rank(purpose: str, high: int, low: int) -> int:
    """The rank of a row for a purpose, such as max_rows; the lowest ranks are kept. `high` and `low` are its id."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {high:016x}{low:016x}".encode()).digest()[:8], "big")


def _spread(values: np.ndarray) -> dict[str, int]:
    low, median, high, top = np.percentile(values, [0, 50, 95, 100], method="nearest")
    return {"min": int(low), "median": int(median), "p95": int(high), "max": int(top)}


def _digest(ids: dict[str, bytearray]) -> str:
    """SHA-256 of the canonical JSON {split: sorted ids}, from ids of 32 bytes, which are sorted in place."""
    found = hashlib.sha256()
    for number, (name, raw) in enumerate(sorted(ids.items())):
        found.update(b"{" if number == 0 else b",")
        found.update(f'"{name}":['.encode())
        ranked = np.frombuffer(raw, "S32")
        ranked.sort()
        for start in range(0, len(raw), 32):
            found.update(b'%b"%b"' % (b"," if start else b"", raw[start : start + 32].hex().encode()))
        found.update(b"]")
    found.update(b"}")
    return f"sha256:{found.hexdigest()}"
