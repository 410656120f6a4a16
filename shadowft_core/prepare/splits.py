"""Which split each row belongs to, or why it is left out; and the four files."""

import hashlib
from collections import Counter
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
from shadowft_core.prepare.table import SCHEMA, Table, first_of_equals

SPLITS = ("train", "valid", "dev", "test")
REASONS = (  # by number; 0 is a row that is used
    "",
    "duplicate",
    "in a test item",
    "near duplicate",
    "beyond max_rows",
    "near a held-out question",
    "same conversation as a held-out row",
)
DUPLICATE, LEAK, NEAR, BEYOND, NEAR_HELD, TIED = range(1, len(REASONS))


@dataclass
class Choice:
    """Per row the number of its split and of the reason it is left out (0: used)."""

    split: np.ndarray
    reason: np.ndarray
    distinct: int
    lengths: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        used = self.split[self.reason == 0]
        return {name: int(np.count_nonzero(used == number)) for number, name in enumerate(SPLITS)}

    @property
    def counts(self) -> dict[str, int]:
        """Rows left out, by reason."""
        found = Counter(self.reason[self.reason > 0].tolist())
        return {REASONS[number]: count for number, count in sorted(found.items())}

    def told(self) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items())


def choose(
    table: Table, leaks: dict[int, tuple[str, str]], signatures: tuple[Signatures, Signatures] | None, params: Prepare
) -> Choice:
    """The split of every row by its first question; what is not used, with the reason.

    Left out of training are rows that share a conversation's id with a held-out row, or whose question is a near
    duplicate of a held-out one.
    """
    first = first_of_equals(table.ids)
    choice = Choice(_split(table.prompts, params), np.zeros(len(table), np.uint8), int(np.count_nonzero(first)))
    choice.reason[~first] = DUPLICATE
    leaked = np.array(sorted(leaks), np.int64)
    choice.reason[leaked[choice.reason[leaked] == 0]] = LEAK
    if signatures and params.near is not None:
        _leave_out_near(table, choice, signatures, params.near)
    if params.max_rows is not None and np.count_nonzero(choice.reason == 0) > params.max_rows:
        kept = np.flatnonzero(choice.reason == 0)
        rank = np.array([_rank(*table.ids[row].tolist()) for row in kept], np.uint64)
        choice.reason[kept[np.argsort(rank, kind="stable")[params.max_rows :]]] = BEYOND
    held = (choice.split > 0) & (choice.reason == 0)
    tied = np.isin(table.talks, np.unique(table.talks[held & (table.talks != 0)]))
    choice.reason[tied & (choice.split == 0) & (choice.reason == 0)] = TIED
    return choice


def write(table: Table, choice: Choice, accounts: Accounts, folder: Path) -> str:
    """Write the four files and record what is left out; returns the digest of the data."""
    writers = [pq.ParquetWriter(folder / f"{name}.parquet", SCHEMA, use_dictionary=False) for name in SPLITS]
    ids: list[list[np.ndarray]] = [[] for _ in SPLITS]
    sizes: list[list[np.ndarray]] = [[] for _ in SPLITS]
    for start, batch in table.batches():
        reason = choice.reason[start : start + batch.num_rows]
        split = choice.split[start : start + batch.num_rows]
        for row in np.flatnonzero(reason):
            file, _, line = batch.column("source")[int(row)].as_py().rpartition(":")
            accounts.drop(file, int(line), REASONS[reason[row]])
        for number, writer in enumerate(writers):
            mask = (reason == 0) & (split == number)
            if mask.any():
                part = batch.filter(pa.array(mask))
                writer.write_table(pa.Table.from_batches([part]))  # write_batch would keep a million rows in memory
                ids[number].append(np.array(part.column("id").to_pylist(), "S64"))
                lengths = [np.asarray(pc.utf8_length(part.column(name))) for name in ("prompt", "reply")]
                sizes[number].append(np.stack(lengths, axis=1))
    for writer in writers:
        writer.close()
    choice.lengths = {
        name: {"prompt": _spread(all_of_it[:, 0]), "reply": _spread(all_of_it[:, 1])}
        for name, parts in zip(SPLITS, sizes, strict=True)
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


def _leave_out_near(table: Table, choice: Choice, signatures: tuple[Signatures, Signatures], threshold: float) -> None:
    questions, talks = (one.candidates() for one in signatures)
    for pairs, column, whole in ((questions, "prompt", False), (talks, "messages", True)):
        used = pairs[(choice.reason[pairs] == 0).all(axis=1)] if len(pairs) else pairs
        if not whole:
            used = used[(choice.split[used] > 0).any(axis=1) & (choice.split[used] == 0).any(axis=1)]
        rows = np.unique(used)
        texts = table.values(column, rows) if len(rows) else {}
        if whole:
            texts = {row: "\n".join(one["content"] for one in turns) for row, turns in texts.items()}
        for one, other in confirmed(used, texts, threshold):
            if choice.reason[one] or choice.reason[other]:
                continue
            if (choice.split[one] == 0) != (choice.split[other] == 0):
                choice.reason[one if choice.split[one] == 0 else other] = NEAR_HELD
            elif whole:
                choice.reason[other] = NEAR


def _rank(high: int, low: int) -> int:
    """The order in which max_rows keeps rows."""
    return int.from_bytes(hashlib.sha256(f"max_rows {high:016x}{low:016x}".encode()).digest()[:8], "big")


def _spread(values: np.ndarray) -> dict[str, int]:
    low, median, high, top = np.percentile(values, [0, 50, 95, 100], method="nearest")
    return {"min": int(low), "median": int(median), "p95": int(high), "max": int(top)}


def _digest(ids: list[list[np.ndarray]]) -> str:
    """SHA-256 of the canonical JSON {split: sorted ids}, hashed piece by piece."""
    found = hashlib.sha256()
    for number, name in enumerate(sorted(SPLITS)):
        found.update(b"{" if number == 0 else b",")
        found.update(f'"{name}":['.encode())
        parts = ids[SPLITS.index(name)]
        for place, one in enumerate(np.sort(np.concatenate(parts)) if parts else ()):
            found.update((b"," if place else b"") + b'"' + one + b'"')
        found.update(b"]")
    found.update(b"}")
    return f"sha256:{found.hexdigest()}"
