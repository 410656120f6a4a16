"""Which weights of one model correspond to which of another, for `pair`, `extract` and `graft` alike.

Tensors correspond by name (`Checkpoint.named`: ties and the names of either layout of files), rows of embeddings and
heads by token, never by mere position, and the matrices of experts by block, number and part, in either layout.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shadowft_core.errors import ShapeMismatchError, TokenMismatchError
from shadowft_core.weights.families.experts import ExpertNames, Slot, View, fused_block, is_fused, is_single, views
from shadowft_core.weights.vocabulary import NO_TOKEN

Runs = np.ndarray
"""int64 (n, 3): first row in one tensor, first row in the other, number of rows. A row runs along the last axis."""


def rows_by_token(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """For every row of `ours`, the row of the same token in `theirs`, int64; -1 where there is none.

    `ours` and `theirs` are token marks, uint64 by row, `NO_TOKEN` for padding. A row that both use alike, for one token
    or for padding, stays where it is.
    """
    found = np.full(len(ours), -1, np.int64)
    both = min(len(ours), len(theirs))
    same = np.flatnonzero(ours[:both] == theirs[:both])
    found[same] = same
    moved = np.flatnonzero((found < 0) & (ours != NO_TOKEN))
    if len(theirs):
        order = np.argsort(theirs, kind="stable")
        at = order[np.searchsorted(theirs, ours[moved], side="right", sorter=order) - 1]
        known = theirs[at] == ours[moved]
        found[moved[known]] = at[known]
    return found


def match_rows(
    ours: np.ndarray, theirs: np.ndarray, where: str, whose: tuple[str, str] = ("Instruct", "Base")
) -> np.ndarray:
    """As `rows_by_token`, without padding; `whose` names the two models.

    Raises TokenMismatchError when a token that moves has several ids, or when no token matches.
    """
    found = rows_by_token(ours, theirs)
    found[ours == NO_TOKEN] = -1
    moved = np.flatnonzero((found >= 0) & (found != np.arange(len(found))))
    for marks, rows, owner in ((theirs, found[moved], whose[1]), (ours, moved, whose[0])):
        values, counts = np.unique(marks[marks != NO_TOKEN], return_counts=True)
        double = np.isin(marks[rows], values[counts > 1])
        if double.any():
            ids = np.flatnonzero(marks == marks[rows[double][0]]).tolist()
            raise TokenMismatchError(
                f"{where}: ids {ids} of the {owner} are one token, so its row is ambiguous; save its tokenizer again"
            )
    if not (found >= 0).any():
        raise TokenMismatchError(f"{where}: {whose[1]} and {whose[0]} have no token in common; pass a matching pair")
    return found


def runs_of(rows: np.ndarray) -> Runs:
    """Compress a map of rows (-1: none) into runs: first row here, first row there, number of rows."""
    here = np.flatnonzero(rows >= 0)
    there = rows[here]
    starts = np.flatnonzero(np.r_[True, (np.diff(here) != 1) | (np.diff(there) != 1)]) if len(here) else here
    counts = np.diff(np.r_[starts, len(here)])
    return np.stack([here[starts], there[starts], counts], axis=1).astype(np.int64)


def fitted(marks: np.ndarray, rows: int) -> np.ndarray:
    """Marks for exactly the rows of a tensor: rows beyond the vocabulary are padding."""
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


def expert_runs(ours: Mapping[Slot, View], theirs: Mapping[Slot, View]) -> dict[str, Runs]:
    """By tensor of `theirs`, the runs of its rows in one tensor of the other model, whose matrices are `ours`."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for slot, view in ours.items():
        found.setdefault(theirs[slot].tensor, []).append((theirs[slot].first, view.first, view.shape[0]))
    return {tensor: np.array(sorted(runs), np.int64) for tensor, runs in found.items()}


def layout_of_experts(side: Mapping[str, View]) -> str | None:
    """`fused` or `one by one`; None for a model without experts."""
    if any(map(is_fused, side)):
        return "fused"
    return "one by one" if any(map(is_single, side)) else None


def split_experts(side: Mapping[str, View], names: ExpertNames) -> dict[str, View]:
    """The tensors of a model with each matrix of its experts alone, in either layout under the same name.

    Raises ShapeMismatchError for a fused tensor that is not (experts, rows, columns) with as many gate as up rows.
    """
    found: dict[str, View] = {}
    for name, view in side.items():
        matrices = views(name, view.shape)
        if is_fused(name) and not matrices:
            raise ShapeMismatchError(f"{name} has shape {view.shape}; expected fused experts, (experts, rows, columns)")
        found |= {names.name(slot): part._replace(tensor=view.tensor) for slot, part in matrices.items()} or {
            fused_block(name): view
        }
    return found
