"""Reads the rows that `prepare` wrote, as messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from shadowft_core.errors import DataError
from shadowft_core.rendering.template import Message


class Row(NamedTuple):
    """A prepared row. `source` is file:row. A message with images has `images`, a list of (place, path).

    With `rejected`, the rejected reply, the messages end with the chosen one.
    """

    messages: list[Message]
    tools: list[Any] | None
    source: str
    rejected: Message | None = None


def prepared_rows(path: Path, sample: int | None = None) -> Iterator[Row]:
    """The rows of a parquet file made by `prepare`, in its order. Raises DataError if it cannot be read.

    `sample` limits them to that number of rows, those with the smallest ids. Ids are hashes, so this is a sample.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            known = ("messages", "tools", "source", "images", "rejected")
            columns = [name for name in known if name in file.schema_arrow.names]
            last = None if sample is None else _last_id(file, sample)
            for batch in file.iter_batches(batch_size=1024, columns=columns + ["id"] * (last is not None)):
                chosen = batch if last is None else batch.filter(pc.less_equal(batch.column("id"), last))
                for row in chosen.to_pylist():
                    messages = [_without_nulls(turn) for turn in row["messages"]]
                    if names := row.get("images"):
                        _show(messages, [path.parent / "images" / name for name in names])
                    tools = json.loads(row["tools"]) if row.get("tools") else None
                    rejected = _without_nulls(row["rejected"][-1]) if row.get("rejected") else None
                    yield Row(cast("list[Message]", messages), tools, row["source"], rejected)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `shadowft prepare` first") from None
    except (ValueError, OSError, KeyError) as error:  # of damaged rows, or of a name that is not UTF-8
        raise DataError(
            f"{path}: not readable as prepared data: {' '.join(str(error).split())}; run `shadowft prepare` again"
        ) from None


def _without_nulls(turn: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if value is not None}


def _last_id(file: Any, count: int) -> str | None:
    """The largest of the `count` smallest ids; None if the file has no more than `count` rows."""
    ids = file.read(columns=["id"]).column("id").to_pylist()
    return sorted(ids)[count - 1] if len(ids) > count else None


def shows_images(path: Path) -> bool:
    """Whether a row of a parquet file made by `prepare` has images."""
    import pyarrow.parquet as pq

    if not path.is_file() or "images" not in pq.read_schema(path).names:
        return False
    with pq.ParquetFile(path, pre_buffer=False) as file:
        return any(batch.column(0).null_count < batch.num_rows for batch in file.iter_batches(columns=["images"]))


def _show(messages: list[dict[str, Any]], paths: list[Path]) -> None:
    rest = iter(paths)
    for message in messages:
        if places := message.pop("image_places", None):
            message["images"] = list(zip(places, rest, strict=False))
