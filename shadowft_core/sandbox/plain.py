"""Plain values as bytes: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset and dict, these types
themselves, and Fraction, Decimal and range.

What a program returns crosses to its tests only in this form, so no code of its own (`__eq__`, `__hash__`, a subclass
of list) takes part in a comparison. A subclass of a plain type, and a scalar of numpy, are written as the plain type.
Any other object stays where it is and is written as a number (`Reference`).

A value is one tag byte and its content; lengths are 4 bytes, big-endian. `decode` accepts untrusted bytes: it raises
ValueError for whatever `encode` does not write, and makes nothing but plain values and references.
"""

import struct
from collections.abc import Callable
from typing import Any

TYPES = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, type(None))
COLLECTIONS: dict[bytes, type] = {b"l": list, b"t": tuple, b"e": set, b"z": frozenset}
CONSTANTS = {b"N": None, b"T": True, b"F": False}
DEEPEST = 200  # levels of nesting
LONGEST = 8 << 20  # bytes of one message


class Reference:
    """An object that stayed in the process of the program."""

    def __init__(self, number: int) -> None:
        self.number = number


def encode(value: object, refer: Callable[[object], int], longest: int = LONGEST) -> bytes:
    """The bytes of a value; `refer` gives the number of an object that is not plain.

    Raises ValueError for a value that is nested too deeply or too long, and what `refer` raises.
    """
    data = _encode(value, refer, 0)
    if len(data) > longest:
        raise ValueError(f"a value of {len(data)} bytes; at most {longest} are passed on")
    return data


def _encode(value: Any, refer: Callable[[object], int], depth: int) -> bytes:
    if depth > DEEPEST:
        raise ValueError(f"a value with more than {DEEPEST} levels of nesting")
    if (data := _encode_one(value)) is not None:
        return data
    if isinstance(value, dict):
        pairs = list(dict.items(value))
        parts = [_encode(part, refer, depth + 1) for pair in pairs for part in pair]
        return b"m" + _length(pairs) + b"".join(parts)
    for tag, kind in COLLECTIONS.items():
        if isinstance(value, kind):
            members = list(kind.__iter__(value))  # type: ignore[attr-defined]
            return tag + _length(members) + b"".join([_encode(part, refer, depth + 1) for part in members])
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return _encode(value.item(), refer, depth + 1)
    if made := _parts(value):
        return made[0] + _encode(made[1], refer, depth + 1)
    return b"r" + struct.pack(">I", refer(value))


def _parts(value: Any) -> tuple[bytes, tuple[Any, ...]] | None:
    """The tag of a value that is made of plain ones, and what it is made of; None for any other."""
    kind = f"{type(value).__module__}.{type(value).__name__}"
    if kind == "fractions.Fraction":
        return b"q", (value.numerator, value.denominator)
    if kind == "decimal.Decimal":
        return b"a", (str(value),)
    return (b"g", (value.start, value.stop, value.step)) if kind == "builtins.range" else None


def _made(tag: bytes, parts: Any) -> Any:
    """The value that `_parts` took apart. The modules are imported only where a program uses them."""
    match tag, parts:
        case b"q", (int(above), int(below)):
            from fractions import Fraction

            return Fraction(above, below)
        case b"a", (str(text),):
            from decimal import Decimal

            return Decimal(text)
        case b"g", (int(start), int(stop), int(step)):
            return range(start, stop, step)
    raise ValueError(f"not a plain value: {tag!r} of {type(parts).__name__}")


def _encode_one(value: Any) -> bytes | None:
    """The bytes of a value that has no parts; None for any other."""
    for number, kind in enumerate(TYPES):
        if value is kind:
            return b"y" + bytes([number])
    for tag, constant in CONSTANTS.items():
        if value is constant:
            return tag
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if isinstance(value, complex):
        return b"c" + struct.pack(">dd", complex.__add__(value, 0).real, complex.__add__(value, 0).imag)
    if isinstance(value, int):
        tag, data = b"i", int.to_bytes(value, int.bit_length(value) // 8 + 1, "big", signed=True)
    elif isinstance(value, str):
        tag, data = b"s", str.encode(value, "utf-8", "surrogatepass")
    elif isinstance(value, bytes | bytearray):
        tag, data = b"b", bytes(memoryview(value))
    else:
        return None
    return tag + _length(data) + data


def _length(data: bytes | list[Any]) -> bytes:
    return struct.pack(">I", len(data))


def decode(data: bytes, longest: int = LONGEST) -> Any:
    """The value of untrusted bytes. Raises ValueError if they are not the bytes of exactly one value."""
    if len(data) > longest:
        raise ValueError(f"{len(data)} bytes, at most {longest} are read")
    reader = _Reader(data)
    try:
        value = reader.value(0)
    except (ArithmeticError, IndexError, KeyError, struct.error, TypeError) as error:
        raise ValueError(f"not a plain value: {error!r}") from None
    if reader.at != len(data):
        raise ValueError(f"not a plain value: {len(data) - reader.at} bytes too many")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, length: int) -> bytes:
        part = self._data[self.at : self.at + length]
        if len(part) != length:
            raise ValueError("not a plain value: it is cut short")
        self.at += length
        return part

    def length(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"not a plain value: more than {DEEPEST} levels of nesting")
        tag = self.take(1)
        if tag in CONSTANTS:
            return CONSTANTS[tag]
        if tag == b"m":
            pairs = [(self.value(depth + 1), self.value(depth + 1)) for _ in range(self.length())]
            return dict(pairs)
        if tag in COLLECTIONS:
            return COLLECTIONS[tag]([self.value(depth + 1) for _ in range(self.length())])
        if tag in (b"q", b"a", b"g"):
            return _made(tag, self.value(depth + 1))
        return ATOMS[tag](self)


ATOMS: dict[bytes, Callable[[_Reader], Any]] = {
    b"i": lambda reader: int.from_bytes(reader.take(reader.length()), "big", signed=True),
    b"d": lambda reader: struct.unpack(">d", reader.take(8))[0],
    b"c": lambda reader: complex(*struct.unpack(">dd", reader.take(16))),
    b"s": lambda reader: reader.take(reader.length()).decode("utf-8", "surrogatepass"),
    b"b": lambda reader: reader.take(reader.length()),
    b"r": lambda reader: Reference(reader.length()),
    b"y": lambda reader: TYPES[reader.take(1)[0]],
}
