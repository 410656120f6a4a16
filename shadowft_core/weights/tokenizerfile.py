"""What tokenizer.json asks the tokenizers library to do, checked before the library reads it.

The library believes the file: it aborts the process, replaces a letter by gigabytes, or draws tokens at random.
"""

import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shadowft_core.errors import CheckpointError
from shadowft_core.files import read_json_object, reading
from shadowft_core.limits import PATTERN_CHARACTERS, TOKENIZER_BYTES, TOKENIZER_GROWTH, TOKENIZER_PARTS

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_tokenizer(folder: Path) -> None:
    """Raise CheckpointError for a tokenizer.json whose tokens are random or that grows what it reads without bound."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    content = read_json_object(path, TOKENIZER_BYTES)
    with reading(f"{path}: unknown form", "save the tokenizer again"):
        if dropout := (content.get("model") or {}).get("dropout"):
            raise CheckpointError(
                f"{path}: model.dropout is {dropout!r:.80}, so the same text has other tokens each time; expected null"
            )
        for step in _STEPS:
            parts = list(_parts(content.get(step)))
            growth = math.prod(max(1.0, _growth(part)) for part in parts)
            pieces = sum(len(part.get(name) or ()) for part in parts for name in ("single", "pair"))
            for found, limit, what in (
                (len(parts) + pieces, TOKENIZER_PARTS, "parts"),
                (growth, TOKENIZER_GROWTH, "characters written for one"),
                (max(map(_pattern, parts), default=0), PATTERN_CHARACTERS, "characters of a pattern"),
            ):
                if found > limit:
                    raise CheckpointError(
                        f"{path}: {step} has {found:.6g} {what}, the limit is {limit}; use another tokenizer"
                    )


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects with a type, however deep."""
    if isinstance(value, dict):
        if "type" in value:
            yield value
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)


def _pattern(part: dict[str, Any]) -> int:
    pattern = part.get("pattern")
    return max(map(len, pattern.values())) if isinstance(pattern, dict) and pattern else 0


def _growth(part: dict[str, Any]) -> float:
    """Characters that a part may write for one that it reads."""
    if part["type"] == "Replace":
        literal = len(part["pattern"].get("String", ""))
        return (
            len(part["content"]) / literal if literal else len(part["content"]) + 1
        )  # an expression may match nothing
    if part["type"] == "Prepend":
        return len(part["prepend"]) + 1
    return _longest(part["precompiled_charsmap"]) if part["type"] == "Precompiled" else 1


def _longest(charsmap: str) -> int:
    """Characters of the longest replacement of a map of SentencePiece: a trie after its size, then texts that end in 0.

    Raises ValueError for a trie of another size, which the library would reserve all the same.
    """
    raw = base64.b64decode(charsmap, validate=True)
    size = int.from_bytes(raw[:4], "little")
    if not 0 < size <= len(raw) - 4 or size % 4:
        raise ValueError(f"precompiled_charsmap has a trie of {size} bytes in {len(raw)}")
    return max(map(len, raw[4 + size :].decode("utf-8").split("\0")))
