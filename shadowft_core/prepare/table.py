"""The usable rows between reading and splitting: on disk in Arrow batches, with a few numbers a row in memory."""

import hashlib
import re
import struct
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
import pyarrow as pa

from shadowft_core.prepare.shapes import Conversation, Message

MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("reasoning_content", pa.string()),
        ("tool_calls", pa.string()),
        ("tool_call_id", pa.string()),
        ("name", pa.string()),
        ("weight", pa.int8()),
        ("image_places", pa.list_(pa.int32())),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("tools", pa.string()),
        ("prompt", pa.string()),
        ("reply", pa.string()),
        ("source", pa.string()),
        ("images", pa.list_(pa.string())),
    ]
)
SPLITS = ("train", "valid", "dev", "test")
BATCH, BATCH_LETTERS = 2000, 16 << 20  # rows held as objects: their number and their length
_ASCII_WORDS = "".join(sign.lower() if re.match(r"\w", sign) else " " for sign in map(chr, range(128)))


def fold(text: str) -> str:
    """Text as it is compared: NFKC, no case, single blanks."""
    if not text.isascii():  # ASCII is in NFKC
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def words_of(text: str) -> list[str]:
    """The words of a text, case folded: its sequences of letters, digits and underscores."""
    if text.isascii():
        return text.translate(_ASCII_WORDS).split()
    return re.findall(r"\w+", text.casefold())


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


class Table:
    """Rows in the order in which they were read.

    `close` sets three arrays of uint64. `ids` (n, 2) has the first 16 bytes of each id. `prompts` (n,) has a hash of
    each folded first question; for a row with images it is a hash of their names. `conversation_ids` (n,) has a hash of
    each conversation id, or 0 where a row has none.
    """

    def __init__(self, file: Path, seen: Callable[[list[Conversation]], None]) -> None:
        """`seen` gets the rows in batches."""
        self._file, self._seen = file, seen
        self._writer = pa.ipc.new_file(file, SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._batch: list[Conversation] = []
        self._held = 0
        self._ids, self._numbers = bytearray(), bytearray()
        self.ids: np.ndarray = np.empty((0, 2), np.uint64)
        self.prompts: np.ndarray = np.empty(0, np.uint64)
        self.conversation_ids: np.ndarray = np.empty(0, np.uint64)

    def add(self, conversation: Conversation, source: str) -> None:
        """Append a row."""
        digest = id_of(conversation)
        asked = first_question(conversation.messages)
        if conversation.images:
            asked = f"images {' '.join(sorted(set(conversation.images)))}"  # many rows ask the same of different images
        self._ids += digest[:16]
        tie = _number(f"conversation {conversation.conversation_id}") if conversation.conversation_id else 0
        self._numbers += struct.pack("=QQ", _number(fold(asked)), tie)
        self._rows.append(
            {
                "id": digest.hex(),
                "messages": conversation.messages,
                "tools": conversation.tools,
                "prompt": prompt_of(conversation.messages),
                "reply": next(one["content"] for one in conversation.messages if one["role"] == "assistant"),
                "source": source,
                "images": conversation.images or None,
            }
        )
        self._batch.append(conversation)
        self._held += sum(len(one["content"]) for one in conversation.messages)
        if len(self._rows) == BATCH or self._held > BATCH_LETTERS:
            self._flush()

    def close(self) -> None:
        """No more rows come."""
        self._flush()
        self._writer.close()
        self.ids = id_numbers(self._ids)
        numbers = np.frombuffer(bytes(self._numbers), np.uint64).reshape(-1, 2)
        self.prompts, self.conversation_ids = numbers[:, 0], numbers[:, 1]
        self._ids.clear()
        self._numbers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, columns: list[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The number of its first row, and a batch."""
        fields = None if columns is None else [SCHEMA.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        start = 0
        with pa.OSFile(str(self._file)) as source, pa.ipc.open_file(source, options=options) as file:
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                yield start, batch
                start += batch.num_rows

    def values(self, column: str, rows: np.ndarray) -> dict[int, Any]:
        """A column of some rows, by row; `rows` is sorted."""
        found: dict[int, Any] = {}
        for start, batch in self.batches([column]):
            low, high = np.searchsorted(rows, (start, start + batch.num_rows))
            here = rows[low:high]
            if len(here):
                found |= dict(zip(here.tolist(), batch.column(0).take(pa.array(here - start)).to_pylist(), strict=True))
        return found

    def _flush(self) -> None:
        if self._rows:
            self._seen(self._batch)
            columns = [pa.array([row[field.name] for row in self._rows], field.type) for field in SCHEMA]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
            self._rows, self._batch, self._held = [], [], 0


def id_of(conversation: Conversation) -> bytes:
    """SHA-256 over the canonical JSON of the messages, and of the tools and images where there are any; 32 bytes."""
    more = {name: value for name, value in (("tools", conversation.tools), ("images", conversation.images)) if value}
    kept = {"messages": conversation.messages, **more} if more else conversation.messages
    return hashlib.sha256(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)).digest()  # the bytes of canonical_json


def id_numbers(ids: bytes | bytearray) -> np.ndarray:
    """The first 16 bytes of each id, one behind the other, as uint64 (n, 2)."""
    return np.frombuffer(bytes(ids), ">u8").astype(np.uint64).reshape(-1, 2)


def first_question(messages: list[Message]) -> str:
    return str(next(one["content"] for one in messages if one["role"] == "user"))


def prompt_of(messages: list[Message]) -> str:
    """The first question, behind the system text where there is one."""
    first = [one["content"] for one in messages[:2] if one["role"] != "assistant"]
    return "\n\n".join(first)


def first_of_equals(ids: np.ndarray) -> np.ndarray:
    """Which rows are the first with their id; bool (n,)."""
    order = np.lexsort((np.arange(len(ids)), ids[:, 1], ids[:, 0]))
    ranked = ids[order]
    kept = np.zeros(len(ids), bool)
    kept[order] = np.r_[True, (ranked[1:] != ranked[:-1]).any(axis=1)] if len(ids) else []
    return kept
