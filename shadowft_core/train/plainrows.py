"""The rows of a training as another trainer reads them: parquet files with a column `messages`, none held out."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadowft_core.errors import DataError

COLUMNS = ("id", "messages", "tools", "images", "rejected")
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def write_plain_rows(data: Path, out: Path, replay: bool = True) -> None:
    """Write train.parquet, valid.parquet (if there are such rows) and images/ into `out`, from the splits in `data`.

    dev and test rows stay away: nobody can train on them by mistake. Rows keep their order; with `replay`, the rows of
    replay.parquet follow those of train.parquet. The columns are `COLUMNS`, without those that no row uses, and a
    message has only the fields that some message uses, so that plain conversations have `role` and `content`. `images`
    is a link. dataset_info.json names both files for LLaMA-Factory, as `train` and `valid`.

    Raises DataError if there is no train.parquet, or no row in it.
    """
    splits = {"train": ["train", "replay"] if replay else ["train"], "valid": ["valid"]}
    names = []
    for split, parts in splits.items():
        rows = [row for part in parts for row in _rows(data / f"{part}.parquet", required=part == "train")]
        if rows:
            pq.write_table(pa.Table.from_pylist(_used(rows)), out / f"{split}.parquet")
            names.append(split)
    if "train" not in names:
        raise DataError(f"{data / 'train.parquet'}: no rows to train on; run `shadowft prepare` with more data")
    if (data / "images").is_dir():
        (out / "images").symlink_to((data / "images").resolve())
    info = {
        name: {
            "file_name": f"{name}.parquet",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": TAGS,
        }
        for name in names
    }
    (out / "dataset_info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def _rows(file: Path, required: bool) -> list[dict[str, Any]]:
    if not file.is_file():
        if required:
            raise DataError(f"{file}: no such file; run `shadowft prepare`")
        return []
    found: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return found


def _used(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the columns that some row uses, and messages without the fields that are null."""
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    return [{name: _without_null(row.get(name)) for name in columns} for row in rows]


def _without_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_null(one) for one in value]
    if isinstance(value, dict):
        return {name: one for name, one in value.items() if one is not None}
    return value
