"""Tuned - Base of two checkpoints: `extract` stores it, `graft` can add it without storing it."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.delta.base import sampled
from shadowft_core.delta.format import step
from shadowft_core.delta.layout import layout
from shadowft_core.delta.source import Differences
from shadowft_core.errors import NotFiniteError, QuantisedError, UnrelatedError, ZeroDeltaError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.kernels import bf16
from shadowft_core.kernels.bf16 import LazyDifference
from shadowft_core.kernels.scratch import scratch
from shadowft_core.weights import DTYPES, FLOATS, Checkpoint, Ignored, note_unknown, runs_of, token_marks
from shadowft_core.weights.similarity import CHANGE_UNRELATED as FAR

_COUNTERS = ("I64", "I32", "I16", "U64", "U32", "U16", "BOOL")  # integers of at most 8 bits are quantised weights


class Difference:
    """A delta that is not stored: a `DeltaSource` that subtracts two checkpoints as it is read.

    `path` is the tuned model's. `unrelated` waives the check that no matrix moved by more than its own norm. `ignore`
    and `standing` are passed to `layout`, which matches the two checkpoints.
    Raises ZeroDeltaError when they are equal, QuantisedError, CheckpointError, and what `layout` raises.
    """

    is_stored = False
    trainer: dict[str, Any] | None = None
    """what the files say about the training, if another trainer made it"""

    def __init__(
        self,
        base: Checkpoint,
        tuned: Checkpoint,
        unrelated: bool = False,
        ignore: Sequence[str] = (),
        standing: Sequence[str] = (),
    ) -> None:
        self.before, self.after, self.path, self._unrelated = base, tuned, tuned.path, unrelated
        for model in (self.before, self.after):
            if model.config.get("quantization_config"):
                raise QuantisedError(
                    f"{model.path}: config.json has a quantization_config; pass the dequantised checkpoint"
                )
            note_unknown(model)
        self.layout = layout(self.before, self.after, ignore, standing)
        self.ignore = (*ignore, *standing)
        self._norms: dict[str, float] = {}
        self.names = [name for name in self.layout.tuned if self._changed(name)]
        """the tensors that changed"""
        if not self.names:
            raise ZeroDeltaError(
                f"{tuned.path}: every tensor equals {base.path}, the delta is zero; tune it or pass another folder"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        return self.before.info(name).shape

    def part(self, name: str, number: int) -> tuple[np.ndarray, float]:
        """A flat float32 part, `step(shape)` elements, which the next overwrites, and the Base's sum of squares in it.

        The sum is computed for every 32nd part only, and is 0 for the others: an unrelated model is at a relative
        distance of about 1.4 in every part.
        """
        info, stride = self.before.info(name), step(self.shape(name))
        was = scratch.array("before", min(stride, info.size - number * stride), DTYPES[info.dtype])
        self.before.read_into(name, number * stride, was)
        now = self._now(name, number * stride, was)
        difference = _subtracted(was, now, scratch.array("difference", was.size, np.float32))
        return difference, 0.0 if number % 32 else _square(was)

    def _now(self, name: str, start: int, was: np.ndarray) -> np.ndarray:
        """The tuned model's weights that correspond to `was`, the Base's weights from `start` on.

        float32 if rows were matched by token. Rows of tokens that the tuned model lacks are copied from the Base.
        """
        tuned_name = self.layout.tuned[name]
        dtype, rows = DTYPES[self.after.info(tuned_name).dtype], self.layout.rows.get(name)
        if rows is None:
            now = scratch.array("after", was.size, dtype)
            self.after.read_into(tuned_name, start, now)
            return now
        width = math.prod(self.shape(name)[1:])
        now = was.astype(np.float32)
        for row, tuned_row, count in runs_of(rows[start // width : (start + was.size) // width]).tolist():
            read = scratch.array("after", count * width, dtype)
            self.after.read_into(tuned_name, tuned_row * width, read)
            now[row * width : (row + count) * width] = read
        return now

    def _changed(self, name: str) -> bool:
        tuned_name = self.layout.tuned[name]
        old, new = self.before.info(name), self.after.info(tuned_name)
        graftable = old.dtype in FLOATS and new.dtype in FLOATS
        few = min(old.size, new.size, 1 << 10)
        matched = name in self.layout.rows
        # tuned weights differ nearly everywhere: comparing the start saves a pass
        if graftable and not matched and _differ(self.before.part(name, 0, few), self.after.part(tuned_name, 0, few)):
            return True
        for was, now in self._pairs(name, step(old.shape)):
            if graftable and _differ(was, now):
                return True
            if not graftable and not np.array_equal(was, now):
                raise _not_subtractable(name, self.before, self.after, tuned_name)
        return False

    def _pairs(self, name: str, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parts of both sides, in order; a part is overwritten by the next."""
        before = self.before.chunks(name, stride)
        if name in self.layout.rows:
            return ((was, self._now(name, start, was)) for start, was in before)
        after = self.after.chunks(self.layout.tuned[name], stride)
        return ((was, now) for (_, was), (_, now) in zip(before, after, strict=True))

    def norm(self, name: str) -> float:
        """The Frobenius norm of a tensor's delta; the first call reads the tensor. Raises NotFiniteError."""
        if name not in self._norms:
            square = 0.0
            for was, now in self._pairs(name, step(self.shape(name))):
                square += _square(_subtracted(was, now, scratch.array("difference", was.size, np.float32)))
            if not math.isfinite(square):
                raise NotFiniteError(f"{self.path}: tensor {name}: its delta is not finite; use an intact checkpoint")
            self._norms[name] = math.sqrt(square)
        return self._norms[name]

    def require_related(self, name: str, square: float, before: float) -> None:
        """Raise UnrelatedError if a tensor's delta is too large, given the sums of squares of delta and weights."""
        if not self._unrelated and len(self.shape(name)) > 1 and before and square > FAR**2 * before:
            raise UnrelatedError(
                f"tensor {name}: |difference| is {math.sqrt(square / before):.2f} of |weights| (tuned: below 0.1, "
                f"unrelated or transposed: 1.4); pass the model that was tuned from {self.before.path}, or --unrelated"
            )

    @property
    def base_digest(self) -> str:
        return self.before.digest()

    @cached_property
    def recorded(self) -> dict[str, Any]:
        return {"base": self.before.digest(), "tuned": self.after.digest()}

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.before.path, self.after.path

    @property
    def digest(self) -> str:
        """The digest of `recorded`, which has both model digests."""
        return bytes_digest(canonical_json(self.recorded))

    @property
    def tokenizer_digest(self) -> str | None:
        return self.before.tokenizer_digest()

    @property
    def ignored(self) -> Ignored:
        return self.layout.ignored

    @property
    def base_tied(self) -> bool:
        return self.before.head_is_tied

    def base_sample(self) -> dict[str, np.ndarray]:
        return {name: values.astype(np.float32) for name, values in sampled(self.before).items()}

    def base_token_marks(self) -> np.ndarray | None:
        return token_marks(self.before.path)

    def form(self, name: str) -> str:
        return "difference"

    def factors(self, name: str) -> None:
        """A difference has no factors."""

    def differences(self, name: str) -> Differences:
        """The parts as pairs of weights. The end of the pass raises UnrelatedError, judged by every 32nd part."""

        def pairs(scale: float, stride: int) -> Iterator[LazyDifference]:
            square = before = 0.0
            for number, (was, now) in enumerate(self._pairs(name, stride)):
                if number % 32 == 0:
                    part = _subtracted(was, now, scratch.array("difference", was.size, np.float32))
                    square, before = square + _square(part), before + _square(was)
                yield LazyDifference(now, was, scale)
            self.require_related(name, square, before)

        return pairs

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        stride = step(self.shape(name))
        room = np.empty(min(stride, self.before.info(name).size), np.float32)  # not scratch: passes may interleave
        for number, pair in enumerate(self.differences(name)(1, stride)):
            yield number * stride, _subtracted(pair.before, pair.after, room[: pair.before.size])

    def parts(self, name: str) -> Callable[[int], np.ndarray]:
        for _ in self.chunks(name):  # raises UnrelatedError before the first part is used
            pass
        return lambda number: self.part(name, number)[0].copy()


def _subtracted(was: np.ndarray, now: np.ndarray, out: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # values that are not finite are refused where the tensor is written
        bf16.subtract(now, was, out)
    return out


def _square(values: np.ndarray) -> float:
    """The sum of squares; not finite if a value is not, which is refused where the tensor is written."""
    wide = scratch.array("square", values.size, np.float64)  # in float32 the order of adding depends on the CPU
    np.copyto(wide, values)
    with np.errstate(all="ignore"):
        return float(np.dot(wide, wide))


def _not_subtractable(name: str, before: Checkpoint, after: Checkpoint, tuned_name: str) -> QuantisedError:
    """The error for a changed tensor whose two sides cannot be subtracted."""
    old, new = before.info(name).dtype, after.info(tuned_name).dtype
    what = f"tensor {name} is {old} in {before.path}, {new} in {after.path}, and changed"
    if "F64" in (old, new):
        return QuantisedError(f"{what}; float64 is not supported, save both as one of {', '.join(FLOATS)}")
    if old == new and old in _COUNTERS:
        return QuantisedError(
            f"{what}: a counter or mask, not a weight, so a delta cannot store it; copy the Base's into the tuned model"
        )
    return QuantisedError(f"{what}; dequantise both")


def _differ(x: np.ndarray, y: np.ndarray) -> bool:
    return not np.array_equal(x.astype(np.float32), y.astype(np.float32))
