"""Reads the rows of one data file, of every format, within limits: one row at a time."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from shadowft_core.errors import DataError
from shadowft_core.files.jsontext import ROW_LIMIT, RawRow, json_rows, refuse_other_files
from shadowft_core.files.tables import table_rows
from shadowft_core.limits import COLUMNS, ROWS

TEXT = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*TEXT, ".parquet", ".arrow")
PACKED = (".gz", ".zst")


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


def open_data(path: Path) -> IO[bytes]:
    """Open a file for reading; a .gz or .zst file is decompressed."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(path)  # type: ignore[return-value]
    if suffix == ".zst":
        import pyarrow as pa  # reads all frames and notices a truncated one, which zstandard's stream does not

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return path.open("rb", buffering=1 << 16)


def format_of(path: Path) -> str | None:
    """The suffix of the format in lower case, `.csv` for x.CSV.gz; None if the file is no data file."""
    *_, inner, outer = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if outer in PACKED:
        return inner if inner in TEXT else None
    return outer if outer in SUFFIXES else None


def _cells(path: Path, delimiter: str) -> Iterator[RawRow]:
    """Rows of a CSV file whose first line has the column names. Empty cells are absent.

    The number of a row is that of its last line.
    """
    csv.field_size_limit(ROW_LIMIT)
    with open_data(path) as file:
        refuse_other_files(file, path, "CSV")
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(_text_lines(text, path), delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
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
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: not readable as CSV: {error}; repair the line") from None


def _text_lines(text: IO[str], path: Path) -> Iterator[str]:
    number = 0
    while line := text.readline(ROW_LIMIT + 1):
        number += 1
        if len(line) > ROW_LIMIT:
            raise DataError(f"{path}: line {number} is longer than {ROW_LIMIT >> 20} MiB; repair the line")
        yield line


def is_text(text: str) -> bool:
    """Whether a text has no lone surrogates. Python decodes bytes that are not UTF-8 to lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def whole_json(path: Path) -> Any:
    """A JSON file that is one value. Raises ValueError, RecursionError, UnicodeDecodeError."""
    with open_data(path) as file:
        return json.loads(file.read().decode("utf-8-sig"))
