"""Data files: which of a folder are read, and every row of them, one at a time."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shadowft_core.errors import DataError
from shadowft_core.prepare.jsontext import ROW_LIMIT, json_rows

TEXT = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*TEXT, ".parquet", ".arrow")
PACKED = (".gz", ".zst")
LFS = b"version https://git-lfs.github.com/spec/"
_ABOUT = ("state.json", "dataset_info.json", "dataset_dict.json")  # what the datasets library writes beside its files


@dataclass(frozen=True)
class RawRow:
    """One row: `number` is its line in a file of lines, else its position from 1; `problem`: why it has no value."""

    number: int
    value: Any | None
    problem: str | None = None


def data_files(place: Path) -> tuple[list[Path], list[Path]]:
    """The data files of a folder and its subfolders, sorted by path, and the files there that are not read.

    `place` may be one file. Raises DataError when there is no data file.
    """
    kinds = f"{', '.join(SUFFIXES)} (text files also as {' or '.join(PACKED)})"
    if not place.exists():
        raise DataError(f"{place}: no such file or folder; check prepare.data in params.yaml")
    if place.is_file():
        if not _format(place):
            raise DataError(f"{place}: expected one of {kinds}, found {place.suffix!r}; convert it")
        return [place], []
    files = sorted(path for path in place.rglob("*") if path.is_file())
    read = [path for path in files if _format(path) and not _is_hidden(path, place) and not _is_about(path)]
    if not read:
        found = f"; it holds {', '.join(path.name for path in files[:3])}" if files else ""
        raise DataError(f"{place}: expected data files, {kinds}{found}; put the data there or name another folder")
    return read, [path for path in files if path not in set(read) and not _is_about(path)]


def read_rows(path: Path) -> Iterator[RawRow]:
    """Every row of one file; a row that cannot be read has a problem in place of a value.

    Raises DataError when the file as a whole cannot be read.
    """
    kind = _format(path)
    if kind in (".parquet", ".arrow"):
        return _tables(path, kind)
    if kind in (".csv", ".tsv"):
        return _cells(path, "," if kind == ".csv" else "\t")
    return _json(path)


def open_data(path: Path) -> IO[bytes]:
    """A file, unpacked as it is read."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(path)  # type: ignore[return-value]
    if suffix == ".zst":
        import io

        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True))
    return path.open("rb")


def _format(path: Path) -> str | None:
    """The suffix that says how to read a file, in lower case, without that of its packing; None for others."""
    *_, inner, outer = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if outer in PACKED:
        return inner if inner in TEXT else None
    return outer if outer in SUFFIXES else None


def _is_hidden(path: Path, place: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(place).parts)


def _is_about(path: Path) -> bool:
    """Whether a file describes a saved dataset: one with Arrow files in its folder or below."""
    return path.name in _ABOUT and any(path.parent.rglob("*.arrow"))


def _json(path: Path) -> Iterator[RawRow]:
    try:
        with open_data(path) as file:
            for number, value, problem in json_rows(file, path):
                yield RawRow(number, value, problem)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: not readable: {' '.join(str(error).split())}") from None
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise DataError(f"{path}: not readable as zstd: {' '.join(str(error).split())}") from None
        raise


def _cells(path: Path, delimiter: str) -> Iterator[RawRow]:
    """Rows of a CSV file with a line of column names. Empty cells are absent."""
    import csv
    import io

    csv.field_size_limit(ROW_LIMIT)
    with open_data(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            if len(set(names)) < len(names) or not all(names):
                raise DataError(f"{path}: line 1: expected distinct column names, found {names!r:.200}")
            for cells in reader:
                if len(cells) > len(names) or (cells and len(cells) < len(names)):
                    yield RawRow(reader.line_num, None, "another number of cells than columns")
                elif cells:
                    yield RawRow(reader.line_num, {name: cell for name, cell in zip(names, cells, strict=True) if cell})
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: invalid UTF-8 at byte {error.start}; save the file as UTF-8") from None
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: not readable as CSV: {error}") from None


def _tables(path: Path, kind: str) -> Iterator[RawRow]:
    import pyarrow as pa

    try:
        number = 0
        for batch in _batches(path, kind):
            try:
                values = batch.to_pylist()
            except UnicodeDecodeError:
                values = None
            for index in range(batch.num_rows):
                number += 1
                try:
                    yield RawRow(number, values[index] if values else batch.slice(index, 1).to_pylist()[0])
                except UnicodeDecodeError:
                    yield RawRow(number, None, "invalid UTF-8")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        with path.open("rb") as file:
            lfs = file.read(len(LFS)) == LFS
        text = "a Git LFS pointer, not the data; run `git lfs pull`" if lfs else " ".join(str(error).split())
        raise DataError(f"{path}: not readable as {kind[1:]}: {text}") from None


def _batches(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1024)
        return
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            whole = pa.ipc.open_file(source)
            reader = (whole.get_batch(number) for number in range(whole.num_record_batches))
        for batch in reader:
            for start in range(0, batch.num_rows, 1024):
                yield batch.slice(start, 1024)


def whole_json(path: Path) -> Any:
    """A JSON file that is one value. Raises ValueError, RecursionError, UnicodeDecodeError."""
    with open_data(path) as file:
        return json.loads(file.read().decode("utf-8-sig"))
