"""Reads rows of JSON text one at a time: lines, an array, or objects over many lines."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from shadowft_core.errors import DataError
from shadowft_core.limits import LINE_BYTES, ROW_BYTES, ROWS

_PART = 1 << 20  # bytes read at a time
_BLANKS = re.compile(r"[ \t\r\n]*")
_KEY_END = re.compile(rb'"[ \t\r\n]*:')
_LISTS = ("data", "rows", "examples", "instances")  # keys under which a file that is one object holds its rows
_OF_ROWS = {"messages", "conversations", "instruction", "question", "prompt"}  # an object with one of them is a row
_STARTS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the data; run `git lfs pull`",
    b"\xff\xfe": "UTF-16; save the file as UTF-8",
    b"\xfe\xff": "UTF-16; save the file as UTF-8",
    b"<!doctype": "an HTML page, not the data; download the file itself",
    b"<html": "an HTML page, not the data; download the file itself",
    b"PAR1": "a parquet file; name it *.parquet",
    b"\x1f\x8b": "a gzip file; name it *.gz",
}


class RawRow(NamedTuple):
    """One row. `number` is its line in a file of lines, else its position from 1. `problem` is why `value` is None."""

    number: int
    value: Any | None
    problem: str | None = None


class _Problem(ValueError):
    """Why JSON text that parses is still refused."""


def json_rows(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    """Every row.

    Raises DataError if the file is not JSON, or if an error in it hides where the next row begins.
    """
    begin = refuse_other_files(file, path, "JSON")
    if begin.startswith(b"["):
        return _values(_Text(file, path), array=True)
    first, *others = begin.split(b"\n")[:4]
    if begin.startswith(b"{") and others and _opens_only(first.strip()) and not any(map(_is_object, others)):
        return _unwrapped(_values(_Text(file, path), array=False))
    return _unwrapped(_lines(file, path))


def refuse_other_files(file: IO[bytes], path: Path, expected: str) -> bytes:
    """The first bytes of a text file without byte order mark and blanks. The position in the file stays.

    Raises DataError if the first bytes are those of another kind of file.
    """
    head: bytes = file.peek(1 << 16)[: 1 << 16]  # type: ignore[attr-defined]
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, words in _STARTS.items():
        if begin[: len(start)].lower() == start.lower() or head.startswith(start):
            raise DataError(f"{path}: expected {expected}, found {words}")
    return begin


def decode(text: bytes) -> Any:
    """The value of JSON text. Raises ValueError for bad JSON, repeated keys, NaN and infinity, and RecursionError.

    orjson gives the values of `json`, with two exceptions: it refuses lone surrogates, and it turns integers of more
    than 64 bits into floats. `json` reads such text again.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)  # report bad JSON before a duplicate key
        return _STRICT.decode(text.decode("utf-8"))
    keys, exact = _survey(value)
    # A key twice, or text that looks like one. Each key has a colon, so the count of colons often decides.
    if not exact or (text.count(b":") != keys and len(_KEY_END.findall(text)) != keys):
        return _STRICT.decode(text.decode("utf-8"))
    return value


def _survey(value: Any) -> tuple[int, bool]:
    """The number of keys, and whether no float can be an integer that lost digits."""
    keys, exact, inside = 0, True, [value]
    for one in inside:
        kind = type(one)  # orjson makes no subclasses
        if kind is str:
            continue
        if kind is dict:
            keys += len(one)
            inside += one.values()
        elif kind is list:
            inside += one
        elif kind is float and abs(one) >= 2**63:
            exact = False
    return keys, exact


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Problem("duplicate key")
    return found


def _refuse_constant(name: str) -> Any:
    raise _Problem(f"{name} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
_LENIENT = json.JSONDecoder()


def _opens_only(line: bytes) -> bool:
    """Whether a line begins an object, and has no error up to its end."""
    text = line.decode("utf-8", "replace").rstrip()
    try:
        _LENIENT.raw_decode(text)
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except ValueError:  # a whole number of thousands of digits
        return False
    return False


def _is_object(line: bytes) -> bool:
    """Whether a line is a whole object. In a file with such lines, a cut first line is one bad row."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _lines(file: IO[bytes], path: Path) -> Iterator[RawRow]:
    number = 0
    while line := file.readline(ROW_BYTES + 1):
        number += 1
        if number > ROWS:
            raise DataError(f"{path}: more than {ROWS} lines in one file; split it, or repair it")
        if len(line) > ROW_BYTES:
            size = len(line)
            while line and not line.endswith(b"\n"):
                line = file.readline(_PART)
                if (size := size + len(line)) > LINE_BYTES:
                    raise DataError(f"{path}: line {number} is longer than {LINE_BYTES >> 20} MiB; get the file again")
            yield RawRow(number, None, f"longer than {ROW_BYTES >> 20} MiB")
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line and not line.isspace():
            yield _decoded(number, line)


def _decoded(number: int, line: bytes) -> RawRow:
    try:
        return RawRow(number, decode(line))
    except UnicodeDecodeError:
        return RawRow(number, None, "invalid UTF-8")
    except _Problem as problem:
        return RawRow(number, None, str(problem))
    except RecursionError:
        return RawRow(number, None, "nested too deeply")
    except json.JSONDecodeError:
        inner = b"\r" in line.rstrip(b"\r\n")
        words = "bad JSON: CR inside the line, expected LF or CRLF at line ends" if inner else "bad JSON"
        return RawRow(number, None, words)
    except ValueError:
        return RawRow(number, None, "a whole number with more digits than Python reads")


class _Text:
    """The text of a file, read in parts. `at` is a position in `text`; `line` is the file's line where it begins."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        import codecs

        self._file, self.path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.ended, self._read = "", 0, 1, False, 0

    def more(self) -> bool:
        """Drop the text before `at`, and append the next part. Returns False at the end of the file.

        Raises DataError for invalid UTF-8.
        """
        if self.ended:
            return False
        part = self._file.read(_PART)
        self.ended = not part
        try:
            added = self._decoder.decode(part, final=self.ended)
        except UnicodeDecodeError as error:
            place = self._read + error.start
            raise DataError(f"{self.path}: invalid UTF-8 at byte {place}; save the file as UTF-8") from None
        self._read += len(part)
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + added, 0
        return True

    def next(self) -> str:
        """Move to the next character that is not blank, and return it; empty at the end of the file."""
        while True:
            self.at = _BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self, number: int) -> RawRow:
        """Read the JSON value at `at`. Raises DataError for broken syntax, which hides where the next row begins."""
        while True:
            try:
                _, end = _LENIENT.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if len(self.text) - self.at <= ROW_BYTES and not isinstance(error, RecursionError) and self.more():
                    continue
                line = self.line + self.text.count("\n", 0, getattr(error, "pos", self.at))
                if len(self.text) - self.at > ROW_BYTES:
                    problem = f"row {number} is longer than {ROW_BYTES >> 20} MiB"
                elif isinstance(error, RecursionError):
                    problem = f"row {number} is nested too deeply"
                else:
                    problem = f"bad JSON in row {number}, line {line}"
                raise DataError(f"{self.path}: {problem}; repair the file or save it as jsonl") from None
            if end == len(self.text) and self.more():  # a number may continue in the next part
                continue
            text, self.at = self.text[self.at : end], end
            try:
                return RawRow(number, decode(text.encode("utf-8")))
            except _Problem as problem:
                return RawRow(number, None, str(problem))


def _values(text: _Text, *, array: bool) -> Iterator[RawRow]:
    """The elements of an array, or values one after the other."""
    number = 0
    if array:
        text.next()
        text.at += 1
    while (sign := text.next()) and not (array and sign == "]"):
        number += 1
        yield text.value(number)
        if array:
            if (sign := text.next()) not in (",", "]"):
                raise DataError(f"{text.path}: row {number} is followed by neither ',' nor ']'; repair the file")
            text.at += sign == ","
    if array:
        if not sign:
            raise DataError(
                f"{text.path}: expected ']' after row {number}, found the end of the file; get the file again"
            )
        text.at += 1
        if text.next():
            raise DataError(f"{text.path}: text after the closing ']' of row {number}; repair the file")


def _unwrapped(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """The rows of a file. A file that is one object with a list of rows under a usual key has the rows of that list."""
    first, following = next(rows, None), next(rows, None)
    value = first.value if first and following is None else None
    if isinstance(value, dict) and not value.keys() & _OF_ROWS:
        for listed in filter(value.__contains__, _LISTS):
            if isinstance(value[listed], list) and all(isinstance(row, dict) for row in value[listed]):
                yield from (RawRow(number, row) for number, row in enumerate(value[listed], 1))
                return
    yield from (row for row in (first, following) if row is not None)
    yield from rows
