"""The safetensors header, read strictly and written canonically.

A file is 8 bytes (little-endian length N), N bytes of JSON, then the tensors without gaps. The safetensors library is
not used because it accepts duplicate keys. Format: https://huggingface.co/docs/safetensors.
"""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from shadowft_core.errors import CheckpointError, QuantisedError
from shadowft_core.files.jsonfile import unique_keys
from shadowft_core.limits import HEADER_BYTES, NAME_CHARACTERS, RANK, TENSORS

_DIGITS = 20  # those of 2**64 - 1, the largest number of the format
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # they would break a message or a log into lines
FIRST_READ = 100_000  # bytes: most headers are shorter, so one request to a remote file is enough
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATS = ("F32", "BF16", "F16")  # these can be grafted; quantised and fp8 weights cannot be added to
UNREAD = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64")  # valid, but not read here
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a numpy dtype. Raises CheckpointError when there is none."""
    if dtype not in _NAMES:
        raise CheckpointError(f"{dtype} is not a safetensors type; expected one of {', '.join(DTYPES)}")
    return _NAMES[dtype]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a file: safetensors dtype name, shape, and the position of its bytes in `file`."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> tuple[bytes, dict[str, TensorInfo]]:
    """Read and check the header of a file.

    Returns its raw bytes, length prefix included, and the tensors in the order of their bytes.
    Raises CheckpointError on anything the format forbids, QuantisedError for a type in UNREAD, before any weight is
    used.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file; expected a safetensors file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return ranged_header(path, size, lambda start, length: os.pread(file.fileno(), length, start))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; expected a readable safetensors file") from None


def ranged_header(path: Path, size: int, read: Callable[[int, int], bytes]) -> tuple[bytes, dict[str, TensorInfo]]:
    """Like `read_header`, for a file of `size` bytes; `read(start, length)` returns a range of it."""
    first = read(0, min(size, FIRST_READ))
    if len(first) < 8:
        raise CheckpointError(f"{path}: {size} bytes, expected at least 8; download it again")
    length = struct.unpack("<Q", first[:8])[0]
    if length > HEADER_BYTES:
        raise CheckpointError(f"{path}: header of {length} bytes, the limit is {HEADER_BYTES}; not safetensors")
    if length > size - 8:
        raise CheckpointError(f"{path}: truncated: header of {length} bytes in a file of {size}; download it again")
    rest = 8 + length - len(first)
    raw = first + read(len(first), rest) if rest > 0 else first[: 8 + length]
    if len(raw) != 8 + length:
        raise CheckpointError(f"{path}: expected {8 + length} bytes of header, read {len(raw)}; download it again")
    tensors = parse_header(raw, path)
    expected = len(raw) + sum(info.nbytes for info in tensors.values())
    if size != expected:
        raise CheckpointError(f"{path}: {size} bytes, its header describes {expected}; download it again")
    return raw, tensors


def parse_header(raw: bytes, path: Path) -> dict[str, TensorInfo]:
    """Tensors of a raw header (length prefix included), in the order of their bytes; `path` is their file.

    Raises as `read_header`. Counts are checked before anything is parsed, and a shape before its product is computed.
    """
    _require_few(raw, path)
    try:
        entries = json.loads(raw[8:].decode("utf-8"), object_pairs_hook=_strict, parse_int=_natural)
        if raw[8:9] != b"{" or not isinstance(entries, dict):
            raise ValueError("it does not start with {")
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is not a map of strings")
        tensors = {name: _tensor(name, entry, path, len(raw)) for name, entry in entries.items()}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: malformed safetensors header: {error}; download it again") from None
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = len(raw)
    for name, info in tensors.items():
        if info.offset != end:
            raise CheckpointError(
                f"{path}: tensor {name!r:.200} starts at byte {info.offset}, the one before ends at {end}; "
                "tensors may not overlap or leave holes"
            )
        end += info.nbytes
    return tensors


def _require_few(raw: bytes, path: Path) -> None:
    """Raise CheckpointError for a header whose parsing would take long: it has more parts than its tensors can have.

    Text in names and metadata may have such signs too, so each limit leaves room for them.
    """
    objects = raw.count(b"{")
    for sign, limit in ((b"{", TENSORS + 2), (b"[", 2 * TENSORS), (b",", (RANK + 4) * objects + TENSORS)):
        if (found := raw.count(sign)) > limit:
            raise CheckpointError(
                f"{path}: malformed safetensors header: {found} times {sign.decode()!r} with {objects} entries, the "
                f"limit is {limit} (at most {TENSORS} tensors of {RANK} dimensions); split the file, or get it again"
            )


def build_header(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Header, length prefix included, for `{name: (dtype, shape)}`.

    Wider types come first, so that every tensor is aligned; otherwise the given order is kept.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -DTYPES[item[1][0]].itemsize):
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Raises ValueError for a duplicate key or a lone surrogate, which an escape can produce."""
    found = unique_keys(pairs)
    for text in (*found, *(value for value in found.values() if isinstance(value, str))):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{text!r:.200} is not valid Unicode") from None
    return found


def _natural(text: str) -> int:
    if text.startswith("-") or len(text) > _DIGITS:  # Python would take -0 for 0
        raise ValueError(f"expected natural numbers, found {text:.24}")
    return int(text)


def _tensor(name: str, entry: Any, path: Path, start: int) -> TensorInfo:
    if len(name) > NAME_CHARACTERS or _CONTROLS.search(name):
        raise ValueError(
            f"tensor name {name!r:.80} of {len(name)} characters; expected at most {NAME_CHARACTERS}, none of them a "
            "control character"
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"entry {name!r:.200} is not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(dtype, str) and dtype in UNREAD:
        raise QuantisedError(
            f"{path}: tensor {name!r:.200} is {dtype}, expected one of {', '.join(FLOATS)}; use the original weights"
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r:.200} has dtype {dtype!r:.200}, expected one of {', '.join(DTYPES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(
            f"tensor {name!r:.200} has shape {shape!r:.200} and offsets {offsets!r:.200}; expected natural numbers"
        )
    if len(shape) > RANK:
        raise ValueError(f"tensor {name!r:.200} has {len(shape)} dimensions, the limit is {RANK}")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(
            f"tensor {name!r:.200} has {offsets[1] - offsets[0]} bytes, its shape and dtype {dtype} require {nbytes}"
        )
    # A length of 0 would hide lengths that overflow.
    if math.prod(max(length, 1) for length in shape) * DTYPES[dtype].itemsize >= 2**63:
        raise ValueError(f"tensor {name!r:.200} has shape {shape!r:.200}, larger than any file")
    return TensorInfo(dtype, tuple(shape), path, start + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
