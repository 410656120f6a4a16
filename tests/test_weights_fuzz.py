"""Our header reader against the safetensors library, on headers that hypothesis damages.

Ours may refuse more but never less, and never reads outside the file.
"""

import json
import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shadowft_core.errors import CheckpointError
from shadowft_core.weights.header import DTYPES, UNREAD, ranged_header

SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
NAMES = ["a", "b.weight", "", "é", "a b", "\u202e", "__metadata", "x" * 300]
ODD_NAMES = ["a\0b", "a\nb", "\u2028", "x" * 5000, "__metadata__", "\ud800", "dtype"]
NUMBERS = [-1, 0, 1, 2, 7, 2**31, 2**32 + 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 10**400]
MINUS_0 = "<-0>"  # represents the number -0, which the json module cannot write
ODD = [
    *NUMBERS,
    MINUS_0,
    0.0,
    1.0,
    1.5,
    1e400,
    -0.0,
    True,
    False,
    None,
    "",
    "1",
    [],
    [1],
    {},
    {"a": 1},
    "F32",
    float("nan"),
]


@dataclass
class File:
    """A header as JSON text with its members in order, so that a key may appear twice, and the bytes after it."""

    members: list[tuple[str, Any]]
    data: bytes

    def header(self) -> bytes:
        text = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in self.members)
        return ("{" + text.replace(json.dumps(MINUS_0), "-0") + "}").encode()


@st.composite
def files(draw: st.DrawFn) -> File:
    """A valid file of up to four tensors."""
    members: list[tuple[str, Any]] = []
    if draw(st.booleans()):
        members.append(("__metadata__", draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))))
    end = 0
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        start, end = end, end + int(np.prod(shape, dtype=int)) * SIZES[dtype]
        members.append((name, {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}))
    return File(draw(st.permutations(members)), draw(st.binary(min_size=end, max_size=end)))


def _damage_a_member(draw: st.DrawFn, file: File) -> None:
    if draw(st.integers(0, 3)) == 0:  # an empty tensor fits anywhere, whatever its other lengths
        others = draw(st.lists(st.sampled_from([1, 2**31, 2**33, 2**63 - 1, MINUS_0]), max_size=3))
        shape = draw(st.permutations([0, *others]))
        file.members.append(("empty", {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}))
        return
    if not file.members:
        file.members.append(("a", draw(st.sampled_from(ODD))))
        return
    at = draw(st.integers(0, len(file.members) - 1))
    key, value = file.members[at]
    what = draw(
        st.sampled_from(["whole", "twice", "name", "field", "field", "field", "item", "shift", "empty", "empty"])
    )
    if what == "whole":
        value = draw(st.sampled_from(ODD))
    elif what == "twice":
        file.members.insert(draw(st.integers(0, len(file.members))), (key, value))
    elif what == "name":
        key = draw(st.sampled_from([*NAMES, *ODD_NAMES]))
    elif isinstance(value, dict) and "dtype" in value:
        value = {field: list(inner) if isinstance(inner, list) else inner for field, inner in value.items()}
        if what == "field":
            field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
            if draw(st.booleans()) and field in value:
                del value[field]
            elif field == "dtype":
                value[field] = draw(st.sampled_from([*sorted(SIZES), *UNREAD, "f32", "F128", None, 1, ["F32"]]))
            else:
                value[field] = draw(st.one_of(st.sampled_from(ODD), st.lists(st.sampled_from(ODD), max_size=3)))
        elif what == "item":
            field = draw(st.sampled_from(["shape", "data_offsets"]))
            if isinstance(numbers := value.get(field), list):
                numbers[draw(st.integers(0, 2)) :] = draw(st.lists(st.sampled_from(ODD), max_size=2))
        else:
            by = draw(st.sampled_from([-8, -1, 1, 8, 2**32, 2**63]))
            offsets = value.get("data_offsets")
            value["data_offsets"] = (
                [n + by if isinstance(n, int) else n for n in offsets] if isinstance(offsets, list) else by
            )
    elif isinstance(value, dict):
        value = {draw(st.sampled_from(["format", "\udfff"])): draw(st.sampled_from([*ODD, "pt", "\ud800"]))}
    file.members[at] = key, value


def _damage_bytes(draw: st.DrawFn, header: bytes, data: bytes) -> tuple[bytes, bytes, int]:
    """Header, data and the length that the file claims for its header."""
    what = draw(st.sampled_from(["none", "none", "none", "none", "pad", "byte", "length", "data", "insert", "deep"]))
    claimed = None
    if what == "pad":
        before, behind = (
            draw(st.sampled_from([b"", b" ", b"\n\t ", b"\0", b"\xef\xbb\xbf", b"{}", b","])) for _ in "ab"
        )
        header = before + header + behind
    elif what == "byte":
        at = draw(st.integers(0, len(header) - 1))
        header = (
            header[:at]
            + bytes([draw(st.sampled_from([0, 9, 34, 44, 92, 123, 0x80, 0xC0, 0xED, 0xFF]))])
            + header[at + 1 :]
        )
    elif what == "insert":
        at = draw(st.integers(0, len(header)))
        odd = [b"\xed\xa0\x80", b"\xc0\x80", b"\\ud800", b"\\u0000", b"//", b"-", b"0", b"1e5", b"NaN", b'"', b"}{"]
        header = header[:at] + draw(st.sampled_from(odd)) + header[at:]
    elif what == "deep":
        header = header[:-1] + b'"deep":' + b"[" * draw(st.sampled_from([50, 200, 20_000]))
    elif what == "length":
        claimed = max(0, len(header) + draw(st.sampled_from([-9, -1, 1, 8, 2**31, 2**62])))
    elif what == "data":
        data = draw(st.sampled_from([data[:-1], data + b"\0", data * 2, b""]))
    return header, data, len(header) if claimed is None else claimed


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    file = draw(files())
    for _ in range(draw(st.integers(0, 2))):
        _damage_a_member(draw, file)
    header, data, claimed = _damage_bytes(draw, file.header(), file.data)
    return struct.pack("<Q", claimed) + header + data


def theirs(raw: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """What the library reads; None when it refuses."""
    try:
        found = safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return None
    return {name: (about["dtype"], tuple(about["shape"]), bytes(about["data"])) for name, about in found}


def ours(raw: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | str:
    """What our reader reads, or the message of its refusal. Every range it requests must be in the file."""

    def read(start: int, length: int) -> bytes:
        assert 0 <= start <= start + length <= len(raw), f"bytes {start} to {start + length} of {len(raw)}"
        return raw[start : start + length]

    try:
        header, tensors = ranged_header(Path("m/model.safetensors"), len(raw), read)
    except CheckpointError as error:
        return str(error)
    found = {}
    for name, info in tensors.items():
        assert len(header) <= info.offset <= info.offset + info.nbytes <= len(raw), f"{name} lies outside"
        found[name] = (info.dtype, info.shape, raw[info.offset : info.offset + info.nbytes])
    return found


def test_ours_refuses_whatever_the_library_refuses() -> None:
    seen: Counter[tuple[bool, bool]] = Counter()

    @settings(
        max_examples=1200,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged())
    def compare(raw: bytes) -> None:
        mine, library = ours(raw), theirs(raw)
        seen[isinstance(mine, dict), library is not None] += 1
        if isinstance(mine, dict):
            assert mine == library, "None: the library refuses it"
        else:
            assert mine.startswith("m/model.safetensors: ")
            assert not set(mine) & {"\n", "\0"}
            assert len(mine) < 1000

    compare()
    assert seen[True, True] > 250, "sound files were among them"
    assert seen[False, False] > 500


ENTRY = '{"a":{"dtype":"U8","shape":%s,"data_offsets":[0,0]}}'


@pytest.mark.parametrize(
    ("header", "message", "library"),
    [
        ('{"__metadata__":{"a":"\\ud800"}}', r"'\\ud800' is not valid Unicode", "refuses"),
        ('{"__metadata__":{"\\udfff":"a"}}', r"'\\udfff' is not valid Unicode", "refuses"),
        (ENTRY % "[-0]", "expected natural numbers, found -0", "refuses"),
        (ENTRY % "[4294967296,4294967296,0]", "larger than any file", "refuses"),
        (ENTRY % "[0,4294967296,4294967296]", "larger than any file", "reads"),
        (ENTRY % "[0]" + "\0", "Extra data", "refuses"),
        (ENTRY % f"[{'0,' * 16}0]", "17 dimensions, the limit is 16", "reads"),
        (ENTRY.replace("a", "a\\n", 1) % "[0]", "control character", "reads"),
        (" " + ENTRY % "[0]", "it does not start with {", "reads"),
        *(
            (ENTRY.replace("U8", kind) % "[0]", f"is {kind}, expected one of F32, BF16, F16; use the", "reads")
            for kind in UNREAD
        ),
    ],
)
def test_known_differences_between_the_two_readers(header: str, message: str, library: str) -> None:
    raw = struct.pack("<Q", len(header)) + header.encode()
    assert (theirs(raw) is not None) == (library == "reads")
    found = ours(raw)
    assert isinstance(found, str)
    assert re.search(message, found)
