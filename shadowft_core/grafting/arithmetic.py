"""The arithmetic of a graft: deltas are scaled, merged and added to the Instruct's tensor; the sum is rounded once."""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from shadowft_core.delta import DeltaSource, step
from shadowft_core.delta.source import Differences
from shadowft_core.errors import CastOverflowError, NotFiniteError
from shadowft_core.grafting.merge_rules import NOTHING, elected, kept_by_chance, threshold
from shadowft_core.grafting.options import Merge
from shadowft_core.grafting.plan import Piece, Plan, Source
from shadowft_core.kernels import bf16
from shadowft_core.kernels.bf16 import LazyDifference
from shadowft_core.weights import CHUNK, DTYPES

Scaled = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
"""(flat part of a delta's tensor, its first position, a float32 buffer of that size) -> the part to add"""


@dataclass(frozen=True)
class TensorResult:
    """The result of one pass over a tensor of the Instruct. Small, because a worker process sends it to its parent."""

    digest: str
    """of the Instruct's tensor before the graft"""
    sums: dict[str, float] | None
    """by `bf16.SUMS`, over all entries; None if nothing was added"""


def whole(plan: Plan, name: str) -> np.ndarray:
    """A tensor of the result as one array. Raises what `parts` raises."""
    info = plan.instruct.info(name)
    array = np.empty(info.size, DTYPES[plan.dtype[name]])
    end = 0
    for part in parts(plan, name):
        array[end : end + part.size] = part
        end += part.size
    return array.reshape(info.shape)


def parts(plan: Plan, name: str) -> Generator[np.ndarray, None, TensorResult]:
    """Yield a tensor of the result in flat parts, each of which the next may overwrite; return a `TensorResult`.

    This is the arithmetic of the project: `cast(instruct_f32 + sum(scale * delta_f32))`.
    Raises NotFiniteError, CastOverflowError, DeltaError, UnrelatedError.
    """
    info, sources = plan.instruct.info(name), plan.sources.get(name, [])
    target = DTYPES[plan.dtype[name]]
    if not sources and plan.dtype[name] == info.dtype:
        for _, part in plan.instruct.chunks(name, 2 * CHUNK, hashed=True):
            yield part
        return TensorResult(plan.instruct.tensor_digest(name), None)
    total = np.zeros(len(bf16.SUMS))
    stride = stride_of(plan, name)
    instruct = plan.instruct.chunks(name, stride, hashed=True)
    room = np.empty(min(stride, info.size), target)
    for (_, weights), delta in zip(instruct, combined(plan, name), strict=True):
        result = room[: weights.size]
        with np.errstate(all="ignore"):  # non-finite values are refused by name just below
            sums = bf16.add(weights, delta, result)
        if not np.isfinite(sums).all():
            values = delta.compute() if isinstance(delta, LazyDifference) else delta
            sums = _in_float64(plan, name, weights.astype(np.float32), values)
        total += sums
        yield result
    named = dict(zip(bf16.SUMS, total.tolist(), strict=True)) if sources else None
    return TensorResult(plan.instruct.tensor_digest(name), named)


def _in_float64(plan: Plan, name: str, before: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The sums of a part, in float64, for squares that overflow float32.

    Raises NotFiniteError if a weight or delta is not finite, CastOverflowError if only their sum is not.
    """
    with np.errstate(all="ignore"):
        after = (before + delta).astype(DTYPES[plan.dtype[name]]).astype(np.float32)
        finite = np.isfinite(after)
    if finite.all():
        return bf16.account(before, delta, after - before)
    for side, values in (("the Instruct's tensor", before), ("the delta's tensor", delta)):
        if not np.isfinite(values).all():
            raise NotFiniteError(f"{plan.instruct.path}: {side} {name} has NaN or infinity; use an intact one")
    at = int(np.argmin(finite))
    raise CastOverflowError(
        f"{plan.instruct.path}: tensor {name}: {before[at]:g} + {delta[at]:g} overflows {plan.dtype[name]}; "
        "lower the scale or choose graft.dtype float32"
    )


def stride_of(plan: Plan, name: str) -> int:
    """Elements in one part of a tensor: `step(shape)`, or twice as many if its delta is lazy."""
    shape = plan.instruct.info(name).shape
    return 2 * step(shape) if lazy_source(plan, name) else step(shape)


def combined(plan: Plan, name: str) -> Iterator[np.ndarray | LazyDifference]:
    """The sum to add, in flat float32 parts of `stride_of` elements; the next part may overwrite a part.

    If a difference of checkpoints is all that is added, its parts are lazy. A tensor without a delta gets -0.0, which
    changes no bit. Raises what `DeltaSource.chunks` raises, and NotFiniteError.
    """
    shape, sources, merge = plan.instruct.info(name).shape, plan.sources.get(name, []), plan.options.merge
    size, stride = math.prod(shape), stride_of(plan, name)
    if not sources:
        nothing = np.full(min(stride, size), NOTHING, np.float32)
        yield from (nothing[: min(stride, size - start)] for start in range(0, size, stride))
        return
    if (lazy := lazy_source(plan, name)) is not None:
        yield from lazy.differences(lazy.piece.scale, stride)
        return
    streams = [_stream(source, shape, merge) for source in sources]
    if merge.rule == "ties":
        yield from map(elected, zip(*streams, strict=True))
        return
    for parts in zip(*streams, strict=True):
        total = parts[0]
        for part in parts[1:]:
            total += part
        yield total


@dataclass(frozen=True)
class LazySource:
    """The only delta of a tensor, if it is not stored, its rows are not reordered, and the merge rule is a sum."""

    delta: DeltaSource
    piece: Piece
    differences: Differences


def lazy_source(plan: Plan, name: str) -> LazySource | None:
    """The `LazySource` of this tensor; None if its delta must be computed before it is added."""
    match plan.sources.get(name, []):
        case [Source(delta=delta, pieces=[Piece(runs=None) as piece])] if plan.options.merge == Merge():
            differences = delta.differences(piece.tensor)
            return None if differences is None else LazySource(delta, piece, differences)
    return None


def _stream(source: Source, shape: tuple[int, ...], merge: Merge) -> Iterator[np.ndarray]:
    """The scaled parts of one delta, in the layout of the Instruct's tensor; each overwrites the previous one."""
    stride = min(step(shape), math.prod(shape))
    room = np.empty(stride, np.float32)
    if source.pieces[0].runs is None:
        [piece] = source.pieces
        scaled = _scaled(source.delta, piece.tensor, piece.scale, merge)
        for start, part in source.delta.chunks(piece.tensor):
            yield scaled(part, start, room[: part.size])
        return
    width = shape[-1] if len(shape) > 1 else 1
    rows, per_part = math.prod(shape) // width, stride // width
    reader = _Rows(source, width, merge)
    for first in range(0, rows, per_part):
        part = room[: min(per_part, rows - first) * width]
        reader.fill(first, part.reshape(-1, width))
        yield part


class _Rows:
    """Reads the rows of a source in the Instruct's order; reads only the needed parts of the delta, one at a time."""

    def __init__(self, source: Source, width: int, merge: Merge) -> None:
        self.delta, self.pieces, self.width, self.merge = source.delta, source.pieces, width, merge
        tables = [np.c_[piece.runs, np.full(len(piece.runs), n)] for n, piece in enumerate(source.pieces)]  # type: ignore[arg-type]
        table = np.concatenate(tables)
        self.table = table[np.argsort(table[:, 0], kind="stable")]  # row here, row in the delta, rows, piece
        self.next = 0
        self.opened: tuple[int, Callable[[int], np.ndarray], Scaled, int] | None = None
        self.held: tuple[int, int, np.ndarray] | None = None

    def fill(self, first: int, rows: np.ndarray) -> None:
        """Fill `rows`, starting at row `first`, which must grow from call to call. Rows in no run get -0.0."""
        rows.fill(NOTHING)
        end = first + len(rows)
        while self.next < len(self.table):
            here, there, count, piece = (int(value) for value in self.table[self.next])
            row, last = max(here, first), min(here + count, end)
            while row < last:
                got = self._rows(piece, there + row - here, last - row)
                rows[row - first : row - first + len(got)] = got
                row += len(got)
            if here + count > end:
                return
            self.next += 1

    def _rows(self, piece: int, first: int, count: int) -> np.ndarray:
        """At most `count` rows of a piece's tensor, starting at `first`: those in the same part of the delta."""
        if self.opened is None or self.opened[0] != piece:
            tensor = self.pieces[piece].tensor
            scaled = _scaled(self.delta, tensor, self.pieces[piece].scale, self.merge)
            self.opened = piece, self.delta.parts(tensor), scaled, step(self.delta.shape(tensor))
            self.held = None
        _, part, scaled, stride = self.opened
        number, offset = divmod(first, stride // self.width)
        if self.held is None or self.held[0] != number:
            values = part(number)
            self.held = number, number * stride, scaled(values, number * stride, np.empty(values.size, np.float32))
        return self.held[2].reshape(-1, self.width)[offset : offset + count]


def _scaled(delta: DeltaSource, tensor: str, scale: float, merge: Merge) -> Scaled:
    """Return the function that scales parts of a delta's tensor and applies the merge rule's density.

    For ties, this reads the tensor twice.
    """
    if merge.rule == "sum" or merge.density is None:
        if scale == 1:
            return lambda part, start, room: part
        return lambda part, start, room: np.multiply(part, np.float32(scale), out=room)
    if merge.rule == "dare":
        keep = kept_by_chance(delta.digest, tensor, merge.density, merge.seed or 0)
        factor = np.float32(scale / merge.density)

        def dropped(part: np.ndarray, start: int, room: np.ndarray) -> np.ndarray:
            np.multiply(part, factor, out=room)
            room *= keep(start, part.size)  # NaN stays NaN, which is refused
            return room

        return dropped
    least = threshold(delta, tensor, merge.density)

    def trimmed(part: np.ndarray, start: int, room: np.ndarray) -> np.ndarray:
        np.multiply(part, np.float32(scale), out=room)
        room[np.abs(part) < least] = 0
        return room

    return trimmed
