"""Small data files that hold gigabytes, or what no reader takes."""

import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.errors import CheckpointError, DataError
from shadowft_core.files.rows import read_rows
from shadowft_core.limits import COLUMNS
from shadowft_core.params import Prepare
from shadowft_core.prepare import prepare
from shadowft_core.rendering import stop_ids
from tests.rendering.stock import tokenizer_for
from tests.test_cli import shadowft

ADDRESSES = resource.getrlimit(resource.RLIMIT_AS)
ROW = b'{"question": "q", "answer": "a"'


def repeated(text: str, times: int) -> pa.Table:
    answers = pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array([text]))
    return pa.table({"question": pa.array(["q"] * times), "answer": answers})


def many_turns(path: Path) -> None:
    words = pa.array(["user"]).take(pa.array(np.zeros(3_000_000, np.int8)))
    turns = pa.StructArray.from_arrays([words, words], names=["role", "content"])
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, len(turns)], turns)}), path)


def two_of_a_name(path: Path, name: str = "turn") -> None:
    turns = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["role", "role"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema({name: turns.type})) as writer:
        writer.write_table(pa.table({name: turns}))


def lists(levels: int, opaque: bool = False) -> Callable[[Path], None]:
    """Lists in lists, with an answer beside them."""

    def make(path: Path) -> None:
        kind, value = pa.string(), "x"
        for _ in range(levels):
            kind, value = pa.list_(kind), [value]
        tags = pa.array([value], kind)
        if opaque:
            tags = pa.ExtensionArray.from_storage(pa.opaque(kind, "own", "own"), tags)
        pq.write_table(pa.table({"question": ["q"], "answer": ["a"], "tags": tags}), path)

    return make


def beyond(path: Path) -> None:
    """A text that ends outside of the file."""
    table = pa.table({"question": ["x" * 77], "answer": ["a"]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    before, _, after = path.read_bytes().rpartition(struct.pack("<ii", 0, 77))
    path.write_bytes(before + struct.pack("<ii", 0, 1 << 30) + after)


def long_names(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("x" * 5000, pa.int8())] * 2)):
        pass


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a long text in many rows.parquet": (
        lambda path: pq.write_table(repeated("x" * (15 << 20), 100), path, compression="zstd"),
        "holds more than \\d+ bytes, 100 times its size or 64 MiB",
    ),
    "a long row.parquet": (many_turns, "longer than 16 MiB"),
    "two fields of a name.arrow": (two_of_a_name, "distinct column names in the column turn"),
    "two fields of a name in a long column.arrow": (
        lambda path: two_of_a_name(path, "x" * 5000),
        "in the column x{60}, found",
    ),
    "two long columns of a name.arrow": (long_names, "in the file, found \\['x{198}; rename the columns$"),
    "a deep column.parquet": (lists(100), "column tags[.a-z]* has more than 64 levels"),
    "a column of 65 levels.parquet": (lists(64), "column tags[.a-z]* has more than 64 levels"),
    "a deep column of another type.parquet": (lists(70, opaque=True), "column tags[.a-z]* has more than 64 levels"),
    "a text beyond its end.arrow": (beyond, "not readable as arrow"),
    "many columns.csv": (
        lambda path: path.write_text(",".join(map(str, range(COLUMNS + 1))) + "\n"),
        "10001 columns, the limit is 10000",
    ),
    "many columns.parquet": (
        lambda path: pq.write_table(pa.table({str(number): [1] for number in range(COLUMNS + 1)}), path),
        "10001 columns, the limit is 10000",
    ),
    "many digits.jsonl": (
        lambda path: path.write_bytes(ROW + b', "n": ' + b"9" * 5000 + b"}\n"),
        "a whole number with more digits than Python reads",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_of_gigabytes_is_refused(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / name, None, Prepare(data="-"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_the_first_table_of_a_process_is_read(kind: str, tmp_path: Path) -> None:
    table = pa.table({"question": [f"question {number}" for number in range(20)], "answer": ["a"] * 20})
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "tasks").mkdir()
    done = shadowft(tmp_path, "prepare", "--data", str(file), "--tasks", "tasks", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "20 usable rows" in done.stderr


def test_columns_of_many_levels_are_read_at_once(tmp_path: Path) -> None:
    lists(62)(tmp_path / "rows.parquet")
    begun = time.thread_time()
    assert [row.problem for row in read_rows(tmp_path / "rows.parquet")] == [None]
    assert time.thread_time() - begun < 1
    assert resource.getrlimit(resource.RLIMIT_AS) == ADDRESSES


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (pa.array([1], pa.timestamp("us", "No/Where")), "a value that Python cannot hold: UnknownTimeZoneError"),
        (pa.array([2**62], pa.timestamp("us")), "a value that Python cannot hold: OverflowError"),
        (pa.array(["[" * 100_000], pa.json_()), "bad JSON"),
    ],
)
def test_a_value_that_no_row_can_have_is_a_bad_row(column: pa.Array, problem: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": column}), tmp_path / "rows.parquet")
    assert [row.problem for row in read_rows(tmp_path / "rows.parquet")] == [problem]


@pytest.mark.parametrize("text", ["-1", "400000000", "[7, -1]", "true", '"x"', "{}", "[[1]]"])
def test_an_end_that_is_no_token_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {text}}}')
    with pytest.raises(CheckpointError, match=r"generation_config.json: eos_token_id\S*: Input should be"):
        stop_ids(tokenizer_for("")[0], tmp_path)
