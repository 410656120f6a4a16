"""The deltas of one tensor of the Instruct, scaled and merged into one, float32, part by part."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from shadowft_core.delta import DeltaSource, step
from shadowft_core.delta.source import Differences
from shadowft_core.graft.merge_rules import NOTHING, elected, kept_by_chance, threshold
from shadowft_core.graft.options import Merge
from shadowft_core.graft.plan import Piece, Plan, Source
from shadowft_core.kernels.bf16 import LazyDifference

Scaled = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
"""(flat part of a delta's tensor, its first position, a float32 buffer of that size) -> the part as it is added"""


def stride_of(plan: Plan, name: str) -> int:
    """Elements of one part of a tensor: as many as in a stored part, or more where no delta is stored."""
    shape = plan.instruct.info(name).shape
    return 2 * step(shape) if lazy_source(plan, name) else step(shape)


def combined(plan: Plan, name: str) -> Iterator[np.ndarray | LazyDifference]:
    """Flat float32 parts, `stride_of` elements of the Instruct's tensor at a time; the next may overwrite a part.

    Parts of a difference of checkpoints, where nothing else is added, are lazy. A tensor without a delta gets -0.0,
    which changes no bit. Raises what `DeltaSource.chunks` raises, and NotFiniteError.
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
    """A delta that is not stored and alone is added to a tensor, row by row and unchanged."""

    delta: DeltaSource
    piece: Piece
    differences: Differences


def lazy_source(plan: Plan, name: str) -> LazySource | None:
    """What is added to this tensor, if its parts need no computing before they are added."""
    match plan.sources.get(name, []):
        case [Source(delta=delta, pieces=[Piece(runs=None) as piece])] if plan.options.merge == Merge():
            differences = delta.differences(piece.tensor)
            return None if differences is None else LazySource(delta, piece, differences)
    return None


def _stream(source: Source, shape: tuple[int, ...], merge: Merge) -> Iterator[np.ndarray]:
    """The scaled parts of one delta, in the layout of the Instruct's tensor; each overwrites the one before."""
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
    """The rows of a source in the Instruct's order. Reads the parts of the delta that are needed, one at a time."""

    def __init__(self, source: Source, width: int, merge: Merge) -> None:
        self.delta, self.pieces, self.width, self.merge = source.delta, source.pieces, width, merge
        tables = [np.c_[piece.runs, np.full(len(piece.runs), n)] for n, piece in enumerate(source.pieces)]  # type: ignore[arg-type]
        table = np.concatenate(tables)
        self.table = table[np.argsort(table[:, 0], kind="stable")]  # row here, row in the delta, rows, piece
        self.next = 0
        self.opened: tuple[int, Callable[[int], np.ndarray], Scaled, int] | None = None
        self.held: tuple[int, int, np.ndarray] | None = None

    def fill(self, first: int, rows: np.ndarray) -> None:
        """Fill the rows from `first` on, which grows from call to call. Rows in no run get -0.0."""
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
        """At most `count` rows of a piece's tensor from `first` on, as many as its part holds."""
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
    """How one tensor of a delta is scaled and thinned out by the merge rule. For ties, reads the tensor twice."""
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
