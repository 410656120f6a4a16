"""Keeps the usable rows between reading and splitting: on disk in Arrow batches, in memory a few numbers per row."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
import pyarrow as pa

from shadowft_core.prepare.shapes import Conversation
from shadowft_core.prepare.turns import Message

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
        ("rejected", pa.list_(MESSAGE)),
    ]
)
SPLITS = ("train", "valid", "dev", "test")
BATCH, BATCH_LETTERS = 2000, 16 << 20  # rows, and characters of their messages, held as objects
_ASCII_WORDS = "".join(sign.lower() if re.match(r"\w", sign) else " " for sign in map(chr, range(128))).encode()
_ASCII_WORDS += bytes(range(128, 256))  # bytes.translate takes a table of 256, and is faster than that of str


def fold(text: str) -> str:
    """A text in the form in which texts are compared: NFKC, case folded, single blanks."""
    if not text.isascii():  # ASCII is in NFKC
        text = unicodedata.normalize("NFKC", text)
    elif text.isprintable() and "  " not in text:  # of ASCII the blank is the only printable white space
        return text.casefold().strip()
    return " ".join(text.casefold().split())


def words_of(text: str) -> list[str]:
    """The words of a text, case folded: runs of letters, digits and underscores."""
    if text.isascii():
        return text.encode().translate(_ASCII_WORDS).decode().split()
    return re.findall(r"\w+", text.casefold())


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]


class Table:
    """Rows in the order in which they were read.

    `close` sets three arrays of uint64. `ids` (n, 2) has the first 16 bytes of each id. `prompts` (n,) has a hash of
    each folded first question; for a row with images it is a hash of their names. `conversation_ids` (n,) has a hash of
    each conversation id, or 0 where a row has none.
    """

    def __init__(self, file: Path, collect: Callable[[list[Conversation], list[str]], None]) -> None:
        """`collect` is called with each batch of rows, and their folded first questions."""
        self._file, self._collect = file, collect
        self._writer = pa.ipc.new_file(file, SCHEMA)
        self._batch: list[Conversation] = []
        self._sources: list[str] = []
        self._held = 0
        self._ids, self._prompts, self._conversations = bytearray(), bytearray(), bytearray()
        self.ids: np.ndarray = np.empty((0, 2), np.uint64)
        self.prompts: np.ndarray = np.empty(0, np.uint64)
        self.conversation_ids: np.ndarray = np.empty(0, np.uint64)

    def add(self, conversation: Conversation, source: str) -> None:
        """Append a row."""
        self._batch.append(conversation)
        self._sources.append(source)
        self._held += sum([len(one["content"]) for one in (*conversation.messages, *conversation.rejected)])
        if len(self._batch) == BATCH or self._held > BATCH_LETTERS:
            self._flush()

    def close(self) -> None:
        """Write the last batch, and set the arrays."""
        self._flush()
        self._writer.close()
        self.ids = id_numbers(self._ids)
        self.prompts = np.frombuffer(self._prompts, ">u8").astype(np.uint64)
        self.conversation_ids = np.frombuffer(self._conversations, ">u8").astype(np.uint64)
        for one in (self._ids, self._prompts, self._conversations):
            one.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, columns: list[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Each batch, after the number of its first row."""
        fields = None if columns is None else [SCHEMA.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        start = 0
        with pa.OSFile(str(self._file)) as source, pa.ipc.open_file(source, options=options) as file:
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                yield start, batch
                start += batch.num_rows

    def texts(self, rows: np.ndarray) -> dict[int, str]:
        """The texts of whole conversations (`whole_text`) by row number; `rows` are sorted row numbers."""
        messages, rejected = self.values("messages", rows), self.values("rejected", rows)
        return {row: whole_text(turns, rejected[row] or ()) for row, turns in messages.items()}

    def values(self, column: str, rows: np.ndarray) -> dict[int, Any]:
        """The values of a column by row number; `rows` are sorted row numbers."""
        found: dict[int, Any] = {}
        for start, batch in self.batches([column]):
            low, high = np.searchsorted(rows, (start, start + batch.num_rows))
            here = rows[low:high]
            if len(here):
                found |= dict(zip(here.tolist(), batch.column(0).take(pa.array(here - start)).to_pylist(), strict=True))
        return found

    def _flush(self) -> None:
        batch, sources = self._batch, self._sources
        if not batch:
            return
        ids = [id_of(one) for one in batch]
        asked = [fold(first_question(one.messages)) for one in batch]
        # Many rows ask the same of different images.
        about = [
            f"images {' '.join(sorted(set(one.images)))}" if one.images else text
            for one, text in zip(batch, asked, strict=True)
        ]
        named = [one.conversation_id and f"conversation {one.conversation_id}" for one in batch]
        self._ids += b"".join([one[:16] for one in ids])
        self._prompts += b"".join([_hash(text) for text in about])
        self._conversations += b"".join([_hash(name) if name else bytes(8) for name in named])
        self._collect(batch, asked)
        columns = [
            pa.array([one.hex() for one in ids], pa.string()),
            _messages([one.messages for one in batch]),
            pa.array([one.tools for one in batch], pa.string()),
            pa.array([prompt_of(one.messages) for one in batch], pa.string()),
            pa.array([_first_of(one.messages, "assistant") for one in batch], pa.string()),
            pa.array(sources, pa.string()),
            pa.array([one.images or None for one in batch], pa.list_(pa.string())),
            _messages([one.rejected for one in batch], nullable=True),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        self._batch, self._sources, self._held = [], [], 0


def _messages(rows: Sequence[Sequence[Message]], *, nullable: bool = False) -> pa.Array:
    """A column of messages; with `nullable`, rows without any are null. Building it by field beats dicts in speed."""
    if nullable and not any(rows):
        return pa.nulls(len(rows), pa.list_(MESSAGE))
    turns = [turn for row in rows for turn in row]
    plain = max(map(len, turns), default=0) == 2  # only role and content
    fields = [
        pa.nulls(len(turns), field.type)
        if plain and field.name not in ("role", "content")
        else pa.array([turn.get(field.name) for turn in turns], field.type)
        for field in MESSAGE
    ]
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    absent = pa.array([not row for row in rows]) if nullable else None
    return pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(fields, fields=list(MESSAGE)), mask=absent)


def id_of(conversation: Conversation) -> bytes:
    """SHA-256 (32 bytes) of the canonical JSON of the messages, or of {messages, tools, images, rejected}.

    The latter has only the fields that the row has.
    """
    optional = (("tools", conversation.tools), ("images", conversation.images), ("rejected", conversation.rejected))
    more = {name: value for name, value in optional if value}
    kept = {"messages": conversation.messages, **more} if more else conversation.messages
    return hashlib.sha256(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)).digest()  # the bytes of canonical_json


def id_numbers(ids: bytes | bytearray) -> np.ndarray:
    """Ids of 16 bytes, one after the other, as uint64 (n, 2)."""
    return np.frombuffer(bytes(ids), ">u8").astype(np.uint64).reshape(-1, 2)


def whole_text(messages: Iterable[Message], rejected: Iterable[Message]) -> str:
    """The texts of a conversation, in which near duplicates are searched: two rejected replies are two rows."""
    return "\n".join(turn["content"] for turn in (*messages, *rejected))


def first_question(messages: list[Message]) -> str:
    return _first_of(messages, "user")


def _first_of(messages: list[Message], role: str) -> str:
    for one in messages:
        if one["role"] == role:
            return str(one["content"])
    raise ValueError(f"no turn of the role {role!r}")


def prompt_of(messages: list[Message]) -> str:
    """The first question, after the system text if there is one."""
    return "\n\n".join([one["content"] for one in messages[:2] if one["role"] != "assistant"])


def first_of_equals(ids: np.ndarray) -> np.ndarray:
    """A mask of the rows that are the first with their id, bool (n,)."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable: equal ids stay in the order of the rows
    ranked = ids[order]
    kept = np.zeros(len(ids), bool)
    kept[order] = np.r_[True, (ranked[1:] != ranked[:-1]).any(axis=1)] if len(ids) else []
    return kept
