"""Reads the rows of Parquet and Arrow files, in batches that are bounded: a small file can hold gigabytes."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.limits import COLUMNS, DECODED_BYTES, DEPTH
from shadowft_core.prepare.jsontext import ROW_LIMIT, RawRow, decode

LFS = b"version https://git-lfs.github.com/spec/"
_MAGIC = b"ARROW1"  # of a file; a stream begins with a length
_BATCH, _BATCH_BYTES = 1024, 16 << 20  # rows, and bytes that they should have together
_NO_VALUE = (ValueError, OverflowError, LookupError, TypeError)  # invalid UTF-8, the year 300000, unknown time zones
_LONG = f"longer than {ROW_LIMIT >> 20} MiB"


class BadJson(ValueError):
    """Text in a column of JSON that is not JSON."""


def table_rows(path: Path, kind: str) -> Iterator[RawRow]:
    """The rows of a file of the kind `.parquet` or `.arrow`.

    Raises DataError for a file that cannot be read, has too many or too deep columns, or two columns of one name, or
    whose rows take more memory than DECODED_BYTES at a time.
    """
    import pyarrow as pa

    try:
        number = 0
        batches = _batches(path, kind)
        while True:
            with _bounded(path):
                batch = next(batches, None)
                if batch is None:
                    return
                values = _values_or_none(batch)
            for index in range(batch.num_rows):
                number += 1
                if values is not None:
                    yield RawRow(number, values[index])
                    continue
                with _bounded(path):
                    row = _row(batch.slice(index, 1), number)
                yield row
    except (pa.ArrowException, OSError, *_NO_VALUE, SystemError) as error:
        with path.open("rb") as file:
            lfs = file.read(len(LFS)) == LFS
        text = "a Git LFS pointer, not the data; run `git lfs pull`" if lfs else " ".join(str(error).split())[:300]
        raise DataError(f"{path}: not readable as {kind[1:]}: {text}") from None


@contextmanager
def _bounded(path: Path) -> Iterator[None]:
    """Let this process take at most DECODED_BYTES more: what a few bytes of a table decode to is not known before.

    Raises DataError if that is not enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split(maxsplit=1)[0])
    most = pages * resource.getpagesize() + DECODED_BYTES
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    except MemoryError:  # ArrowMemoryError is one
        raise DataError(
            f"{path}: a few rows take more than {DECODED_BYTES >> 20} MiB of memory; repair them, or write the file "
            "with smaller row groups"
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _values_or_none(batch: Any) -> list[dict[str, Any]] | None:
    """The rows of a batch; None if they are to be read one by one."""
    if batch.nbytes > 2 * _BATCH_BYTES:
        return None
    try:
        return _values(batch)
    except _NO_VALUE:
        return None


def _values(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch with the values of JSON: decodes columns of JSON, and leaves out null fields of objects.

    Arrow gives all objects of a column the same fields, and null to the fields that an object did not have.
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
    if batch.nbytes > ROW_LIMIT:
        return RawRow(number, None, _LONG)
    try:
        return RawRow(number, _values(batch)[0])
    except UnicodeDecodeError:
        return RawRow(number, None, "invalid UTF-8")
    except BadJson:
        return RawRow(number, None, "bad JSON")
    except _NO_VALUE as error:
        return RawRow(number, None, f"a value that Python cannot hold: {type(error).__name__}")


def _batches(path: Path, kind: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == ".parquet":
        with pq.ParquetFile(path, pre_buffer=False) as file:
            _require_plain(path, file.schema_arrow)
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                size = min(_BATCH, max(1, _BATCH_BYTES * max(group.num_rows, 1) // max(group.total_byte_size, 1)))
                yield from file.iter_batches(batch_size=size, row_groups=[number], use_threads=False)
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
            raise DataError(f"{path}: {count} columns, the limit is {COLUMNS}; keep those of the conversations")
        layer = inner
        if not layer:
            return
    raise DataError(f"{path}: column {layer[0][0]:.60} has more than {DEPTH} levels; keep those of the conversations")
