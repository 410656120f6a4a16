"""Data files of tasks, checked before the harness reads them, which it does without limits."""

import glob
import zlib
from pathlib import Path
from typing import IO, Any

from shadowft_core.errors import DataError, EvaluationError
from shadowft_core.files import reading
from shadowft_core.files.jsonfile import nested
from shadowft_core.files.jsontext import json_rows
from shadowft_core.files.rows import open_data
from shadowft_core.files.tables import count_rows
from shadowft_core.limits import DECODED_BYTES, DEPTH, ITEM_BYTES, ROWS
from shadowft_core.suites.configs import LOCAL

TABLES = ("parquet", "arrow")
PACKED = {b"\x1f\x8b": ".gz", b"(\xb5/\xfd": ".zst"}  # by the first bytes
OTHERS = (b"BZh", b"\xfd7zXZ\0", b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf", b"\x04\x22M\x18")  # which the library unpacks
HEAD = 4096


def absolute(files: Any, folder: Path, data: Path) -> Any:
    """The data files, escaped, because the datasets library reads every path as a glob, even a folder `runs [2]`."""
    if isinstance(files, dict):
        return {split: absolute(part, folder, data) for split, part in files.items()}
    if isinstance(files, list):
        return [absolute(part, folder, data) for part in files]
    if (file := folder / str(files).replace("{data}", str(data))).is_file():
        return glob.escape(str(file))
    pattern = str(files).replace("{data}", glob.escape(str(data)))
    return str(Path(glob.escape(str(folder))) / pattern)


def require_rows(name: str, file: str, kind: str, whole: bool = False) -> None:
    """Raise EvaluationError for data files that are missing, empty (as a split of share 0 is), or beyond a limit.

    `kind` is the `dataset_path` of the task; `whole`: its rows are in a field of one JSON value.
    """
    paths = [Path(file)] if Path(file).is_file() else [Path(found) for found in sorted(glob.glob(file))]
    if not paths:
        raise EvaluationError(f"task {name}: {file}: no such data file; correct data_files or run `shadowft prepare`")
    try:
        counts = [_rows(path, kind, whole) for path in paths]
    except DataError as error:
        raise EvaluationError(f"task {name}: {error}") from None
    if not any(counts):
        raise EvaluationError(
            f"task {name}: {file}: has no rows, expected 1 or more; for held-out rows raise prepare.dev or prepare.test"
        )


def _rows(path: Path, kind: str, whole: bool) -> int:
    """The rows of a table, the lines of a text. Raises DataError for what is beyond a limit."""
    kind = kind if kind in LOCAL else path.suffix[1:].lower()
    with reading(path, "replace the file", DataError, OSError), open_data(path, "") as file:
        head = file.read(HEAD)
    packed = next((suffix for start, suffix in PACKED.items() if head.startswith(start)), "")
    if head.startswith(OTHERS) or head[257:262] == b"ustar" or (packed and kind in TABLES):
        raise DataError(f"{path}: an archive, or packed in a way that is not read within limits; unpack it")
    if b"\0" in head and not packed and kind not in TABLES:
        raise DataError(f"{path}: a NUL in the text; replace the file")  # the library tries such files as archives
    if kind in TABLES:
        return count_rows(path, f".{kind}")
    with (
        reading(path, "replace the file", DataError, OSError, EOFError, zlib.error),
        open_data(path, packed) as file,
    ):
        return _objects(file, path) if kind == "json" and not whole else _lines(file, path)


def _objects(file: IO[bytes], path: Path) -> int:
    """The rows of a JSON file. Another value than an object, or one of too many levels, would end the process."""
    count = 0
    for row in json_rows(file, path):
        count += 1
        if row.problem or not isinstance(row.value, dict) or nested(row.value, DEPTH):
            found = row.problem or f"{type(row.value).__name__}, or more than {DEPTH} levels"
            raise DataError(f"{path}: row {row.number}: expected a JSON object, found {found}; repair it")
    return count


def _lines(file: IO[bytes], path: Path) -> int:
    size = count = 0
    while line := file.readline(ITEM_BYTES + 1):
        size, count = size + len(line), count + 1
        if len(line) > ITEM_BYTES or size > DECODED_BYTES or count > ROWS:
            raise DataError(
                f"{path}: more than {ROWS} lines, {ITEM_BYTES >> 20} MiB in a line or {DECODED_BYTES >> 20} MiB, which "
                "are the limits; shorten it"
            )
    return count
