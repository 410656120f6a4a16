"""Messages between a program and its tests: 4 bytes of length, then a plain value."""

import os
import struct
from collections.abc import Callable
from typing import Any

from shadowft_core.sandbox import plain


def read_message(descriptor: int, longest: int = plain.LONGEST) -> Any:
    """The next message of a pipe; blocks. Raises EOFError at its end."""
    data = _read(descriptor, struct.unpack(">I", _read(descriptor, 4))[0])
    return plain.decode(data, longest)


def _read(descriptor: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = os.read(descriptor, min(length - len(data), 1 << 16))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def message(value: object, refer: Callable[[object], int], longest: int = plain.LONGEST) -> bytes:
    """A value, as `read_message` reads it."""
    data = plain.encode(value, refer, longest)
    return struct.pack(">I", len(data)) + data


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
