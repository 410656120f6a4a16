"""Chooses the rows of replay.parquet: general rows that only training reads, a remedy against forgetting."""

from pathlib import Path

import numpy as np

from shadowft_core.errors import DataError
from shadowft_core.params import Replay
from shadowft_core.prepare.near import Signatures
from shadowft_core.prepare.splits import (
    BEYOND_SHARE,
    DUPLICATE,
    HELD_QUESTION,
    LEAK,
    TIED,
    Choice,
    leave_out_near,
    rank,
)
from shadowft_core.prepare.table import Table, first_of_equals


def choose_replay(
    table: Table,
    choice: Choice,
    leaks: dict[int, tuple[str, str]],
    signatures: tuple[Signatures, Signatures] | None,
    near: float | None,
    replay: Replay,
) -> None:
    """Set the reasons of the replay rows, from `choice.replay_start` on. No other row changes.

    Leaves out rows whose question is that of a held-out row or near it, rows with the conversation id of a held-out
    row, rows in test items, and duplicates or near duplicates of training rows or of each other. Of the rest it keeps,
    by a hash, as many as make up `replay.share` of all training rows.

    Raises DataError if too few rows are left.
    """
    replay_rows = np.arange(len(table)) >= choice.replay_start
    choice.reason[replay_rows] = 0
    held = choice.held & ~replay_rows

    def leave_out(rows: np.ndarray, reason: int) -> None:
        choice.reason[rows & replay_rows & (choice.reason == 0)] = reason

    leave_out(np.isin(table.prompts, table.prompts[held]), HELD_QUESTION)
    leave_out(~first_of_equals(table.ids), DUPLICATE)
    leave_out(np.isin(np.arange(len(table)), list(leaks)), LEAK)
    leave_out((table.conversation_ids != 0) & np.isin(table.conversation_ids, table.conversation_ids[held]), TIED)
    if signatures and near is not None:
        leave_out_near(table, choice, signatures, near, replay_rows)
    kept = np.flatnonzero(replay_rows & (choice.reason == 0))
    trained = choice.sizes["train"]
    count = max(1, round(trained * replay.share / (1 - replay.share)))
    if count > len(kept):
        raise DataError(
            f"{Path(replay.data)}: expected {count} replay rows ({replay.share:g} of all training rows, with {trained}"
            f" of the data), found {len(kept)} usable of {np.count_nonzero(replay_rows)} "
            f"({choice.summary(replay=True) or 'all usable'}); add rows or lower prepare.replay.share"
        )
    ranks = np.array([rank("replay", *table.ids[row].tolist()) for row in kept], np.uint64)
    choice.reason[kept[np.argsort(ranks, kind="stable")[count:]]] = BEYOND_SHARE
