"""Hand-over to datatrove and back: files in the format of its writers, and a real run where it is installed."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shadowft_core.params import Prepare
from shadowft_core.prepare import prepare

TALK = [{"role": "user", "content": "How many is 17 and 4?"}, {"role": "assistant", "content": "21"}]
RIGHT = [("How many is 17 and 4?", "21")]


def write(folder: Path, documents: list[dict[str, Any]]) -> Path:
    """A shard as JsonlWriter names and packs it."""
    folder.mkdir()
    with gzip.open(folder / "00000.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in documents)
    return folder


def prepared(data: Path, out: Path, **settings: Any) -> dict[str, Any]:
    prepare(data, None, Prepare(data=str(data), valid=0, max_bad=0.99, **settings), out)
    report: dict[str, Any] = json.loads((out / "data-report.json").read_bytes())
    return report


def pairs(out: Path) -> list[tuple[str, str]]:
    table = pq.read_table(out / "train.parquet")
    return list(zip(table["prompt"].to_pylist(), table["reply"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("document", "columns"),
    [
        ({"text": "the text that was compared", "metadata": {"messages": TALK, "file_path": "/a/b.jsonl"}}, {}),
        ({"text": json.dumps({"messages": TALK}), "metadata": {"file_path": "/a/b.jsonl"}}, {}),
        ({"text": json.dumps({"question": RIGHT[0][0], "answer": "21"})}, {}),
        ({"text": RIGHT[0][0], "metadata": {"output": "21"}}, {"text": "instruction"}),  # text_key="instruction"
        ({"text": "x", "messages": TALK, "file_path": "/a/b.jsonl"}, {}),  # expand_metadata=True
    ],
)
def test_the_row_in_a_document_is_read(tmp_path: Path, document: dict[str, Any], columns: dict[str, str]) -> None:
    data = write(tmp_path / "shards", [{"id": "rows.jsonl/0", **document}])
    report = prepared(data, tmp_path / "out", columns=columns)
    assert pairs(tmp_path / "out") == RIGHT
    assert set(report["fields_ignored"]) <= {"id", "text", "file_path"}


def test_other_documents_are_dropped_with_a_reason(tmp_path: Path) -> None:
    media = [{"id": "1", "type": 0, "url": "http://127.0.0.1/x.png", "media_bytes": None}]
    documents = [
        {"text": "x", "id": "0", "metadata": {"messages": TALK}},
        {"text": "only text", "id": "1", "metadata": {"url": "http://127.0.0.1"}},
        {"text": "only text", "id": "2"},
        {"text": '{"no json', "id": "3", "metadata": {"language": "en"}},
        {"text": "x", "id": "4", "media": media, "metadata": {"messages": TALK}},
    ]
    report = prepared(write(tmp_path / "shards", documents), tmp_path / "out")
    assert report["rows_used"] == 1
    assert report["rows_dropped"] == {"text only: no prompt and no reply": 3, "unsupported field 'media'": 1}


ROWS = [{"messages": [{**TALK[0], "content": f"How many is {i} and {i}?"}, TALK[1]]} for i in range(30)]


def test_datatrove_reads_prepared_rows_and_prepare_reads_its_shards(tmp_path: Path) -> None:
    pytest.importorskip("orjson", reason="datatrove writes JSON with orjson; pip install datatrove orjson")
    pytest.importorskip("datatrove", reason="datatrove is not installed; pip install datatrove orjson")
    from datatrove.pipeline.readers import JsonlReader, ParquetReader
    from datatrove.pipeline.writers import JsonlWriter

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    prepared(tmp_path / "rows.jsonl", tmp_path / "first", near=None)
    reader = ParquetReader(str(tmp_path / "first"), glob_pattern="train.parquet", text_key="prompt")
    writer = JsonlWriter(str(tmp_path / "shards"))
    assert len(list(writer.run(reader.run(), rank=0, world_size=1))) == 30
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000.jsonl.gz"]
    prepared(tmp_path / "shards", tmp_path / "second", near=None)
    ids = [sorted(pq.read_table(tmp_path / name / "train.parquet")["id"].to_pylist()) for name in ("first", "second")]
    assert ids[0] == ids[1]
    found = JsonlReader(str(tmp_path), glob_pattern="rows.jsonl", adapter=as_text).run()
    list(JsonlWriter(str(tmp_path / "raw")).run(found, rank=0, world_size=1))
    prepared(tmp_path / "raw", tmp_path / "third", near=None)
    assert sorted(pq.read_table(tmp_path / "third/train.parquet")["id"].to_pylist()) == ids[0]


def as_text(self: Any, data: dict[str, Any], path: str, number: int) -> dict[str, Any]:
    """An adapter as docs/data.md shows it: the question is compared, the row is kept."""
    return {"text": data["messages"][0]["content"], "id": f"{path}/{number}", "metadata": data}
