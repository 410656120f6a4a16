"""Rows of embeddings and heads are matched by token, never by mere position."""

from typing import Any

import numpy as np

from shadowft_core.errors import TokenMismatchError
from shadowft_core.weights.vocabulary import NO_TOKEN


def match_rows(
    ours: np.ndarray, theirs: np.ndarray, where: str, whose: tuple[str, str] = ("Instruct", "Base")
) -> np.ndarray:
    """For every row of `ours`, the row of the same token in `theirs`, int64; -1 where there is none.

    `ours` and `theirs` are token marks, uint64 by row, `NO_TOKEN` for padding, of the models that `whose` names. A
    token that both have at the same id stays there. Raises TokenMismatchError when another token stands at several
    ids, or when none matches.
    """
    found = np.full(len(ours), -1, np.int64)
    both = min(len(ours), len(theirs))
    same = np.flatnonzero((ours[:both] == theirs[:both]) & (ours[:both] != NO_TOKEN))
    found[same] = same
    moved = np.flatnonzero((found < 0) & (ours != NO_TOKEN))
    order = np.argsort(theirs, kind="stable")
    at = np.searchsorted(theirs, ours[moved], sorter=order)
    at[at == len(theirs)] = 0
    known = theirs[order[at]] == ours[moved] if len(theirs) else np.zeros(len(moved), bool)
    found[moved[known]] = order[at[known]]
    for marks, rows, owner in ((theirs, order[at[known]], whose[1]), (ours, moved[known], whose[0])):
        values, counts = np.unique(marks[marks != NO_TOKEN], return_counts=True)
        double = np.isin(marks[rows], values[counts > 1])
        if double.any():
            ids = np.flatnonzero(marks == marks[rows[double][0]]).tolist()
            raise TokenMismatchError(
                f"{where}: ids {ids} of the {owner} are one token, so its row is not certain; save its tokenizer anew"
            )
    if not (found >= 0).any():
        raise TokenMismatchError(f"{where}: {whose[1]} and {whose[0]} have no token in common; the two do not fit")
    return found


def runs_of(rows: np.ndarray) -> np.ndarray:
    """Compress a map of rows (-1: none) into int64 (n, 3): first row here, first row there, number of rows."""
    here = np.flatnonzero(rows >= 0)
    there = rows[here]
    starts = np.flatnonzero(np.r_[True, (np.diff(here) != 1) | (np.diff(there) != 1)]) if len(here) else here
    counts = np.diff(np.r_[starts, len(here)])
    return np.stack([here[starts], there[starts], counts], axis=1).astype(np.int64)


def fitted(marks: np.ndarray, rows: int) -> np.ndarray:
    """Marks of exactly the rows a tensor has: rows beyond the vocabulary are padding."""
    found = np.full(rows, NO_TOKEN, np.uint64)
    found[: len(marks)] = marks[:rows]
    return found


def account(
    rows: np.ndarray, ours: np.ndarray, theirs: np.ndarray, whose: tuple[str, str] = ("instruct", "base")
) -> dict[str, Any]:
    """The record of a matched vocabulary; ids as strings `7` or `7-12`."""
    gone = np.setdiff1d(np.flatnonzero(theirs != NO_TOKEN), rows)
    return {
        "matched": int(np.count_nonzero(rows >= 0)),
        "moved": int(np.count_nonzero((rows >= 0) & (rows != np.arange(len(rows))))),
        f"{whose[0]}_only": _ids(np.flatnonzero((rows < 0) & (ours != NO_TOKEN))),
        f"{whose[1]}_only": _ids(gone),
        "padding": _ids(np.flatnonzero(ours == NO_TOKEN)),
    }


def _ids(rows: np.ndarray) -> dict[str, Any]:
    parts = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
    texts = [f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts]
    return {"rows": len(rows), "ids": texts}
