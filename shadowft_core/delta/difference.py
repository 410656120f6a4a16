"""Tuned - base of two checkpoints: what `extract` stores, and what `graft` can add without storing it."""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.checkpoint import (
    DTYPES,
    FLOATS,
    Checkpoint,
    bytes_digest,
    canonical_json,
    kernel,
    scratch,
    token_marks,
)
from shadowft_core.delta.base import sampled
from shadowft_core.delta.folder import step
from shadowft_core.errors import (
    Quantised,
    ShapeMismatch,
    TensorMissing,
    Unrelated,
    ZeroDelta,
)

FAR = 1.0  # |T - B| / |B|: training moves a matrix by a few percent, an unrelated one lies at 1.4


class Difference:
    """A delta that is nowhere stored: read like a `Delta`, from the two checkpoints it is the difference of.

    `path` is that of the tuned model. `unrelated` waives the check that no matrix moved by more than its own norm.
    Raises TensorMissing or ShapeMismatch when the two do not fit, ZeroDelta when they are equal, Quantised,
    CheckpointError.
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint, unrelated: bool = False) -> None:
        self.before, self.after, self.path, self._unrelated = base, tuned, tuned.path, unrelated
        for model in (self.before, self.after):
            if model.config.get("quantization_config"):
                raise Quantised(f"{model.path}: config.json has a quantization_config; pass the dequantised checkpoint")
        names = _own_tensors(self.before)
        _require_same_layout(self.before, names, self.after)
        self.names = [name for name in names if _changed(self.before, self.after, name)]
        """of the tensors that changed"""
        if not self.names:
            raise ZeroDelta(
                f"{tuned.path}: every tensor equals {base.path}, the delta is zero; tune it or pass another folder"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        return self.before.info(name).shape

    def part(self, name: str, number: int) -> tuple[np.ndarray, float]:
        """A flat float32 part, `step(shape)` elements, which the next overwrites; and the sum of squares of the Base's.

        That of every 32nd part: enough to tell a stranger, who lies 1.4 norms away in all of them.
        """
        info, stride = self.before.info(name), step(self.shape(name))
        count = min(stride, info.size - number * stride)
        was, now = (
            scratch.array(label, count, DTYPES[model.info(name).dtype])
            for label, model in (("before", self.before), ("after", self.after))
        )
        self.before.read_into(name, number * stride, was)
        self.after.read_into(name, number * stride, now)
        difference = _subtracted(was, now, scratch.array("difference", was.size, np.float32))
        return difference, 0.0 if number % 32 else _square(was)

    def require_related(self, name: str, square: float, before: float) -> None:
        """Hold the sum of squares of a tensor's delta against that of its weights. Raises Unrelated."""
        if not self._unrelated and len(self.shape(name)) > 1 and before and square > FAR**2 * before:
            raise Unrelated(
                f"tensor {name}: |difference| is {math.sqrt(square / before):.2f} of |weights| (tuned: below 0.1, "
                f"unrelated or transposed: 1.4); pass the model that was tuned from {self.before.path}, or --unrelated"
            )

    # What follows is read by `graft`, as of a `Delta`.

    @property
    def base_digest(self) -> str:
        return self.before.digest()

    @cached_property
    def recorded(self) -> dict[str, Any]:
        """What a recipe says of it."""
        return {"base": self.before.digest(), "tuned": self.after.digest()}

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.before.path, self.after.path

    @property
    def digest(self) -> str:
        """Names the difference, not the bytes of a folder."""
        return bytes_digest(canonical_json(self.recorded))

    @property
    def tokenizer_digest(self) -> str | None:
        return self.before.tokenizer_digest()

    @property
    def base_tied(self) -> bool:
        return bool(self.before.ties)

    def base_sample(self) -> dict[str, np.ndarray]:
        return {name: values.astype(np.float32) for name, values in sampled(self.before).items()}

    def base_token_marks(self) -> np.ndarray | None:
        return token_marks(self.before.path)

    def apart(self, name: str, scale: float, stride: int) -> Iterator[kernel.Apart]:
        """Parts of `stride` elements, scaled, not formed yet. Raises Unrelated at the end, by every 32nd."""
        square = before = 0.0
        pairs = zip(self.before.chunks(name, stride), self.after.chunks(name, stride), strict=True)
        for number, ((_, was), (_, now)) in enumerate(pairs):
            if number % 32 == 0:
                part = _subtracted(was, now, scratch.array("difference", was.size, np.float32))
                square, before = square + _square(part), before + _square(was)
            yield kernel.Apart(now, was, scale)
        self.require_related(name, square, before)

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """As `Delta.chunks`; raises what `apart` raises."""
        stride = step(self.shape(name))
        room = np.empty(min(stride, self.before.info(name).size), np.float32)  # of this pass: others may run beside it
        for number, pair in enumerate(self.apart(name, 1, stride)):
            yield number * stride, _subtracted(pair.before, pair.after, room[: pair.before.size])

    def parts(self, name: str) -> Callable[[int], np.ndarray]:
        """As `Delta.parts`; the tensor is held against the Base's first."""
        for _ in self.chunks(name):
            pass
        return lambda number: self.part(name, number)[0].copy()


def _subtracted(was: np.ndarray, now: np.ndarray, out: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # what is not finite is refused by name where it is written
        kernel.subtract(now, was, out)
    return out


def _square(values: np.ndarray) -> float:
    """The sum of squares; not finite where a value is not, which is refused by name where it is written."""
    wide = scratch.array("wide", values.size, np.float32)
    np.copyto(wide, values)
    with np.errstate(all="ignore"):
        return float(np.dot(wide, wide))


def _own_tensors(model: Checkpoint) -> list[str]:
    """Names without what is tied and yet stored, which must then equal what it is tied to."""
    model.require_ties_equal()
    return [name for name in model.names if model.home(name) == name]


def _require_same_layout(before: Checkpoint, names: list[str], after: Checkpoint) -> None:
    theirs = _own_tensors(after)
    dropped, extra = sorted(set(names) - set(theirs)), sorted(set(theirs) - set(names))
    if dropped or extra:
        both = [
            f"only {path} has {odd[0]} ({len(odd)} in all)"
            for path, odd in ((before.path, dropped), (after.path, extra))
            if odd
        ]
        raise TensorMissing(f"{' and '.join(both)}; pass the model that was tuned, its tensors under the same names")
    for name in names:
        old, new = before.info(name), after.info(name)
        if old.shape != new.shape:
            raise ShapeMismatch(
                f"tensor {name}: {before.path} has {old.shape}, {after.path} {new.shape}; pass the model that was tuned"
            )


def _changed(before: Checkpoint, after: Checkpoint, name: str) -> bool:
    old, new = before.info(name), after.info(name)
    graftable = old.dtype in FLOATS and new.dtype in FLOATS
    few = min(old.size, 1 << 10)  # what was tuned differs nearly everywhere: a look at its start saves the pass
    if graftable and _differ(before.part(name, 0, few), after.part(name, 0, few)):
        return True
    stride = step(old.shape)
    for (_, x), (_, y) in zip(before.chunks(name, stride), after.chunks(name, stride), strict=True):
        if graftable and _differ(x, y):
            return True
        if not graftable and not np.array_equal(x, y):
            raise Quantised(
                f"tensor {name} is {old.dtype} in {before.path}, {new.dtype} in {after.path}, and changed; "
                "dequantise both"
            )
    return False


def _differ(x: np.ndarray, y: np.ndarray) -> bool:
    return not np.array_equal(x.astype(np.float32), y.astype(np.float32))
