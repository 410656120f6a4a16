"""Which weights of one model correspond to which of another, for `pair`, `extract` and `graft` alike.

Tensors are matched by name (`Checkpoint.named` resolves ties and both ways of naming), rows of embeddings and heads by
token rather than position, and the matrices of experts by block, number and part, in either layout.
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

    `ours` and `theirs` are token marks, uint64 by row, `NO_TOKEN` for padding. A row with the same token in both, or
    padding in both, maps to itself.
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
    ours: np.ndarray, theirs: np.ndarray, where: str, models: tuple[str, str] = ("Instruct", "Base")
) -> np.ndarray:
    """Like `rows_by_token`, but -1 for padding; `models` names the two models in messages.

    Raises TokenMismatchError when a token with another row has several ids, or when no token matches.
    """
    found = rows_by_token(ours, theirs)
    found[ours == NO_TOKEN] = -1
    moved = np.flatnonzero((found >= 0) & (found != np.arange(len(found))))
    for marks, rows, owner in ((theirs, found[moved], models[1]), (ours, moved, models[0])):
        values, counts = np.unique(marks[marks != NO_TOKEN], return_counts=True)
        double = np.isin(marks[rows], values[counts > 1])
        if double.any():
            ids = np.flatnonzero(marks == marks[rows[double][0]]).tolist()
            raise TokenMismatchError(
                f"{where}: ids {ids} of the {owner} are the same token, so its row is ambiguous; "
                "save its tokenizer again"
            )
    if not (found >= 0).any():
        raise TokenMismatchError(f"{where}: {models[1]} and {models[0]} have no token in common; pass a matching pair")
    return found


def runs_of(rows: np.ndarray) -> Runs:
    """Compress a map of rows (-1 for none) into runs."""
    here = np.flatnonzero(rows >= 0)
    there = rows[here]
    starts = np.flatnonzero(np.r_[True, (np.diff(here) != 1) | (np.diff(there) != 1)]) if len(here) else here
    counts = np.diff(np.r_[starts, len(here)])
    return np.stack([here[starts], there[starts], counts], axis=1).astype(np.int64)


def fitted(marks: np.ndarray, rows: int) -> np.ndarray:
    """The marks, cut or padded with `NO_TOKEN` to the number of rows of a tensor."""
    found = np.full(rows, NO_TOKEN, np.uint64)
    found[: len(marks)] = marks[:rows]
    return found


def account(
    rows: np.ndarray, ours: np.ndarray, theirs: np.ndarray, models: tuple[str, str] = ("instruct", "base")
) -> dict[str, Any]:
    """The record of a matched vocabulary: row counts, and ids as strings `7` or `7-12`. `models` names the sides."""
    gone = np.setdiff1d(np.flatnonzero(theirs != NO_TOKEN), rows)
    return {
        "matched": int(np.count_nonzero(rows >= 0)),
        "moved": int(np.count_nonzero((rows >= 0) & (rows != np.arange(len(rows))))),
        f"{models[0]}_only": _ids(np.flatnonzero((rows < 0) & (ours != NO_TOKEN))),
        f"{models[1]}_only": _ids(gone),
        "padding": _ids(np.flatnonzero(ours == NO_TOKEN)),
    }


def _ids(rows: np.ndarray) -> dict[str, Any]:
    parts = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
    texts = [f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts]
    return {"rows": len(rows), "ids": texts}


def expert_runs(ours: Mapping[Slot, View], theirs: Mapping[Slot, View]) -> dict[str, Runs]:
    """For every tensor of `theirs`, the runs that match its rows to those of the tensor that holds `ours`."""
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
    """The tensors of a model, with one entry per expert matrix, named alike for both layouts.

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
