"""General rows that are added to the training split alone, a remedy against forgetting: replay.parquet."""

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
    """Decide on the rows from `choice.own` on, those of replay; no other row changes.

    Left out are rows with the question, or a near duplicate of the question, of a held-out row, rows of the
    conversation of one, rows found in items, and duplicates or near duplicates of training rows or of each other. Of
    the rest a hash chooses as many as make up `replay.share` of all training rows.

    Raises DataError when fewer are usable.
    """
    ours = np.arange(len(table)) >= choice.own
    choice.reason[ours] = 0
    held = choice.held & ~ours

    def leave_out(rows: np.ndarray, reason: int) -> None:
        choice.reason[rows & ours & (choice.reason == 0)] = reason

    leave_out(np.isin(table.prompts, table.prompts[held]), HELD_QUESTION)
    leave_out(~first_of_equals(table.ids), DUPLICATE)
    leave_out(np.isin(np.arange(len(table)), list(leaks)), LEAK)
    leave_out((table.conversation_ids != 0) & np.isin(table.conversation_ids, table.conversation_ids[held]), TIED)
    if signatures and near is not None:
        leave_out_near(table, choice, signatures, near, ours)
    kept = np.flatnonzero(ours & (choice.reason == 0))
    trained = choice.sizes["train"]
    count = max(1, round(trained * replay.share / (1 - replay.share)))
    if count > len(kept):
        raise DataError(
            f"{Path(replay.data)}: expected {count} replay rows, share {replay.share:g} of the training rows beside "
            f"{trained} others, found {len(kept)} usable of {np.count_nonzero(ours)} "
            f"({choice.told(replay=True) or 'all usable'}); add rows or lower prepare.replay.share"
        )
    ranks = np.array([rank("replay", *table.ids[row].tolist()) for row in kept], np.uint64)
    choice.reason[kept[np.argsort(ranks, kind="stable")[count:]]] = BEYOND_SHARE
