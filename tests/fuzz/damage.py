"""What hypothesis does to sound files: strategies from the bytes of a file to the bytes of a damaged one.

JSON stays canonical (sorted keys, no spaces) where the damage allows it, so that readers get past that check.
"""

import copy
import json
import struct
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.odd import BROKEN, TEXTS, VALUES, YAML_LINES, YAML_VALUES, Raw

Damage = Callable[[bytes], st.SearchStrategy[bytes]]


class Place(StrEnum):
    """What stands where the file was."""

    MISSING = "missing"
    EMPTY = "empty"
    FOLDER = "folder"
    PIPE = "pipe"
    SOCKET = "socket"
    LOOP = "loop"  # a link to itself
    NOWHERE = "nowhere"  # a link to nothing
    OUTSIDE = "outside"  # a link to a text file outside the folder
    ENDLESS = "endless"  # a link to /dev/zero


def json_damage(raw: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file: values and keys of its tree, rarely its text."""
    return _tree_damage(_pairs(json.loads(raw)), VALUES)


def yaml_damage(raw: bytes) -> st.SearchStrategy[bytes]:
    """A YAML file: its tree, written in flow style, or its lines."""
    tree = _pairs(json.loads(json.dumps(yaml.safe_load(raw), default=str)))
    return st.one_of(_tree_damage(tree, [*VALUES, *YAML_VALUES, *YAML_VALUES]), _line_damage(raw, YAML_LINES))


def lines_damage(raw: bytes) -> st.SearchStrategy[bytes]:
    """A file with a JSON value on each line: one of them, or the order and number of lines."""
    rows = raw.splitlines()

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        at = draw(st.integers(0, len(rows) - 1))
        return b"\n".join([*rows[:at], draw(json_damage(rows[at])), *rows[at + 1 :]]) + draw(
            st.sampled_from([b"\n", b""])
        )

    return st.one_of(damaged(), damaged(), _line_damage(raw, ["", "{}", "[]", "null", "x", "\0"]))


def bytes_damage(raw: bytes) -> st.SearchStrategy[bytes]:
    """Any file: bytes changed, left out, doubled, inserted; cut off or extended."""

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        data = bytearray(raw)
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, len(data)))
            size = draw(st.sampled_from([1, 1, 2, 8, 100]))
            piece = bytes(data[start : start + size])
            what = draw(
                st.sampled_from(["flip", "flip", "set", "cut", "extend", "zero", "leave out", "double", "insert"])
            )
            if what == "flip" and piece:
                data[start] ^= 1 << draw(st.integers(0, 7))
            elif what == "set" and piece:
                data[start] = draw(st.sampled_from([0, 9, 10, 34, 92, 123, 0x80, 0xC0, 0xED, 0xFF]))
            elif what == "cut":
                del data[start:]
            elif what == "extend":
                data += draw(st.sampled_from([b"\0", b"\n", b"x", b"\0" * 4096, raw]))
            elif what == "zero":
                data[start : start + size] = bytes(len(piece))
            elif what == "leave out":
                del data[start : start + size]
            elif what == "double":
                data[start:start] = piece * 3
            else:
                data[start:start] = draw(
                    st.sampled_from([b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\0", b"}{", b"\x1b["])
                )
        return bytes(data)

    return damaged()


def safetensors_damage(raw: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file: its header as JSON, the length that it claims, or its bytes."""
    (length,) = struct.unpack("<Q", raw[:8])

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        header = draw(json_damage(raw[8 : 8 + length].rstrip()))
        header += b" " * (-len(header) % 8)
        claimed = len(header) + draw(st.sampled_from([0] * 12 + [-9, -1, 1, 8, 2**31, 2**62]))
        return struct.pack("<Q", max(0, claimed)) + header + raw[8 + length :]

    return st.one_of(damaged(), damaged(), damaged(), bytes_damage(raw))


def whole_damage(raw: bytes) -> st.SearchStrategy[bytes]:
    """A small text file: replaced by a text, or its bytes."""
    return st.one_of(st.sampled_from([text.encode(errors="surrogatepass") for text in TEXTS]), bytes_damage(raw))


def file_damage() -> st.SearchStrategy[Place]:
    """Something else in place of the file."""
    return st.sampled_from(Place)


class _Pairs(list[Any]):
    """An object of JSON: [key, value] pairs in order, so that a key can stand twice."""


def _pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return _Pairs([key, _pairs(inner)] for key, inner in value.items())
    return [_pairs(inner) for inner in value] if isinstance(value, list) else value


def _written(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, _Pairs):
        members = sorted(value, key=lambda pair: pair[0])
        return "{" + ",".join(f"{_written(key)}:{_written(inner)}" for key, inner in members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _tree_damage(sound: Any, values: list[Any]) -> st.SearchStrategy[bytes]:
    odd = st.sampled_from([values] * 4 + [TEXTS] * 3 + [BROKEN]).flatmap(st.sampled_from).map(_pairs)

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        tree = copy.deepcopy(sound)
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            tree = _change(draw, tree, tree, odd)
        raw = _written(tree).encode(errors="surrogatepass")
        return draw(bytes_damage(raw)) if draw(st.integers(0, 15)) == 0 else raw

    return damaged()


def _change(draw: st.DrawFn, node: Any, root: Any, odd: st.SearchStrategy[Any]) -> Any:
    """The tree with one change at `node` or below."""
    inner = isinstance(node, list) and len(node) > 0
    if inner and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(node) - 1))
        what = draw(st.sampled_from(["inside"] * 5 + ["delete", "twice", "insert", "rename"]))
        pair = isinstance(node, _Pairs)
        if what == "delete":
            del node[at]
        elif what == "twice":
            node.insert(at, copy.deepcopy(node[at]))
            if pair and draw(st.booleans()):
                node[at][1] = draw(odd)
        elif what == "insert":
            node.insert(at, [draw(st.sampled_from(TEXTS)), draw(odd)] if pair else draw(odd))
        elif what == "rename" and pair:
            node[at][0] = draw(st.sampled_from([*TEXTS, *(key for key, _ in node)]))
        elif pair:
            node[at][1] = _change(draw, node[at][1], root, odd)
        else:
            node[at] = _change(draw, node[at], root, odd)
        return node
    what = draw(st.sampled_from(["odd", "odd", "odd", "near", "near", "moved", "wrapped"]))
    if what == "near":
        return _near(draw, node)
    if what == "moved":
        return copy.deepcopy(_any_node(draw, root))
    return [node] if what == "wrapped" else draw(odd)


def _near(draw: st.DrawFn, value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return draw(
            st.sampled_from(
                [value + 1, value - 1, -value, value * 2, float(value), value + 2**32, value + 2**63, str(value)]
            )
        )
    if isinstance(value, str) and not isinstance(value, Raw):
        changed = [
            value[:-1],
            value[1:],
            value + "x",
            value + "\n",
            value + "\0",
            value.upper(),
            value * 2,
            f"../{value}",
            f"/{value}",
        ]
        return draw(st.sampled_from(changed))
    if isinstance(value, list):
        many = 3_000 if len(_written(value[:1])) < 60 else 2
        return type(value)(
            draw(st.sampled_from([[], value[:1], value[::-1], value[1:], value + value, value[:1] * many]))
        )
    return 0


def _any_node(draw: st.DrawFn, node: Any) -> Any:
    while isinstance(node, list) and node and draw(st.integers(0, 3)):
        chosen = node[draw(st.integers(0, len(node) - 1))]
        node = chosen[1] if isinstance(node, _Pairs) else chosen
    return node


def _line_damage(raw: bytes, odd: list[str]) -> st.SearchStrategy[bytes]:
    rows = raw.split(b"\n")
    further = [text.encode(errors="surrogatepass") for text in odd]

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        found = list(rows)
        at, other = (draw(st.integers(0, len(rows) - 1)) for _ in range(2))
        what = draw(st.sampled_from(["insert", "insert", "replace", "swap", "double", "delete", "indent"]))
        if what == "insert":
            found.insert(at, draw(st.sampled_from(further)))
        elif what == "replace":
            found[at] = draw(st.sampled_from(further))
        elif what == "swap":
            found[at], found[other] = found[other], found[at]
        elif what == "double":
            found.insert(other, found[at])
        elif what == "delete":
            del found[at]
        else:
            found[at] = b" " + found[at]
        return b"\n".join(found)

    return damaged()
