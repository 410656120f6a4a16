"""Data files of tasks, checked before the harness reads them, which it does without limits."""

import glob
import os
import zlib
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError, EvaluationError
from shadowft_core.files import open_regular, reading
from shadowft_core.files.rows import open_data
from shadowft_core.files.tables import count_rows
from shadowft_core.limits import DECODED_BYTES, ITEM_BYTES, ROWS
from shadowft_core.suites.configs import LOCAL

TABLES = ("parquet", "arrow")
PACKED = {None: "", "gzip": ".gz", "zstd": ".zst"}  # by the library's name of what a file begins as


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


def require_rows(name: str, file: str, kind: str) -> None:
    """Raise EvaluationError for data files that are missing, empty (as a split of share 0 is), or beyond a limit.

    `kind` is the `dataset_path` of the task.
    """
    paths = [Path(file)] if Path(file).is_file() else [Path(found) for found in sorted(glob.glob(file))]
    if not paths:
        raise EvaluationError(f"task {name}: {file}: no such data file; correct data_files or run `shadowft prepare`")
    try:
        counts = [_rows(path, kind) for path in paths]
    except DataError as error:
        raise EvaluationError(f"task {name}: {error}") from None
    if not any(counts):
        raise EvaluationError(
            f"task {name}: {file}: has no rows, expected 1 or more; for held-out rows raise prepare.dev or prepare.test"
        )


def _rows(path: Path, kind: str) -> int:
    """The rows of a table, the lines of a text. Raises DataError for what is beyond a limit."""
    from datasets.utils.extract import Extractor

    os.close(open_regular(path, DataError))
    packed = Extractor.infer_extractor_format(path)
    kind = kind if kind in LOCAL else path.suffix[1:].lower()
    if packed not in PACKED or (packed and kind in TABLES):
        raise DataError(f"{path}: a {packed} file, which the harness cannot read within limits; unpack it")
    if kind in TABLES:
        return count_rows(path, f".{kind}")
    size = count = 0
    with (
        open_data(path, PACKED[packed]) as file,
        reading(path, "replace the file", DataError, OSError, EOFError, zlib.error),
    ):
        while line := file.readline(ITEM_BYTES + 1):
            size, count = size + len(line), count + 1
            if len(line) > ITEM_BYTES or size > DECODED_BYTES or count > ROWS:
                raise DataError(
                    f"{path}: more than {ROWS} lines, {ITEM_BYTES >> 20} MiB in a line or {DECODED_BYTES >> 20} MiB, "
                    "which are the limits; shorten it"
                )
    return count
