"""Adapters merged into their own Base: additive tensors keep their factors, the others become a difference.

The sum, the norms and the difference are formed in float64 and rounded once to float32, so the delta is the nearest
float32 to what the adapter means, not the difference of two rounded models.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shadowft_core.delta.dense import write_dense
from shadowft_core.delta.folder import step
from shadowft_core.delta.lora import Factors, write_factors
from shadowft_core.errors import ZeroDelta

if TYPE_CHECKING:
    from shadowft_core.delta.adapters import Adapter


@dataclass(frozen=True)
class Change:
    """The tuned tensor as a function of the Base's: `magnitude * (W + factors) / |W + factors|`, each part optional.

    W is the Base's tensor or, where the adapter holds one, `replaced`; `rows` then overwrites rows of it.
    """

    factors: Factors | None = None
    stacked: Callable[[int], np.ndarray] | None = None
    """for a tensor of experts: float32 delta of the expert of that number"""
    magnitude: str | None = None
    """DoRA (Liu et al. 2024): norms of the outputs' weight vectors"""
    outputs_are_columns: bool = False
    """embeddings and Conv1D: the outputs of the layer are the columns of the stored tensor"""
    replaced: str | None = None
    rows: str | None = None
    indices: tuple[int, ...] = ()
    shift: str | None = None
    """bias of lora_B, to be added `shift_scaling` times"""
    shift_scaling: float = 0.0

    @property
    def additive(self) -> bool:
        return replace(self, factors=None, outputs_are_columns=False) == Change()


def write_changes(adapter: "Adapter", folder: Path) -> dict[str, Any]:
    """Write factors.safetensors and dense.safetensors as needed; returns the certificate's entries.

    Raises ZeroDelta, NotFinite.
    """
    changes, before = adapter.changes, adapter.before
    shapes = {name: before.info(name).shape for name in changes}
    additive = {name: change.factors for name, change in changes.items() if change.additive and change.factors}
    dense = {name: shapes[name] for name in sorted(changes) if name not in additive}
    entries: dict[str, Any] = {}
    if additive:
        entries |= write_factors(folder, shapes, additive)
    if dense:
        entries |= write_dense(folder, dense, lambda name: _difference(adapter, name, changes[name]))
    if not any(entry["norm"] for entry in entries.values()):
        raise ZeroDelta(f"{adapter.source}: the delta is zero in every tensor; train with a higher rate or more steps")
    return entries


def _difference(adapter: "Adapter", name: str, change: Change) -> Iterator[np.ndarray]:
    """Tuned minus Base in flat float32 parts of `step(shape)` elements."""
    extra = _addition(adapter, change, adapter.before.info(name).shape)
    magnitude = adapter.read(change.magnitude) if change.magnitude else None
    norms: np.ndarray | None = None
    if magnitude is not None and change.outputs_are_columns:
        squares = sum(
            np.square(tuned + extra(first, len(tuned))).sum(axis=0) for first, _, tuned in _pairs(adapter, name, change)
        )
        norms = np.sqrt(np.asarray(squares))
    rows = adapter.read(change.rows) if change.rows else None
    for first, base, start in _pairs(adapter, name, change):
        tuned = start + extra(first, len(start))
        if magnitude is not None:
            with np.errstate(all="ignore"):  # a vector of norm 0 is refused by name where it is written
                if norms is not None:
                    tuned *= magnitude / norms
                else:
                    tuned *= (magnitude[first : first + len(tuned)] / np.linalg.norm(tuned, axis=1))[:, None]
        for number, index in enumerate(change.indices):
            if rows is not None and first <= index < first + len(tuned):
                tuned[index - first] = rows[number]
        with np.errstate(all="ignore"):
            yield (tuned - base).astype(np.float32).reshape(-1)


def _pairs(adapter: "Adapter", name: str, change: Change) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """`(first row, Base, replaced or Base)`, float64, whole rows."""
    shape = adapter.before.info(name).shape
    width, stride = (shape[-1] if len(shape) > 1 else 1), step(shape)
    ours = adapter.before.chunks(name, stride, hashed=True)
    theirs = adapter.weights.chunks(change.replaced, stride) if change.replaced else None
    for start, part in ours:
        base = part.astype(np.float64).reshape(-1, width)
        tuned = base if theirs is None else next(theirs)[1].astype(np.float64).reshape(-1, width)
        yield start // width, base, tuned


def _addition(adapter: "Adapter", change: Change, shape: tuple[int, ...]) -> Callable[[int, int], np.ndarray]:
    """A function from the first row and the number of rows to what is added to them, float64."""
    if change.factors is not None:
        left, right = change.factors.left().astype(np.float64), change.factors.right().astype(np.float64)
        left *= change.factors.scaling
        return lambda first, count: left[first : first + count] @ right
    if change.shift is not None:
        shift = (adapter.read(change.shift).astype(np.float64) * change.shift_scaling)[:, None]
        return lambda first, count: shift[first : first + count]
    if change.stacked is not None:
        stacked, height = change.stacked, shape[1]

        def experts(first: int, count: int) -> np.ndarray:
            touched = range(first // height, (first + count - 1) // height + 1)
            together = np.concatenate([stacked(expert) for expert in touched])
            return together[first - touched.start * height :][:count]

        return experts
    return lambda first, count: np.zeros((1, 1))
