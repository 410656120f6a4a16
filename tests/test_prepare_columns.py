"""Tools in Parquet and Arrow, where every object of a column has the fields of all others."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.errors import DataError
from tests.fixtures.data import Stage, talk


def row(tool: str, **arguments: Any) -> dict[str, Any]:
    """A row with one tool and one call of it."""
    call = {"id": f"call_{tool}", "type": "function", "function": {"name": tool, "arguments": arguments}}
    kinds = {name: {"type": type(value).__name__} for name, value in arguments.items()}
    offered = {"name": tool, "parameters": {"type": "object", "properties": kinds}}
    turns = [
        {"role": "user", "content": f"use {tool}"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": call["id"]},
        {"role": "assistant", "content": "five"},
    ]
    return {"messages": turns, "tools": [{"type": "function", "function": offered}]}


ROWS = [row("weather", city="Oslo"), row("add", a=2, b=3)]


def as_is(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path.with_suffix(".parquet"))


def by_datasets(path: Path) -> None:
    """As `Dataset.to_parquet` writes what has no common form: as columns of JSON."""
    from datasets import Dataset

    Dataset.from_list(ROWS, on_mixed_types="use_json").to_parquet(path.with_suffix(".parquet"))


def saved_to_disk(path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS, on_mixed_types="use_json").save_to_disk(path)


def by_lines(path: Path) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS))


@pytest.mark.parametrize("write", [by_lines, as_is, by_datasets, saved_to_disk])
def test_tools_and_calls_are_those_of_their_row_in_every_format(stage: Stage, write: Any) -> None:
    write(stage.data / "rows")
    assert stage.run()["fields_ignored"] == {}
    found = stage.split()
    assert [json.loads(one["tools"]) for one in found] == [one["tools"] for one in ROWS]
    calls = [json.loads(one["messages"][1]["tool_calls"]) for one in found]
    assert calls == [one["messages"][1]["tool_calls"] for one in ROWS]
    assert [one["messages"][2]["tool_call_id"] for one in found] == ["call_weather", "call_add"]


def test_a_null_that_json_writes_stays(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_text(json.dumps(row("find", name=None)))
    stage.run()
    assert '"arguments":{"name":null}' in stage.split()[0]["messages"][1]["tool_calls"]


def test_bad_json_in_a_column_of_json_is_a_bad_row(stage: Stage) -> None:
    turns = [json.dumps(talk(str(n))["messages"]) for n in range(3)]
    kind = pa.json_()
    column = pa.ExtensionArray.from_storage(kind, pa.array([turns[0], "{", turns[2]], pa.string()))
    pq.write_table(pa.Table.from_arrays([column], names=["messages"]), stage.data / "rows.parquet")
    assert [(one["line"], one["reason"]) for one in stage.run()["dropped"]] == [(2, "bad JSON")]
    assert [one["prompt"] for one in stage.split()] == ["0", "2"]


def test_columns_of_one_name_are_refused(stage: Stage) -> None:
    """A join may write them; one of the two would be read without a word."""
    columns = [pa.array(["q"]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["question", "answer", "answer"]), stage.data / "rows.parquet")
    with pytest.raises(DataError, match="expected distinct column names"):
        stage.run()
