"""A dense tensor of a delta as a sequence of frames: lossless, smaller than bfloat16, readable without the Base.

One frame holds one part of `step(shape)` elements. The difference of two bfloat16 weights is nearly always a bfloat16
number itself (Sterbenz: subtracting two near numbers is exact), so a frame holds bfloat16 words and lists the few
float32 values that are not. Words are split into planes of bytes, with exponents separate from signs and mantissas,
because entropy coding exploits the similarity of exponents only when they are together. Layout, little-endian:

    u8 word (0 all zero, 1 bfloat16, 2 float32)   u8 codec (0 raw, 1 zstd over planes)   u16 zero
    u32 elements   u32 bytes of the words   u32 exceptions
    the words, then u32 positions and float32 values of the exceptions
"""

import struct
import threading
from typing import Any

import ml_dtypes
import numpy as np
from zstandard.backend_cffi import ffi, lib  # the other backend cannot set the coding of literals

from shadowft_core.errors import DeltaError
from shadowft_core.kernels import bf16
from shadowft_core.kernels.scratch import scratch

HEAD = struct.Struct("<BBHIII")
ZERO, BFLOAT16, FLOAT32 = 0, 1, 2
RAW, ZSTD = 0, 1
_WORD: dict[int, np.dtype[Any]] = {BFLOAT16: np.dtype("<u2"), FLOAT32: np.dtype("<u4")}
_BF16 = np.dtype(ml_dtypes.bfloat16)


class _Coder(threading.local):
    """zstd, one context per thread. Weights do not repeat, so only entropy coding helps; the match search is cut short.

    Measured with an update of rms 1e-4: 28 % of bfloat16 at 0.83 GB/s; the fastest level with a full search reaches 30
    % at 0.32 GB/s.
    """

    def __init__(self) -> None:
        self._compressing = ffi.gc(lib.ZSTD_createCCtx(), lib.ZSTD_freeCCtx)
        self._decompressing = ffi.gc(lib.ZSTD_createDCtx(), lib.ZSTD_freeDCtx)
        for setting, value in (
            (lib.ZSTD_c_strategy, lib.ZSTD_fast),
            (lib.ZSTD_c_windowLog, 19),
            (lib.ZSTD_c_hashLog, 6),
            (lib.ZSTD_c_minMatch, 7),
            (lib.ZSTD_c_targetLength, 1 << 17),  # steps of the search
            (lib.ZSTD_c_literalCompressionMode, lib.ZSTD_lcm_huffman),
        ):
            self._sound(lib.ZSTD_CCtx_setParameter(self._compressing, setting, value))

    def compress(self, data: np.ndarray, out: np.ndarray) -> int:
        """Write one zstd frame into `out`; returns its bytes."""
        return self._sound(
            lib.ZSTD_compress2(self._compressing, ffi.from_buffer(out), out.nbytes, ffi.from_buffer(data), data.nbytes)
        )

    def decompress(self, data: memoryview, out: np.ndarray) -> None:
        """Fill `out`. Raises ValueError unless `data` is one zstd frame of exactly that many bytes."""
        size = lib.ZSTD_decompressDCtx(
            self._decompressing, ffi.from_buffer(out), out.nbytes, ffi.from_buffer(data), len(data)
        )
        if (found := self._sound(size)) != out.nbytes:
            raise ValueError(f"{found} bytes of {out.nbytes}")

    @staticmethod
    def _sound(result: int) -> int:
        if lib.ZSTD_isError(result):
            raise ValueError(ffi.string(lib.ZSTD_getErrorName(result)).decode())
        return result


_coder = _Coder()


def longest(elements: int) -> int:
    """The largest size in bytes of a frame of that many elements."""
    return HEAD.size + int(lib.ZSTD_compressBound(4 * elements))  # 2 + 8 / 4 bytes an element, or 4


def encode(values: np.ndarray, compress: bool, out: np.ndarray) -> tuple[int, float]:
    """Write one frame of flat float32 `values` into `out` (uint8); returns its bytes, and the values' sum of squares.

    The sum is a float64, and finite only if all values are. The same values always give the same bytes.
    """
    size = values.size
    words: np.ndarray = scratch.array("words", size, "<u2")
    odd, square = bf16.rounded(values, words)
    if square == 0:
        HEAD.pack_into(out.data, 0, ZERO, RAW, 0, size, 0, 0)
        return HEAD.size, square
    kind = BFLOAT16
    if 4 * odd.size >= size:
        words, kind, odd = values.view("<u4"), FLOAT32, odd[:0]
    if compress:
        planes = scratch.array("planes", words.nbytes, np.uint8)
        bf16.split(words, planes)
        payload = _coder.compress(planes, out[HEAD.size :])
    else:
        payload = words.nbytes
        out[HEAD.size : HEAD.size + payload] = words.view(np.uint8)
    HEAD.pack_into(out.data, 0, kind, ZSTD if compress else RAW, 0, size, payload, odd.size)
    end = HEAD.size + payload
    for exceptions in (odd.astype("<u4"), values[odd].astype("<f4")):
        out[end : end + exceptions.nbytes] = exceptions.view(np.uint8)
        end += exceptions.nbytes
    return end, square


def body_bytes(head: bytes, elements: int, where: str) -> int:
    """The number of bytes after a frame head. Raises DeltaError if it is not the head of a frame of `elements`."""
    word, codec, zero, count, payload, odd = HEAD.unpack(head)
    plain = count * _WORD[word].itemsize if word in _WORD else 0
    sized = payload == plain if codec == RAW else word != ZERO and payload <= plain + 1024
    few = odd <= count if word == BFLOAT16 else odd == 0
    if word > FLOAT32 or codec > ZSTD or zero or count != elements or not (sized and few):
        raise DeltaError(
            f"{where}: {head.hex()} is not the head of a frame of {elements} elements; fetch or extract it again"
        )
    return int(payload + 8 * odd)


def decode(head: bytes, body: memoryview, out: np.ndarray, where: str) -> None:
    """Write the float32 values of one frame into `out`. Raises DeltaError when the body is damaged."""
    word, codec, _, count, payload, odd = HEAD.unpack(head)
    if word == ZERO:
        out[:] = 0
        return
    dtype = _WORD[word]
    if codec == RAW:
        words = np.frombuffer(body[:payload], dtype)
        np.copyto(out, words.view(_BF16 if word == BFLOAT16 else np.float32))
    else:
        planes = scratch.array("planes", count * dtype.itemsize, np.uint8)
        try:
            _coder.decompress(body[:payload], planes)
        except ValueError as error:
            raise DeltaError(f"{where}: a frame does not decompress ({error}); fetch or extract it again") from None
        bf16.joined(planes, dtype.itemsize, out)
    if odd:
        positions = np.frombuffer(body[payload : payload + 4 * odd], "<u4")
        if positions[-1] >= count or np.any(positions[1:] <= positions[:-1]):
            raise DeltaError(f"{where}: exceptions do not rise within {count} elements; fetch or extract it again")
        out[positions] = np.frombuffer(body[payload + 4 * odd : payload + 8 * odd], "<f4")
