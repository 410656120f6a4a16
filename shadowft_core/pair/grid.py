"""Detects a dequantised model: its weights are on a grid far coarser than their dtype, and sigma measures that grid.

The numbers of a dtype are a grid too, but a smooth distribution fills it: two neighbouring weights of a matrix are
adjacent numbers about twice as often as equal ones. On the levels of a quantised block (int4, nf4, fp8, int8, ..., with
any scale and zero point) they are often equal and hardly ever adjacent.
"""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

PIECE = 1 << 13  # elements of a matrix that are examined
LAGS = 8  # neighbours of a weight in its row, and in its column; the smallest blocks in use have 16
MOST_ADJACENT = 0.5  # per equal pair: smooth weights have 1.4 or more, the worst grid (int8 in bfloat16) 0.1
LEAST_EQUAL = 0.003  # of all pairs: smooth bfloat16 weights have 0.0007 to 0.0015, int8 in blocks of 32 has 0.0047
ENOUGH = 30  # equal pairs; fewer prove nothing
FEWEST_LEVELS = 1.6  # a smooth distribution narrower than one step of its dtype looks like fewer
FOUR_BITS = 24  # levels: at most 16 in int4, nf4 and mxfp4; about 35 in fp8 E5M2, 70 in E4M3, 90 to 210 in int8
_MANTISSA = {np.dtype(ml_dtypes.bfloat16): 7, np.dtype(np.float16): 10, np.dtype(np.float32): 23}
_TRAINED = 7  # bits of the coarsest mantissa that weights are trained in, bfloat16's


def count_levels(weights: np.ndarray, width: int) -> float | None:
    """Estimate the number of levels of the weights of a matrix, from its first PIECE; None if they are on no grid.

    `width` is the length of a row. The estimate is one over the share of equal pairs. Zeros (pruned weights), the
    largest magnitude (clipped weights) and constant pieces are not counted.
    """
    piece = weights[:PIECE]
    if piece.dtype not in _MANTISSA:
        return None
    bits = piece.view(np.dtype(f"u{piece.itemsize}")).astype(np.int64)
    sign = 1 << 8 * piece.itemsize - 1
    size, mantissa = bits & sign - 1, _MANTISSA[piece.dtype]
    counted = size != 0
    magnitudes = size[counted]
    if not magnitudes.size:
        return None
    if magnitudes.min() < magnitudes.max():
        counted &= size != magnitudes.max()
    elif (bits[counted] & sign).all() or not (bits[counted] & sign).any():
        return None  # with both signs it would be binary or ternary
    lowest = size | 1 << mantissa
    unused = np.bitwise_count((lowest & -lowest) - 1)[counted]  # unset bits at the end of the mantissa
    used = mantissa - int(np.sort(unused)[len(unused) // 100])  # float32 may hold bfloat16 numbers, with few exceptions
    number = (size >> mantissa - max(_TRAINED, used)) * np.where(bits & sign, -1, 1)
    found = (_levels(number, counted, range(step, LAGS * step + 1, step)) for step in (1, max(width, LAGS + 1)))
    return next((count for count in found if count), None)


def _levels(number: np.ndarray, counted: np.ndarray, lags: Sequence[int]) -> float | None:
    pairs = equal = adjacent = 0
    for lag in lags:
        if lag < len(number):
            apart = np.abs(number[lag:] - number[:-lag])[counted[lag:] & counted[:-lag]]
            pairs += apart.size
            equal += int(np.count_nonzero(apart == 0))
            adjacent += int(np.count_nonzero(apart == 1))
    if equal < max(ENOUGH, LEAST_EQUAL * pairs) or adjacent > MOST_ADJACENT * equal:
        return None
    return pairs / equal if pairs >= FEWEST_LEVELS * equal else None
