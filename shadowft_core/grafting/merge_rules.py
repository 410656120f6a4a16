"""TIES and DARE, streamed. The bits depend on neither chunks nor threads."""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from shadowft_core.delta import DeltaSource
from shadowft_core.errors import NotFiniteError

NOTHING = np.float32(-0.0)  # added to a weight, it changes no bit, not even the sign of a zero
_INFINITY = 0x7F80  # upper half of the bits of float32 infinity


@lru_cache(maxsize=1024)  # shared by the experts of one tensor
def threshold(delta: DeltaSource, tensor: str, density: float) -> np.float32:
    """The smallest of the `density` share of largest magnitudes of one tensor, exact.

    At least one entry is kept, and all entries as large as the threshold. Takes two passes: float32 magnitudes sort
    like their bits, so a histogram of the upper 16 bits finds the bin, and one of the lower 16 bits finds the value.
    Raises NotFiniteError.
    """
    upper = np.zeros(1 << 16, np.int64)
    for _, part in delta.chunks(tensor):
        upper += np.bincount(_magnitudes(part) >> 16, minlength=1 << 16)
    if upper[_INFINITY:].any():
        raise NotFiniteError(f"{delta.path}: tensor {tensor} holds NaN or infinity; use an intact delta")
    count = max(1, round(density * int(upper.sum())))
    high, above = _from_the_top(upper, count)
    lower = np.zeros(1 << 16, np.int64)
    for _, part in delta.chunks(tensor):
        bits = _magnitudes(part)
        lower += np.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, _ = _from_the_top(lower, count - above)
    return np.uint32(high << 16 | low).view(np.float32)


def _magnitudes(part: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(part).view(np.uint32) & np.uint32(0x7FFFFFFF)


def _from_the_top(counts: np.ndarray, count: int) -> tuple[int, int]:
    """The bin of the `count`-th largest, and how many are in the bins above it."""
    summed = np.cumsum(counts[::-1])
    at = int(np.searchsorted(summed, count))
    return len(counts) - 1 - at, int(summed[at - 1]) if at else 0


def elected(parts: Sequence[np.ndarray]) -> np.ndarray:
    """TIES, steps 2 and 3: elect the sign of the sum for each entry, and average the values that have it, float32.

    An entry with sum zero has no sign and gets -0.0.
    """
    total = np.copy(parts[0])
    for part in parts[1:]:
        total += part
    merged, agreeing = np.full_like(total, NOTHING), np.zeros(total.size, np.float32)
    for part in parts:
        agree = ((part > 0) & (total > 0)) | ((part < 0) & (total < 0))
        merged += np.where(agree, part, NOTHING)
        agreeing += agree
    merged /= np.maximum(agreeing, 1)
    return merged


def kept_by_chance(digest: str, tensor: str, density: float, seed: int) -> Callable[[int, int], np.ndarray]:
    """DARE, step 1: which entries of a tensor are kept, as float32 ones and zeros by (first position, number).

    Entry i is kept when number i of a Philox stream, keyed by seed, delta and tensor, is at most density * 2^64.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}\0{digest}\0{tensor}".encode()).digest()[:16], "little")
    limit = np.uint64(min(int(density * 2.0**64), 2**64 - 1))

    def keep(start: int, count: int) -> np.ndarray:
        lead = start % 4  # the generator counts blocks of four
        stream = np.random.Philox(key=key, counter=start // 4).random_raw(lead + count)
        return (stream[lead:] <= limit).astype(np.float32)

    return keep
