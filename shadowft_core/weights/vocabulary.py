"""The token of every id, hashed to one number. Equal numbers match the rows of two embeddings."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.errors import CheckpointError
from shadowft_core.files import read_json_object, reading
from shadowft_core.limits import TOKENIZER_BYTES, TOKENS
from shadowft_core.weights.settings import TokenizerConfig, read_settings

NO_TOKEN = 0


def read_vocabulary(folder: Path) -> tuple[dict[int, str], set[int]] | None:
    """Token by id, and the ids of added tokens, from a folder's tokenizer.json; None without that file.

    Raises CheckpointError for a vocabulary of an unknown form, or with an id that no row can have.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    read_settings(folder, "tokenizer_config.json", TokenizerConfig)  # refuses one that names another file
    tokenizer: dict[str, Any] = read_json_object(file, TOKENIZER_BYTES)
    with reading(f"{file}: unknown form of vocabulary", "save the tokenizer again"):
        vocab = tokenizer["model"]["vocab"]
        if isinstance(vocab, dict):
            words = {number: word for word, number in vocab.items()}
        else:
            words = {number: _list(entry)[0] for number, entry in enumerate(_list(vocab))}
        added = {token["id"]: token["content"] for token in _list(tokenizer.get("added_tokens") or [])}
    words |= added
    for number, word in words.items():
        if type(number) is not int or not 0 <= number < TOKENS or not isinstance(word, str):
            raise CheckpointError(
                f"{file}: token {word!r:.80} has id {number!r:.80}; expected text and an integer from 0 to "
                f"{TOKENS - 1}; save the tokenizer again"
            )
    return words, set(added)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return value


def token_marks(folder: Path) -> np.ndarray | None:
    """uint64 by token id: the first eight bytes (little-endian) of the SHA-256 of the token's UTF-8 text.

    `NO_TOKEN` where no token has that id. None when the folder has no tokenizer.json.
    """
    found = read_vocabulary(folder)
    return None if found is None else marks_of(found[0])


def marks_of(words: Mapping[int, str]) -> np.ndarray:
    """`token_marks` of a vocabulary given as token by id."""
    marks = np.full(max(words, default=-1) + 1, NO_TOKEN, np.uint64)
    for number, word in words.items():
        marks[number] = int.from_bytes(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:8], "little")
    return marks
