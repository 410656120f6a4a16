"""The rows that `prepare` wrote, as messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.rendering.template import Message

Row = tuple[list[Message], list[Any] | None, str]
"""messages, the tools offered, file:row"""


def prepared_rows(path: Path) -> Iterator[Row]:
    """The conversations of a parquet file made by `prepare`, in its order. Raises DataError when it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            columns = [name for name in ("messages", "tools", "source") if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    messages: list[Message] = [
                        {k: v for k, v in turn.items() if v is not None} for turn in row["messages"]
                    ]
                    tools = json.loads(row["tools"]) if row.get("tools") else None
                    yield messages, tools, row["source"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `shadowft prepare` first") from None
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{path}: not readable as prepared data: {' '.join(str(error).split())}") from None
