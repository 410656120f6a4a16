"""Reads the rows of one data file, of every format, within limits: one row at a time."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from shadowft_core.errors import DataError
from shadowft_core.files.jsontext import RawRow, json_rows, refuse_other_files
from shadowft_core.files.regular import open_regular
from shadowft_core.files.tables import most_of, table_rows
from shadowft_core.limits import COLUMNS, JSON_BYTES, ROW_BYTES, ROWS

TEXT = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*TEXT, ".parquet", ".arrow")
PACKED = (".gz", ".zst")
_BUFFER = 1 << 16


def read_rows(path: Path) -> Iterator[RawRow]:
    """Every row of one file. A row that cannot be read has a problem instead of a value.

    Raises DataError if the file cannot be read as a whole, has more than ROWS rows, or changes while it is read.
    """
    kind = format_of(path)
    try:
        before = path.stat()
        for count, row in enumerate(_rows(path, kind)):
            if count >= ROWS:
                raise DataError(f"{path}: more than {ROWS} rows in one file; split it, or repair it")
            yield row
        after = path.stat()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable: {' '.join(str(error).split())}; get the file again") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{path}: changed while it was read; run again when no program writes to it")


def _rows(path: Path, kind: str | None) -> Iterator[RawRow]:
    if kind in (".parquet", ".arrow"):
        yield from table_rows(path, kind)
    elif kind in (".csv", ".tsv"):
        yield from _cells(path, "," if kind == ".csv" else "\t")
    else:
        with open_data(path) as file:
            yield from json_rows(file, path)


def open_data(path: Path, packed: str | None = None) -> IO[bytes]:
    """Open a regular file for reading. A file packed as .gz or .zst, which its suffix tells, is decompressed.

    Raises DataError as `open_regular` does; so does a read beyond what a compressed file may hold (`most_of`).
    """
    packed = path.suffix.lower() if packed is None else packed
    file = os.fdopen(open_regular(path, DataError), "rb", _BUFFER)
    if packed == ".gz":
        return io.BufferedReader(_Unpacked(gzip.GzipFile(fileobj=file), file, path), _BUFFER)
    if packed == ".zst":
        import pyarrow as pa  # reads all frames and notices a truncated one, which zstandard's stream does not

        inner = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
        return io.BufferedReader(_Unpacked(inner, file, path), _BUFFER)
    return file


class _Unpacked(io.RawIOBase):
    """What a compressed file holds. A few bytes can hold terabytes, so there is a limit."""

    def __init__(self, inner: Any, file: IO[bytes], path: Path) -> None:
        self._inner, self._file, self._path, self._left = inner, file, path, most_of(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Decompress the next bytes."""
        size = int(self._inner.readinto(buffer))
        self._left -= size
        if self._left < 0:
            raise DataError(f"{self._path}: expands to more than {most_of(self._path)} bytes; unpack it and look at it")
        return size

    def close(self) -> None:
        """Close the file, too."""
        self._inner.close()
        self._file.close()
        super().close()


def format_of(path: Path) -> str | None:
    """The suffix of the format in lower case, `.csv` for x.CSV.gz; None if the file is no data file."""
    *_, inner, outer = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if outer in PACKED:
        return inner if inner in TEXT else None
    return outer if outer in SUFFIXES else None


@contextmanager
def csv_rows(path: Path, delimiter: str = ",") -> Iterator[Any]:
    """A reader of the csv module. Raises DataError for a file of another kind, and for text that is not CSV."""
    csv.field_size_limit(ROW_BYTES)
    with open_data(path) as file:
        refuse_other_files(file, path, "CSV")
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(_text_lines(text, path), delimiter=delimiter, strict=True)
        try:
            yield reader
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: not readable as CSV: {error}; repair the line") from None


def _cells(path: Path, delimiter: str) -> Iterator[RawRow]:
    """Rows of a CSV file whose first line has the column names. Empty cells are absent.

    The number of a row is that of its last line.
    """
    with csv_rows(path, delimiter) as reader:
        names: list[str] = next(reader, [])
        if len(names) > COLUMNS:
            raise DataError(f"{path}: line 1: {len(names)} columns, the limit is {COLUMNS}; keep those to train on")
        if len(set(names)) < len(names) or not all(names):
            raise DataError(f"{path}: line 1: expected distinct column names, found {names!r:.200}; repair it")
        for cells in reader:
            if not (line := "".join(cells)).isascii() and not is_text(line):
                yield RawRow(reader.line_num, None, "invalid UTF-8")
            elif len(cells) > len(names) or (cells and len(cells) < len(names)):
                yield RawRow(reader.line_num, None, "the number of cells is not that of the columns")
            elif cells:
                yield RawRow(reader.line_num, {name: cell for name, cell in zip(names, cells, strict=True) if cell})


def _text_lines(text: IO[str], path: Path) -> Iterator[str]:
    number = 0
    while line := text.readline(ROW_BYTES + 1):
        number += 1
        if len(line) > ROW_BYTES or number > ROWS:
            what = (
                f"line {number} is longer than {ROW_BYTES >> 20} MiB" if number <= ROWS else f"more than {ROWS} lines"
            )
            raise DataError(f"{path}: {what}; repair the file")
        yield line


def is_text(text: str) -> bool:
    """Whether a text has no lone surrogates. Python decodes bytes that are not UTF-8 to lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def whole_json(path: Path) -> Any:
    """A JSON file that is one value. Raises ValueError, RecursionError, UnicodeDecodeError, DataError."""
    with open_data(path) as file:
        raw = file.read(JSON_BYTES + 1)
    if len(raw) > JSON_BYTES:
        raise DataError(f"{path}: one value of more than {JSON_BYTES} bytes, which is the limit; save it as JSON lines")
    return json.loads(raw.decode("utf-8-sig"))
