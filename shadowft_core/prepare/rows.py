"""Reads json, jsonl and parquet files row by row, and turns rows of every supported shape into `messages`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError

ROW_LIMIT = 16 * 1024 * 1024  # bytes; a longer row is refused before it is in memory
SUFFIXES = (".json", ".jsonl", ".parquet")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PAIRS = {"alpaca": ("instruction", "output"), "question/answer": ("question", "answer")}
PAIRS["prompt/response"] = ("prompt", "response")
# Fields whose content would be lost silently if the row were read as a plain conversation.
UNSUPPORTED = ("tools", "images", "videos", "audios", "chosen", "rejected", "history")

Message = dict[str, str]


class BadRow(Exception):
    """Why one row is not usable. Rows with the same message are counted together."""


@dataclass(frozen=True)
class RawRow:
    """One row of a file: `number` is the line in a jsonl file, the position in the others, from 1."""

    number: int
    value: Any | None
    problem: str | None = None


def data_files(place: Path) -> list[Path]:
    """The data files of a folder, sorted by name, or the file itself. Raises DataError when there is none."""
    if not place.exists():
        raise DataError(f"{place}: no such file or folder; check prepare.data in params.yaml")
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise DataError(f"{place}: ends in {place.suffix!r}, expected one of {', '.join(SUFFIXES)}")
        return [place]
    files = sorted(p for p in place.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(f"{place}: holds no {', '.join(SUFFIXES)} file; add one or name another folder")
    return files


def read_rows(path: Path) -> Iterator[RawRow]:
    """Every row of one file; a row that cannot be read comes with its problem instead of a value.

    Raises DataError when the file as a whole cannot be read.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return _read_array(path) if head.startswith(b"[") else _read_lines(path)


def conversation(row: Any) -> tuple[str, list[Message]]:
    """The shape of a row and its messages: an optional system turn, then user and assistant alternating, LF line ends.

    Raises BadRow.
    """
    if not isinstance(row, dict):
        raise BadRow("not a JSON object")
    for field in UNSUPPORTED:
        if row.get(field) and row[field] != "[]":  # some files spell an empty list as text
            raise BadRow(f"unsupported field {field!r}")
    if row.get("messages") is not None:
        shape, turns = "messages", _turns(row["messages"], "messages", "role", "content")
    elif row.get("conversations") is not None:
        shape, turns = "sharegpt", _turns(row["conversations"], "conversations", "from", "value")
    else:
        shape, turns = _pair(row)
    if row.get("system"):
        turns.insert(0, {"role": "system", "content": _text(row["system"], "system")})
    _check_order(turns)
    return shape, turns


def _turns(value: Any, field: str, role_key: str, text_key: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadRow(f"field {field!r} is not a list")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get(role_key), str):
            raise BadRow(f"a turn of {field!r} has no {role_key!r}")
        role = ROLES.get(turn[role_key])
        if role is None or turn.get("tool_calls"):
            raise BadRow(f"unsupported role {turn[role_key] if role is None else 'tool_calls'!r}")
        if turn.get(text_key) is None:
            raise BadRow(f"a turn of {field!r} has no {text_key!r}")
        turns.append({"role": role, "content": _text(turn[text_key], text_key)})
    return turns


def _pair(row: dict[str, Any]) -> tuple[str, list[Message]]:
    for shape, (question, answer) in PAIRS.items():
        if row.get(question) is None:
            continue
        if row.get(answer) is None:
            raise BadRow(f"missing field {answer!r}")
        asked = _text(row[question], question)
        if row.get("input") and shape == "alpaca":
            asked += "\n" + _text(row["input"], "input")
        return shape, [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": _text(row[answer], answer)},
        ]
    raise BadRow("missing field: neither messages, conversations, instruction, question nor prompt")


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"field {field!r} is not text")
    if not value.strip():
        raise BadRow(f"empty {field!r}")
    if "\0" in value:
        raise BadRow(f"NUL in {field!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"lone surrogate in {field!r}") from None
    return value.replace("\r\n", "\n")


def _check_order(turns: list[Message]) -> None:
    talk = [turn["role"] for turn in turns]
    if talk[:1] == ["system"]:
        talk = talk[1:]
    if not talk:
        raise BadRow("no user turn")
    if talk != ["user", "assistant"] * (len(talk) // 2) + ["user"] * (len(talk) % 2):
        raise BadRow("user and assistant do not alternate")
    if talk[-1] != "assistant":
        raise BadRow("last turn is not the assistant's")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRow("duplicate key")
    return found


def _refuse_constant(name: str) -> Any:
    raise BadRow(f"{name} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
_LENIENT = json.JSONDecoder()


def _read_lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(ROW_LIMIT + 1):
            number += 1
            if len(line) > ROW_LIMIT:
                while line and not line.endswith(b"\n"):
                    line = file.readline(1 << 16)
                yield RawRow(number, None, f"longer than {ROW_LIMIT >> 20} MiB")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _decode_line(number, line)


def _decode_line(number: int, line: bytes) -> RawRow:
    try:
        return RawRow(number, _STRICT.decode(line.decode("utf-8")))
    except UnicodeDecodeError:
        return RawRow(number, None, "invalid UTF-8")
    except BadRow as problem:
        return RawRow(number, None, str(problem))
    except RecursionError:
        return RawRow(number, None, "nested too deeply")
    except ValueError:  # also JSONDecodeError, and integers of more digits than Python converts
        return RawRow(number, None, "bad JSON")


def _read_array(path: Path) -> Iterator[RawRow]:
    """A bad element is one bad row; a syntax error rejects the whole file, since the next row cannot be found."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: invalid UTF-8 at byte {error.start}; save the file as UTF-8") from None
    at, number = _skip(text, text.index("[") + 1), 0
    while not text.startswith("]", at):
        number += 1
        row, end = _decode_element(path, text, at, number)
        yield row
        at = _skip(text, end)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            raise DataError(f"{path}: row {number} is followed by neither ',' nor ']'; correct the file")
    if text[at + 1 :].strip():
        raise DataError(f"{path}: text after the closing ']' of row {number}; remove it")


def _decode_element(path: Path, text: str, at: int, number: int) -> tuple[RawRow, int]:
    try:
        try:
            value, end = _STRICT.raw_decode(text, at)
            row = RawRow(number, value)
        except BadRow as problem:
            _, end = _LENIENT.raw_decode(text, at)
            row = RawRow(number, None, str(problem))
    except (ValueError, RecursionError) as error:
        line = text.count("\n", 0, getattr(error, "pos", at)) + 1
        raise DataError(
            f"{path}: bad JSON in row {number}, line {line}; correct it or save the file as jsonl"
        ) from None
    if end - at > ROW_LIMIT:
        row = RawRow(number, None, f"longer than {ROW_LIMIT >> 20} MiB")
    return row, end


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        yield RawRow(number, batch.slice(index, 1).to_pylist()[0])
                    except UnicodeDecodeError:
                        yield RawRow(number, None, "invalid UTF-8")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: not readable as parquet: {' '.join(str(error).split())}") from None
