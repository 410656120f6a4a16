"""Arithmetic on bfloat16 parts: one compiled pass if bf16.c was built at installation, else numpy.

Both write the same bits. Only sums may differ: those of `add` in their last digits, those of `distance` in the last
bits of float64.
"""

import ctypes
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from shadowft_core.kernels.scratch import scratch

VERSION = 2  # of bf16.c
SUMS = ("weight2", "delta2", "reached2", "product", "error2", "moves", "lost")  # over the entries of a part
_COLUMNS = 1 << 10  # COLUMNS of bf16.c: short chains of float32 additions, and vector code
_BF16 = np.dtype(ml_dtypes.bfloat16)


def _built() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library, or None and the reason."""
    file = Path(__file__).with_name("libbf16.so")  # `bf16.so` would hide this module from Python
    if not file.is_file():
        return None, "not built: a pure wheel, or no C compiler at installation"
    try:
        found = ctypes.CDLL(str(file))
    except OSError as error:
        return None, f"{file.name} was built for another system: {error}"
    if getattr(found, "shadowft_version", int)() != VERSION:
        return None, f"{file.name} was built from an earlier source: install again"
    return typed(found), ""


def typed(found: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the argument types of the library's functions, so that addresses can be passed as integers."""
    address, size = ctypes.c_void_p, ctypes.c_size_t
    found.shadowft_subtract.argtypes = [address, address, address, size]
    found.shadowft_round.argtypes = [address, address, address, size, address]
    found.shadowft_split.argtypes = found.shadowft_join.argtypes = [address, address, size]
    found.shadowft_add.argtypes = [address, address, address, size, address]
    found.shadowft_add_apart.argtypes = [address, address, address, ctypes.c_float, address, size, address]
    found.shadowft_distance.argtypes = [address, address, size, address]
    found.shadowft_round.restype = size
    for name in ("subtract", "add", "add_apart", "split", "join", "distance"):
        getattr(found, f"shadowft_{name}").restype = None
    return found


library, why_numpy = _built()


class LazyDifference(NamedTuple):
    """A part of a delta, computed only when it is needed: (after - before) * scale, in float32."""

    after: np.ndarray
    before: np.ndarray
    scale: float

    def compute(self) -> np.ndarray:
        """Flat float32; valid until the same thread computes the next."""
        delta = scratch.array("computed", self.after.size, np.float32)
        subtract(self.after, self.before, delta)
        return delta if self.scale == 1 else np.multiply(delta, np.float32(self.scale), out=delta)


def subtract(after: np.ndarray, before: np.ndarray, out: np.ndarray) -> None:
    """Compute out = after - before: flat arrays of any float dtype, `out` in float32."""
    if library is not None and after.dtype == before.dtype == _BF16:
        library.shadowft_subtract(after.ctypes.data, before.ctypes.data, out.ctypes.data, out.size)
        return
    was = scratch.array("was", before.size, np.float32)
    np.copyto(was, before)
    np.copyto(out, after)
    np.subtract(out, was, out=out)


def add(weights: np.ndarray, delta: np.ndarray | LazyDifference, result: np.ndarray) -> np.ndarray:
    """result = cast(weights + delta), added in float32 and rounded once; returns the sums named `SUMS`, float64.

    Flat arrays: `weights` and `result` of any float dtype, `delta` float32 or lazy. `reached` is result - weights, the
    part of the delta that survived. The sums: squares of weights, delta and reached; delta * reached; squares of
    reached - delta; the number of non-zero entries of delta; the number of those that changed no weight. The compiled
    kernel squares in float32, so a sum is not finite when a value is not, or when a square overflows float32.
    """
    compiled = library if weights.dtype == result.dtype == _BF16 else None
    if isinstance(delta, LazyDifference) and {delta.after.dtype, delta.before.dtype} != {_BF16}:
        delta = delta.compute()
    if compiled is not None:
        sums = np.zeros(len(SUMS))
        end = result.ctypes.data, result.size, sums.ctypes.data
        if isinstance(delta, LazyDifference):
            both = delta.after.ctypes.data, delta.before.ctypes.data
            compiled.shadowft_add_apart(weights.ctypes.data, *both, delta.scale, *end)
        else:
            compiled.shadowft_add(weights.ctypes.data, delta.ctypes.data, *end)
        return sums
    if isinstance(delta, LazyDifference):
        delta = delta.compute()
    before, reached, spare = (scratch.array(label, delta.size, np.float32) for label in ("before", "reached", "spare"))
    np.copyto(before, weights)
    np.add(before, delta, out=spare)
    np.copyto(result, spare, casting="unsafe")
    np.copyto(reached, result)
    np.subtract(reached, before, out=reached)
    return account(before, delta, reached)


def account(before: np.ndarray, delta: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Return the sums that `add` returns, of these flat arrays, in float64."""
    moves, arrives = (scratch.array(label, delta.size, np.bool_) for label in ("moves", "arrives"))
    np.not_equal(delta, 0, out=moves)
    np.not_equal(reached, 0, out=arrives)
    moved = int(np.count_nonzero(moves))
    arrived = int(np.count_nonzero(np.logical_and(moves, arrives, out=arrives)))
    gap = np.subtract(reached, delta, out=scratch.array("gap", delta.size, delta.dtype))
    # In float64: the kernels of float32 add in an order that depends on the CPU, which shows in the sixth digit.
    wide, other = (scratch.array(label, delta.size, np.float64) for label in ("wide", "other"))
    np.copyto(wide, before)
    weight2 = np.dot(wide, wide)
    np.copyto(wide, delta)
    np.copyto(other, reached)
    found = weight2, np.dot(wide, wide), np.dot(other, other), np.dot(wide, other)
    np.copyto(wide, gap)
    return np.array([*found, np.dot(wide, wide), moved, moved - arrived], np.float64)


def rounded(values: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, float]:
    """Round flat float32 values to bfloat16 and write them to `words` (uint16).

    Returns the positions (uint32) of the values that bfloat16 cannot hold exactly, and the float64 sum of all squares.
    If the sum is not finite, a value is not, and the other results are invalid. The positions are valid until the same
    thread calls again.
    """
    odd = scratch.array("odd", values.size, np.uint32)
    if library is not None:
        square = np.zeros(1)
        found = library.shadowft_round(
            values.ctypes.data, words.ctypes.data, odd.ctypes.data, values.size, square.ctypes.data
        )
        return odd[:found], float(square[0])
    back, wide = scratch.array("back", values.size, np.float32), scratch.array("wide", values.size, np.float64)
    np.copyto(wide, values)
    with np.errstate(over="ignore"):  # a value that overflows bfloat16 is an exception
        np.copyto(words.view(_BF16), values, casting="unsafe")
    np.copyto(back, words.view(_BF16))
    positions = np.flatnonzero(np.not_equal(back, values, out=scratch.array("flags", values.size, np.bool_)))
    odd[: positions.size] = positions
    return odd[: positions.size], float(np.dot(wide, wide))


def split(words: np.ndarray, planes: np.ndarray) -> None:
    """Rotate flat words (uint16 or uint32) left by one bit and write their bytes to `planes` (uint8), lowest first."""
    width, size = words.dtype.itemsize, words.size
    if library is not None and width == 2:
        library.shadowft_split(words.ctypes.data, planes.ctypes.data, size)
        return
    rotated, carry = (scratch.array(label, size, words.dtype) for label in ("rotated", "carry"))
    np.left_shift(words, 1, out=rotated)
    rotated |= np.right_shift(words, 8 * width - 1, out=carry)
    for number in range(width):
        np.copyto(planes[number * size : (number + 1) * size], rotated, casting="unsafe")  # keeps the lowest byte
        rotated >>= 8


def joined(planes: np.ndarray, width: int, out: np.ndarray) -> None:
    """Invert `split`: write the values to `out` (float32). Words are bfloat16 (`width` 2) or float32 (4)."""
    size = out.size
    if library is not None and width == 2:
        library.shadowft_join(planes.ctypes.data, out.ctypes.data, size)
        return
    words, carry = (scratch.array(label, size, np.dtype(f"u{width}")) for label in ("rotated", "carry"))
    np.copyto(words, planes[(width - 1) * size :])
    for number in range(width - 2, -1, -1):
        words <<= 8
        words |= planes[number * size : (number + 1) * size]
    np.left_shift(words, 8 * width - 1, out=carry)
    words >>= 1
    words |= carry
    np.copyto(out, words.view(_BF16 if width == 2 else np.float32))


def distance(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """sum|ours - theirs|, sum|ours|, sum|theirs|, float64, of flat arrays of any float dtype.

    Differences are float32. Short columns are summed in float32, and their sums in float64. A sum is not finite when a
    value is not, or when a column overflows float32.
    """
    if library is not None and ours.dtype == theirs.dtype == _BF16:
        sums = np.zeros(3)
        library.shadowft_distance(ours.ctypes.data, theirs.ctypes.data, ours.size, sums.ctypes.data)
        return sums
    rows = -(-ours.size // _COLUMNS)
    b, i, gap = wide = scratch.array("distance", 3 * rows * _COLUMNS, np.float32).reshape(3, -1)
    wide[:, ours.size :] = 0
    np.copyto(b[: ours.size], ours)
    np.copyto(i[: ours.size], theirs)
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(b, i, out=gap)
        np.abs(wide, out=wide)
        columns = (np.add.reduce(values.reshape(-1, _COLUMNS), axis=0) for values in (gap, b, i))
        return np.array([float(column.sum(dtype=np.float64)) for column in columns])
