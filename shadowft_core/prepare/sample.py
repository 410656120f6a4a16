"""Samples rows of a prepared split by their ids, which are hashes, so every run gets the same rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shadowft_core.errors import DataError
from shadowft_core.files import read_json_object
from shadowft_core.prepare.turns import Message

BATCH = 1024  # rows held as objects
_COLUMNS = ("id", "messages", "tools", "source", "rejected")


def read_report(folder: Path) -> dict[str, Any]:
    """Read data-report.json of a folder made by `prepare`. Raises DataError for any other folder."""
    path = folder / "data-report.json"
    if not path.is_file():
        raise DataError(
            f"{folder}: expected a folder made by `prepare`, found no data-report.json; run `shadowft prepare`, in a "
            "workspace `dvc repro prepare`"
        )
    return read_json_object(path)


def sampled_rows(path: Path, count: int) -> Iterator[dict[str, Any]]:
    """The fields source, messages, tools and rejected of the `count` rows with the smallest ids, in the file's order.

    Raises DataError if the file cannot be read.
    """
    try:
        ids = pq.read_table(path, columns=["id"]).column("id")
        chosen = pc.take(ids, pc.select_k_unstable(ids, min(count, len(ids)), [("", "ascending")])) if len(ids) else ids
        with pq.ParquetFile(path, pre_buffer=False) as file:
            known = [name for name in _COLUMNS if name in file.schema_arrow.names]  # older folders lack `rejected`
            for batch in file.iter_batches(batch_size=BATCH, columns=known):
                for row in batch.filter(pc.is_in(batch.column("id"), chosen.combine_chunks())).to_pylist():
                    yield {
                        "source": row["source"],
                        "messages": _without_nulls(row["messages"]),
                        "tools": json.loads(row["tools"]) if row["tools"] else None,
                        "rejected": _without_nulls(row["rejected"]) if row.get("rejected") else None,
                    }
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(
            f"{path}: not readable as prepared data: {' '.join(str(error).split())}; run `shadowft prepare` again"
        ) from None


def _without_nulls(turns: list[Message]) -> list[Message]:
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]
