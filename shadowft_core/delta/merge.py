"""Writes the changes of an adapter as a delta: additive ones as factors, the others as a difference.

Sums, norms and differences are computed in float64 and rounded once to float32, so the delta is the exact one rounded
to float32, not the difference of two rounded models.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from shadowft_core.delta.adapter import Adapter
from shadowft_core.delta.change import Change
from shadowft_core.delta.dense import Storage, write_dense
from shadowft_core.delta.format import step
from shadowft_core.delta.lora import write_factors
from shadowft_core.errors import UnrelatedError, ZeroDeltaError
from shadowft_core.weights import DTYPES, Checkpoint
from shadowft_core.weights.similarity import CHANGE_UNRELATED as FAR


def write_changes(adapter: Adapter, folder: Path, storage: Storage, unrelated: bool) -> dict[str, Any]:
    """Write factors.safetensors and dense.safetensors as needed; returns the certificate's entries.

    Raises ZeroDeltaError, NotFiniteError, UnrelatedError.
    """
    changes = adapter.changes
    shapes = {name: adapter.before.info(name).shape for name in changes}
    additive = {name: change.factors for name, change in changes.items() if change.additive and change.factors}
    dense = {name: shapes[name] for name in sorted(changes) if name not in additive}
    tensor, one_at_a_time = lru_cache(2)(lambda name: _Tensor(adapter, name)), Lock()

    def part(name: str, number: int) -> tuple[np.ndarray, float]:
        with one_at_a_time:  # two workers may need parts of the same tensor
            prepared = tensor(name)
        return prepared.difference(number)

    def require_related(name: str, square: float, before: float) -> None:
        whole = changes[name].replaced and len(shapes[name]) > 1 and not unrelated
        if whole and before and square > FAR**2 * before:
            raise UnrelatedError(
                f"{adapter.source}: |difference| of tensor {name} is {math.sqrt(square / before):.2f} of |weights| "
                f"(trained: below 0.1, unrelated: 1.4); pass the Base it was trained on, not {adapter.before.path}, or "
                "--unrelated"
            )

    entries: dict[str, Any] = {}
    if additive:
        entries |= write_factors(folder, shapes, additive)
    if dense:
        entries |= write_dense(folder, dense, part, storage, require_related)
    if not any(entry["norm"] for entry in entries.values()):
        raise ZeroDeltaError(
            f"{adapter.source}: the delta is zero in every tensor; train with a higher rate or more steps"
        )
    return entries


class _Tensor:
    """Computes tuned minus Base of one tensor, part by part; keeps the arrays that all parts need."""

    def __init__(self, adapter: Adapter, name: str) -> None:
        self._adapter, self._name, self._change = adapter, name, adapter.changes[name]
        self._info = adapter.before.info(name)
        self._width = self._info.shape[-1] if len(self._info.shape) > 1 else 1
        self._stride = step(self._info.shape)
        self._added = _addition(adapter, self._change, self._info.shape)
        self._magnitude = adapter.read(self._change.magnitude) if self._change.magnitude else None
        self._rows = adapter.read(self._change.rows) if self._change.rows else None
        self._column_norms: np.ndarray | None = None
        if self._magnitude is not None and self._change.outputs_are_columns:
            squares = np.zeros(self._width)
            for number in range(-(-self._info.size // self._stride)):
                squares += np.square(self._sum(number)[1]).sum(axis=0)
            self._column_norms = np.sqrt(squares)

    def difference(self, number: int) -> tuple[np.ndarray, float]:
        """Part `number` of tuned minus Base, flat float32, `step(shape)` elements; and the Base's sum of squares."""
        base, tuned = self._sum(number)
        first = number * self._stride // self._width
        with np.errstate(all="ignore"):  # values that are not finite, as after a norm of 0, are refused when written
            if self._column_norms is not None:
                tuned *= self._magnitude / self._column_norms
            elif self._magnitude is not None:
                tuned *= (self._magnitude[first : first + len(tuned)] / np.linalg.norm(tuned, axis=1))[:, None]
            if self._rows is not None:
                for index, row in zip(self._change.indices, self._rows, strict=True):
                    if first <= index < first + len(tuned):
                        tuned[index - first] = row
            return np.asarray(tuned - base, np.float32).reshape(-1), float(np.sum(np.square(base)))

    def _sum(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(Base, tuned before magnitudes and rows), whole rows, float64."""
        base = self._read(self._adapter.before, self._name, number)
        key = self._change.replaced
        start = self._read(self._adapter.weights, key, number) if key else base
        return base, start + self._added(number * self._stride // self._width, len(base))

    def _read(self, model: Checkpoint, name: str, number: int) -> np.ndarray:
        count = min(self._stride, self._info.size - number * self._stride)
        stored = np.empty(count, DTYPES[model.info(name).dtype])
        model.read_into(name, number * self._stride, stored)
        return stored.astype(np.float64).reshape(-1, self._width)


def _addition(adapter: Adapter, change: Change, shape: tuple[int, ...]) -> Callable[[int, int], np.ndarray]:
    """Return a function of (first row, number of rows) that returns the float64 matrix to add to those rows."""
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
