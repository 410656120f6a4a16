"""A dense tensor of a delta as a sequence of frames: lossless, smaller than bfloat16, readable without the Base.

One frame holds one part of `step(shape)` elements. The difference of two bfloat16 weights is nearly always a bfloat16
number itself (Sterbenz: subtracting two near numbers is exact), so a frame holds bfloat16 words and lists the few
float32 values that are not. Words are split into planes of bytes, exponents apart from signs and mantissas, because
only then does entropy coding find how alike they are. Layout, little-endian:

    u8 word (0 all zero, 1 bfloat16, 2 float32)   u8 codec (0 raw, 1 zstd over planes)   u16 zero
    u32 elements   u32 bytes of the words   u32 exceptions
    the words, then u32 positions and float32 values of the exceptions
"""

import struct
import threading
from typing import Any

import ml_dtypes
import numpy as np
import zstandard

from shadowft_core.checkpoint import scratch
from shadowft_core.errors import DeltaError

HEAD = struct.Struct("<BBHIII")
ZERO, BFLOAT16, FLOAT32 = 0, 1, 2
RAW, ZSTD = 0, 1
_WORD: dict[int, np.dtype[Any]] = {BFLOAT16: np.dtype("<u2"), FLOAT32: np.dtype("<u4")}
_BF16 = np.dtype(ml_dtypes.bfloat16)


class _Coder(threading.local):
    """Per thread: zstd contexts are not shared. Matching finds little in weights, so it is kept to its fastest form."""

    def __init__(self) -> None:
        fast = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST, window_log=19, hash_log=6, min_match=7, write_content_size=True
        )
        self.compressor = zstandard.ZstdCompressor(compression_params=fast)
        self.decompressor = zstandard.ZstdDecompressor()


_coder = _Coder()


def encode(values: np.ndarray, compress: bool) -> bytes:
    """One frame of finite float32 `values`; the same values always give the same bytes."""
    size = values.size
    rounded, back = scratch.array("rounded", size, _BF16), scratch.array("back", size, np.float32)
    flags = scratch.array("flags", size, np.bool_)
    if not np.not_equal(values, 0, out=flags).any():
        return HEAD.pack(ZERO, RAW, 0, size, 0, 0)
    with np.errstate(over="ignore"):  # what overflows bfloat16 is an exception
        np.copyto(rounded, values, casting="unsafe")
    np.copyto(back, rounded)
    odd = np.flatnonzero(np.not_equal(back, values, out=flags))
    if 4 * odd.size < size:
        words, kind = rounded.view("<u2"), BFLOAT16
    else:
        words, kind, odd = values.view("<u4"), FLOAT32, odd[:0]
    payload = _coder.compressor.compress(_planes(words).data) if compress else words.data
    head = HEAD.pack(
        kind, ZSTD if compress else RAW, 0, size, len(payload) * (1 if compress else words.itemsize), odd.size
    )
    return b"".join((head, payload, odd.astype("<u4").data, values[odd].astype("<f4").data))


def body_bytes(head: bytes, elements: int, where: str) -> int:
    """How many bytes follow this frame head. Raises DeltaError when it is not one of a frame of `elements`."""
    word, codec, zero, count, payload, odd = HEAD.unpack(head)
    plain = count * _WORD[word].itemsize if word in _WORD else 0
    limit = plain if codec == RAW else plain + 1024
    if word > FLOAT32 or codec > ZSTD or zero or count != elements or payload > limit or odd > elements:
        raise DeltaError(f"{where}: frame {head.hex()} is not one of {elements} elements; fetch or extract it again")
    return int(payload + 8 * odd)


def decode(head: bytes, body: memoryview, out: np.ndarray, where: str) -> None:
    """The float32 values of one frame into `out`. Raises DeltaError when the body does not hold them."""
    word, codec, _, count, payload, odd = HEAD.unpack(head)
    if word == ZERO:
        out[:] = 0
        return
    dtype = _WORD[word]
    if codec == RAW:
        words = np.frombuffer(body[:payload], dtype)
    else:
        try:
            planes = _coder.decompressor.decompress(body[:payload], max_output_size=count * dtype.itemsize)
        except zstandard.ZstdError as error:
            raise DeltaError(f"{where}: a frame does not decompress ({error}); fetch or extract it again") from None
        words = _joined(np.frombuffer(planes, np.uint8), dtype)
    if words.size != count:
        raise DeltaError(f"{where}: a frame holds {words.size} of {count} elements; fetch or extract it again")
    np.copyto(out, words.view(_BF16 if word == BFLOAT16 else np.float32))
    if odd:
        positions = np.frombuffer(body[payload : payload + 4 * odd], "<u4")
        if positions.max() >= count:
            raise DeltaError(f"{where}: exception at {positions.max()} of {count} elements; fetch or extract it again")
        out[positions] = np.frombuffer(body[payload + 4 * odd : payload + 8 * odd], "<f4")


def _planes(words: np.ndarray) -> np.ndarray:
    """Bytes of rotated words, plane by plane, lowest first; rotation puts the whole exponent in one plane."""
    width, size = words.dtype.itemsize, words.size
    rotated, carry = (scratch.array(label, size, words.dtype) for label in ("rotated", "carry"))
    np.left_shift(words, 1, out=rotated)
    rotated |= np.right_shift(words, 8 * width - 1, out=carry)
    planes = scratch.array("planes", width * size, np.uint8)
    for number in range(width):
        np.copyto(planes[number * size : (number + 1) * size], rotated, casting="unsafe")  # keeps the lowest byte
        rotated >>= 8
    return planes


def _joined(planes: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    width = dtype.itemsize
    size = planes.size // width
    rotated, carry = (scratch.array(label, size, dtype) for label in ("rotated", "carry"))
    np.copyto(rotated, planes[(width - 1) * size :])
    for number in range(width - 2, -1, -1):
        rotated <<= 8
        rotated |= planes[number * size : (number + 1) * size]
    np.left_shift(rotated, 8 * width - 1, out=carry)
    rotated >>= 1
    rotated |= carry
    return rotated
