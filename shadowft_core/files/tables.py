"""Reads rows of Parquet and Arrow files in bounded batches, since a small file can decode to gigabytes."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.files.jsontext import RawRow, decode
from shadowft_core.files.regular import open_regular
from shadowft_core.limits import COLUMNS, DECODED_BYTES, DEPTH, EXPANSION, JSON_BYTES, ROW_BYTES, ROWS

LFS = b"version https://git-lfs.github.com/spec/"
_MAGIC = b"ARROW1"  # of a file; a stream begins with a length
_BATCH, _BATCH_BYTES = 1024, 16 << 20  # rows, and bytes that they should have together
_FEW = 16  # rows that are decoded before their size is known
_NO_VALUE = (ValueError, OverflowError, LookupError, TypeError)  # invalid UTF-8, the year 300000, unknown time zones
_LONG = f"longer than {ROW_BYTES >> 20} MiB"


class BadJson(ValueError):
    """A column of JSON has text that is not JSON."""


_OTHERWISE = ("dictionary", "run_end_encoded", "_view")  # types that hold one value for many rows


def table_rows(path: Path, kind: str, columns: list[str] | None = None) -> Iterator[RawRow]:
    """The rows of a file of the kind `.parquet` or `.arrow`; of a Parquet file all columns, or these.

    Raises DataError for a file that cannot be read, has too many or too deep columns, or two columns of one name, whose
    rows take more memory than DECODED_BYTES at a time, or that holds more than `most_of` it.
    """
    number = 0
    with _readable(path, kind):
        for batch, size in _within(path, kind, columns):
            with _bounded(path):
                values = _values_or_none(batch) if size <= 2 * _BATCH_BYTES else None
            for index in range(batch.num_rows):
                number += 1
                if values is not None:
                    yield RawRow(number, values[index])
                    continue
                with _bounded(path):
                    row = _row(batch.slice(index, 1), number)
                yield row


def count_rows(path: Path, kind: str) -> int:
    """The number of rows of a file, all of them decoded. Raises DataError as `table_rows`, and for more than ROWS."""
    count = 0
    with _readable(path, kind):
        for batch, _ in _within(path, kind):
            if (count := count + batch.num_rows) > ROWS:
                raise DataError(f"{path}: more than {ROWS} rows in one file; split it, or repair it")
    return count


def most_of(path: Path) -> int:
    """The bytes that a compressed file, or a table, may hold."""
    return max(JSON_BYTES, EXPANSION * path.stat().st_size)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    os.close(open_regular(path, DataError))
    try:
        yield
    except (pa.ArrowException, OSError, *_NO_VALUE, SystemError) as error:
        with path.open("rb") as file:
            lfs = file.read(len(LFS)) == LFS
        text = "a Git LFS pointer, not the data; run `git lfs pull`" if lfs else " ".join(str(error).split())[:300]
        raise DataError(f"{path}: not readable as {kind[1:]}: {text}") from None


def _within(path: Path, kind: str, columns: list[str] | None = None) -> Iterator[tuple[Any, int]]:
    """The batches of a file and the bytes of their values, each decoded within limits."""
    batches, held, most = _batches(path, kind, columns), 0, most_of(path)
    while True:
        with _bounded(path):
            batch = next(batches, None)
            if batch is None:
                return
            held += (size := _size(batch, most - held))
        if held > most:
            raise DataError(
                f"{path}: holds more than {most} bytes, {EXPANSION} times its size or {JSON_BYTES >> 20} MiB; repair "
                "it, or write its rows as JSON lines"
            )
        yield batch, size


def _size(batch: Any, most: int) -> int:
    """The bytes of the values of a batch, counted until there are more than `most`."""
    import orjson

    if not any(word in str(field.type) for field in batch.schema for word in _OTHERWISE):
        return int(batch.nbytes)
    size = start = 0
    while start < batch.num_rows and size <= most:
        size += len(orjson.dumps(batch.slice(start, _FEW).to_pylist(), default=str))
        start += _FEW
    return size


@contextmanager
def _bounded(path: Path) -> Iterator[None]:
    """Let this process take at most DECODED_BYTES more: it is not known beforehand what a few bytes decode to.

    Raises DataError if that is not enough.
    """
    import pyarrow as pa

    pa.allocate_buffer(1)  # with the first byte, Arrow's allocator reserves 1 GiB of the addresses that are limited
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split(maxsplit=1)[0])
    most = pages * resource.getpagesize() + DECODED_BYTES
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    except MemoryError:  # ArrowMemoryError is one
        raise DataError(
            f"{path}: decoding a few rows takes more than {DECODED_BYTES >> 20} MiB of memory; write the file again "
            "with smaller row groups"
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _values_or_none(batch: Any) -> list[dict[str, Any]] | None:
    """The rows of a batch; None if they must be read one by one."""
    try:
        return _values(batch)
    except _NO_VALUE:
        return None


def _values(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch as JSON values: columns of JSON are decoded, and null fields of objects are left out.

    In Arrow all objects of a column have the same fields, and those that an object did not have are null.
    """
    rows: list[dict[str, Any]] = batch.to_pylist()
    for name, read in ((field.name, _reader(field.type)) for field in batch.schema):
        if read:
            for row in rows:
                row[name] = None if row[name] is None else read(row[name])
    return rows


def _reader(kind: Any) -> Callable[[Any], Any] | None:
    """A function that turns a value of an Arrow type into a value of JSON; None if nothing changes."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return _decoded
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        read = _reader(kind.value_type)
        return read and (lambda values: [one if one is None else read(one) for one in values])
    if pa.types.is_struct(kind):
        readers = {field.name: _reader(field.type) for field in kind}
        return lambda value: {
            name: inner(one) if (inner := readers[name]) else one for name, one in value.items() if one is not None
        }
    return None


def _decoded(text: str) -> Any:
    try:
        return decode(text.encode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadJson(str(error)) from None


def _row(batch: Any, number: int) -> RawRow:
    if batch.nbytes > ROW_BYTES:
        return RawRow(number, None, _LONG)
    try:
        return RawRow(number, _values(batch)[0])
    except UnicodeDecodeError:
        return RawRow(number, None, "invalid UTF-8")
    except BadJson:
        return RawRow(number, None, "bad JSON")
    except _NO_VALUE as error:
        return RawRow(number, None, f"a value that Python cannot hold: {type(error).__name__}")


def _batches(path: Path, kind: str, columns: list[str] | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == ".parquet":
        with pq.ParquetFile(path, pre_buffer=False) as file:
            _require_plain(path, file.schema_arrow)
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                size = min(_BATCH, max(1, _BATCH_BYTES * max(group.num_rows, 1) // max(group.total_byte_size, 1)))
                yield from file.iter_batches(size, row_groups=[number], columns=columns, use_threads=False)
        return
    with pa.OSFile(str(path)) as source:
        options = pa.ipc.IpcReadOptions(use_threads=False)
        magic = source.read(len(_MAGIC))
        source.seek(0)
        if magic == _MAGIC:
            whole = pa.ipc.open_file(source, options=options)
            _require_plain(path, whole.schema)
            reader = (whole.get_batch(number) for number in range(whole.num_record_batches))
        else:
            reader = pa.ipc.open_stream(source, options=options)
            _require_plain(path, reader.schema)
        for batch in reader:
            batch.validate(full=True)  # offsets beyond a buffer would end the process
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH)


def _require_plain(path: Path, schema: Any) -> None:
    """Raises DataError for too many columns, columns of one name, also within a struct, and for too many levels."""
    import pyarrow as pa

    count = 0
    layer = [("", schema)]
    for _ in range(DEPTH):
        inner = []
        for place, held in layer:
            names = [field.name for field in held]
            if len(set(names)) < len(names):
                what = f"column {place:.60}" if place else "file"
                raise DataError(
                    f"{path}: expected distinct column names in the {what}, found {names!r:.200}; rename the columns"
                )
            count += len(names)
            for field in held:
                kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
                if pa.types.is_nested(kind) and kind.num_fields:
                    parts = [kind.field(at) for at in range(kind.num_fields)]
                    inner.append((f"{place}.{field.name}" if place else field.name, parts))
        if count > COLUMNS:
            raise DataError(f"{path}: {count} columns, the limit is {COLUMNS}; keep only those of the conversations")
        layer = inner
        if not layer:
            return
    raise DataError(f"{path}: column {layer[0][0]:.60} has more than {DEPTH} levels; leave it out")
