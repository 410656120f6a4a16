"""Read and write JSON files.

The reader refuses what other readers silently accept or fail on: duplicate keys, absurd nesting and numbers, a pipe or
device in place of a file, and a file larger than its limit.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from shadowft_core.errors import CheckpointError, ShadowError
from shadowft_core.files.atomic import write_atomically
from shadowft_core.files.digests import canonical_json
from shadowft_core.files.regular import open_regular
from shadowft_core.limits import DEPTH, DIGITS, JSON_BYTES

Error = type[ShadowError]


def read_regular(path: Path, largest: int = JSON_BYTES, error: Error = CheckpointError) -> bytes:
    """The bytes of a regular file, or of one that a link leads to.

    Raises `error` when it is missing, a folder, pipe, socket or device, larger than `largest` bytes, or not readable.
    """
    handle = open_regular(path, error)
    about = os.fstat(handle)
    with open(handle, "rb") as file:
        try:
            data = file.read(min(about.st_size, largest) + 1)  # read(n) allocates n bytes at once
            if len(data) > about.st_size:  # the file grew, or is one of the kernel's, which have no size
                data += file.read(largest + 1 - len(data))
        except OSError as problem:
            raise error(f"{path}: {problem.strerror}; expected a readable file") from None
    if len(data) > largest:
        raise error(f"{path}: {max(about.st_size, len(data))} bytes, the limit is {largest}; replace the file")
    return data


def parse_json(raw: bytes, where: object, error: Error = CheckpointError, *, finite: bool = False) -> Any:
    """The JSON value in `raw`; `where` names its origin in errors.

    Raises `error` for invalid JSON, invalid UTF-8 (also in escapes), a duplicate key in an object, more than `DEPTH`
    levels, a whole number of more than `DIGITS` digits and, with `finite`, NaN, infinity and numbers that float64
    cannot hold. Without `finite` these are accepted, since some models' configs have `Infinity`.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_int=_integer,
            parse_float=_finite if finite else None,
            parse_constant=_refused if finite else None,
        )
        if nested(value, DEPTH):
            raise ValueError(f"more than {DEPTH} levels of nesting")
        if b"\\ud" in raw or b"\\uD" in raw:  # a lone surrogate is not text, and cannot be written
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as problem:
        said = f"more than {DEPTH} levels of nesting" if isinstance(problem, RecursionError) else problem
        raise error(f"{where}: not readable as JSON: {said}; correct or replace the file") from None
    return value


def nested(value: Any, levels: int) -> bool:
    """Whether lists and mappings are nested deeper than `levels`."""
    layer = [value]
    for _ in range(levels):
        layer = [one for held in layer for one in _held(held)]
        if not layer:
            return False
    return any(isinstance(one, dict | list) for one in layer)


def _held(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_json_object(
    path: Path, largest: int = JSON_BYTES, error: Error = CheckpointError, *, finite: bool = False
) -> dict[str, Any]:
    """Read a JSON object as `read_regular` and `parse_json` do. Raises `error` also for any other JSON value."""
    value = parse_json(read_regular(path, largest, error), path, error, finite=finite)
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}; correct or replace the file")
    return value


def write_json_atomically(path: Path, obj: Any) -> None:
    """Write `canonical_json(obj)` atomically, without a final newline."""
    write_atomically(path, canonical_json(obj))


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The JSON object with these pairs. Raises ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {again!r:.80}")
    return found


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise ValueError(f"a whole number of {len(text.lstrip('-'))} digits, the limit is {DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.40} is more than float64 can hold")
    return value


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
