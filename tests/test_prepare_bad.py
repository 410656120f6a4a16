"""Bad files and rows: a bad row is counted with its file and line, a bad file is refused and leaves no output."""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from shadowft_core.errors import DataError
from shadowft_core.files.rows import read_rows
from shadowft_core.params import Prepare
from shadowft_core.prepare.files import data_files
from tests.fixtures.data import Stage, lines, talk

GOOD = lines([talk("one"), talk("two")])
HEAD = b"question,answer\n"


def user(**marks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"} | marks, {"role": "assistant", "content": "a"}]}


def call(arguments: Any, *, key: str = "tool_calls") -> dict[str, Any]:
    asked, said = talk("q")["messages"]
    one = {"function": {"name": "f", "arguments": arguments}}
    return {"messages": [asked, {"role": "assistant", key: [one]}, {"role": "tool", "content": "2"}, said]}


DEEP = "[" * 980 + "]" * 980
ROWS: dict[str, tuple[Any, str]] = {
    "100,000 levels": (b'{"question": ' + b"[" * 100_000, "nested too deeply"),
    "990 levels in a call": (call(f'{{"x": {DEEP}}}'), "'tool_calls' is no JSON"),
    "10,000 digits": (b'{"question": "a", "answer": "b", "n": ' + b"1" * 10_000 + b"}", "a whole number with more"),
    "infinity": (b'{"question": "a", "answer": "b", "n": -Infinity}', "-Infinity is not JSON"),
    "duplicate key deep inside": (b'{"question": "a", "answer": "b", "n": [{"k": 1, "k": 1}]}', "duplicate key"),
    "duplicate key behind a backslash": (b'{"question": "a", "c\\\\": 1, "d": 2, "d": 3}', "duplicate key"),
    "not UTF-8 in the middle": (b'{"question": "a\xe9", "answer": "b"}', "invalid UTF-8"),
    "a raw NUL": (b'{"question": "a\0", "answer": "b"}', "bad JSON"),
    "CR line ends": (GOOD.replace(b"\n", b"\r"), "bad JSON: CR inside the line, expected LF or CRLF at line ends"),
    "surrogate in a call": (call({"x": "\ud800"}), "'tool_calls' is no JSON"),
    "surrogate in the text of a call": (call('{"x": "\\ud800"}'), "'tool_calls' is no JSON"),
    "surrogate in tools": (talk("q") | {"tools": [{"name": "\udfff"}]}, "'tools' is no JSON"),
    "NaN in a call": (call('{"x": NaN}'), "'arguments' is no JSON"),
    "duplicate key in tools": (talk("q") | {"tools": '[{"name": "f", "name": "g"}]'}, "field 'tools' is no JSON"),
    "a call of the user": (user(tool_calls=[{"function": {"name": "f"}}]), "a tool call that is not the assistant's"),
    "a call alone": ({"messages": call({})["messages"][1:2]}, "no user turn"),
    "a call first": ({"messages": call({})["messages"][1:] + talk("q")["messages"]}, "the first turn"),
    "a call without an answer": ({"messages": call({})["messages"][:3]}, "last turn is not the assistant's"),
    "history of text": ({"instruction": "q", "output": "a", "history": "p"}, "field 'history' is not a list"),
    "history of threes": ({"instruction": "q", "output": "a", "history": [["p", "o", "n"]]}, "field 'history' is no"),
    "empty history turn": ({"instruction": "q", "output": "a", "history": [["p", ""]]}, "empty 'history'"),
    "a role of two lines": ({"messages": [{"role": "a\nb", "content": "x"}]}, r"unsupported role 'a\nb'"),
    "a role of a megabyte": ({"messages": [{"role": "x" * (1 << 20), "content": "x"}]}, "unsupported role 'xxx"),
    "surrogate in a field's name": ({"\ud800": "x"}, r"no known fields among \ud800"),
    "nothing to learn": (user(weight=1) | {"messages": [*talk("q")["messages"][:1],
                         {"role": "assistant", "content": "a", "weight": 0}]}, "every reply has weight 0"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), ROWS.values(), ids=ROWS)
def test_a_bad_row_is_counted(stage: Stage, row: Any, reason: str) -> None:
    text = row if isinstance(row, bytes) else json.dumps(row).encode()
    (stage.data / "rows.jsonl").write_bytes(GOOD + text + b"\n" + lines([talk("three")]))
    report = stage.run()
    (dropped,) = stage.dropped()
    assert (dropped["file"], dropped["line"]) == ("rows.jsonl", 3)
    assert dropped["reason"].startswith(reason), dropped["reason"]
    assert len(dropped["reason"]) < 300
    assert (report["rows_read"], report["rows_used"]) == (4, 3)


USED: dict[str, Callable[[Path], Any]] = {
    "5 MB row": lambda data: (data / "x.jsonl").write_bytes(lines([talk("many words " * 450_000)])),
    "200,000 letters without a blank": lambda data: (data / "x.jsonl").write_bytes(lines([talk("a" * 200_000)])),
    "BOM": lambda data: (data / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + lines([talk("bom")])),
    "BOM in CSV": lambda data: (data / "x.csv").write_bytes(b"\xef\xbb\xbf" + HEAD + b"bom,a\n"),
    "CRLF and LF": lambda data: (data / "x.jsonl").write_bytes(b"\r\n\n" + lines([talk("crlf")])[:-1] + b"\r\n"),
    "upper case": lambda data: (data / "X.JSONL").write_bytes(lines([talk("upper")])),
    "quoted newline": lambda data: (data / "x.csv").write_bytes(HEAD + b'"two\nlines",a\n'),
    "CR line ends in CSV": lambda data: (data / "x.csv").write_bytes(b"question,answer\rcr,a\r"),
    "surrogates in fields that are not read": lambda data: (data / "x.jsonl").write_bytes(
        lines([talk("kept") | {"\ud800": "\ud801", "conversation_id": "\ud802"}])),
    "a folder with a data name": lambda data: [(data / "x.jsonl").mkdir(), (data / "x.jsonl/y.jsonl").write_bytes(
        lines([talk("folder")]))],
    "gzip of two members": lambda data: (data / "x.csv.gz").write_bytes(gzip.compress(HEAD) + gzip.compress(b"q,a\n")),
    "zstd of two frames": lambda data: (data / "x.csv.zst").write_bytes(
        zstandard.compress(HEAD) + zstandard.compress(b"q,a\n")),
    "more than 64 bits": lambda data: (data / "x.jsonl").write_bytes(lines([call({"x": 2**70})])),
    "Arrow stream": lambda data: arrow(data / "x.arrow", pa.ipc.new_stream),
    "Arrow file": lambda data: arrow(data / "x.arrow", pa.ipc.new_file),
    "columns that are not text": lambda data: pq.write_table(odd(), data / "x.parquet"),
}  # fmt: skip


def arrow(path: Path, writer: Any) -> None:
    table = pa.Table.from_pylist([{"question": "q", "answer": "a"}])
    with pa.OSFile(str(path), "wb") as file, writer(file, table.schema) as into:
        into.write_table(table)


def odd(question: Any = None) -> pa.Table:
    """A row with fields that are not read: a map, a decimal, bytes and a time."""
    from datetime import datetime
    from decimal import Decimal

    return pa.table({
        "question": pa.array(["q"]) if question is None else question, "answer": ["a"],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "decimal": [Decimal("1.5")],
        "bytes": [b"\xff"], "time": [datetime(2020, 1, 1)], "many": [[{"k": [1.5]}]],
    })  # fmt: skip


@pytest.mark.parametrize("write", USED.values(), ids=USED)
def test_an_unusual_row_is_used(stage: Stage, write: Callable[[Path], Any]) -> None:
    (stage.data / "a.jsonl").write_bytes(GOOD)
    write(stage.data)
    started = time.process_time()
    report = stage.run(Prepare(data="-", valid=0))
    assert (report["rows_read"], report["rows_used"], len(report["files"])) == (3, 3, 2)
    assert time.process_time() - started < 10


FILES: dict[str, tuple[str, bytes, str]] = {
    "truncated gzip": ("x.jsonl.gz", gzip.compress(GOOD)[:-20], "x.jsonl.gz: not readable: Compressed file ended"),
    "truncated gzip of CSV": ("x.csv.gz", gzip.compress(HEAD + b"a,b\n")[:-9], "x.csv.gz: not readable: Compressed"),
    "damaged gzip": ("x.jsonl.gz", gzip.compress(GOOD)[:10] + b"\xff" * 30, "x.jsonl.gz: not readable: Error -3"),
    "no gzip": ("x.jsonl.gz", GOOD, "x.jsonl.gz: not readable: Not a gzipped file"),
    "truncated zstd": ("x.csv.zst", zstandard.compress(HEAD)[:-2], "x.csv.zst: not readable: Truncated"),
    "no zstd": ("x.jsonl.zst", GOOD, "x.jsonl.zst: not readable: ZSTD"),
    "LFS pointer": ("x.csv", b"version https://git-lfs.github.com/spec/v1\n", "x.csv: expected CSV, found a Git LFS"),
    "LFS pointer in Parquet's place": (
        "x.parquet",
        b"version https://git-lfs.github.com/spec/v1\n",
        "a Git LFS pointer",
    ),
    "UTF-16": ("x.tsv", "question\tanswer\n".encode("utf-16"), "x.tsv: expected CSV, found UTF-16"),
    "HTML": ("x.csv", b"\n <!DOCTYPE html><p>Sign in", "x.csv: expected CSV, found an HTML page"),
    "deep nesting": ("x.json", b'[{"a": ' + b"[" * 100_000, "x.json: row 1 is nested too deeply"),
    "an array cut off": ("x.json", b'[{"a": 1}', "x.json: row 1 is followed by neither"),
    "an array of 17 MiB in one row": ("x.json", b'["' + b"a" * (17 << 20), "x.json: row 1 is longer than 16 MiB"),
    "an open quote": ("x.csv", HEAD + b'"a,b\n', "x.csv: line 2: not readable as CSV: unexpected end of data"),
    "a column twice": ("x.csv", b"question,question\n", "x.csv: line 1: expected distinct column names"),
    "a long line of CSV": ("x.csv", HEAD + b"," * (17 << 20), "x.csv: line 2 is longer than 16 MiB"),
    "Parquet cut off": ("x.parquet", b"PAR1" + b"\0" * 100, "x.parquet: not readable as parquet"),
    "Arrow cut off": ("x.arrow", b"ARROW1\0\0" + b"\0" * 100, "x.arrow: not readable as arrow"),
    "empty Arrow": ("x.arrow", b"", "x.arrow: not readable as arrow"),
}


@pytest.mark.parametrize(("name", "content", "message"), FILES.values(), ids=FILES)
def test_a_bad_file_is_refused_in_one_line(stage: Stage, name: str, content: bytes, message: str) -> None:
    (stage.data / "a.jsonl").write_bytes(GOOD)
    (stage.data / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        stage.run()
    assert message in str(caught.value)
    assert str(stage.data / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in stage.data.parent.iterdir()) == ["data", "tasks"]


PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (lambda data: os.mkfifo(data / "x.jsonl"), "x.jsonl: expected a file, found a pipe, socket or device"),
    "a loop of links": (lambda data: (data / "x.jsonl").symlink_to("x.jsonl"), "found a link that leads to no file"),
    "a link to nothing": (lambda data: (data / "x.csv").symlink_to("gone"), "found a link that leads to no file"),
    "a link to a folder": (lambda data: (data / "x.json").symlink_to(".."), "found a link that leads to no file"),
    "no permission": (lambda data: (data / "x.jsonl").symlink_to("/proc/self/mem"), "x.jsonl: not readable: [Errno 5]"),
    "a name that is no UTF-8": (lambda data: Path(os.fsdecode(os.fsencode(data) + b"/\xff.jsonl")).write_bytes(GOOD),
                                "expected a file name in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), PLACES.values(), ids=PLACES)
def test_a_path_that_is_not_a_file_is_refused(stage: Stage, make: Callable[[Path], Any], message: str) -> None:
    (stage.data / "a.jsonl").write_bytes(GOOD)
    make(stage.data)
    with pytest.raises(DataError) as caught:
        stage.run()
    assert message in str(caught.value)
    assert not stage.out.exists()


def test_rows_of_csv_and_parquet_are_counted_too(stage: Stage) -> None:
    (stage.data / "a.jsonl").write_bytes(GOOD)
    (stage.data / "b.csv").write_bytes(HEAD + b'"x\ny",b,c\none cell\n\nq,\xff\nq\0,b\n')
    far = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.concat_tables([odd(), odd(pa.array(["r"]))]).append_column("far", pa.chunked_array([far, far])),
                   stage.data / "c.parquet")  # fmt: skip
    pq.write_table(odd(pa.array([b"bytes"])), stage.data / "d.parquet")
    pq.write_table(odd().append_column("tools", odd()["map"]), stage.data / "e.parquet")
    stage.run()
    cells = "the number of cells is not that of the columns"
    assert [(one["file"], one["line"], one["reason"]) for one in stage.dropped()] == [
        ("b.csv", 3, cells), ("b.csv", 4, cells), ("b.csv", 6, "invalid UTF-8"), ("b.csv", 7, "NUL in 'question'"),
        ("c.parquet", 1, "a value that Python cannot hold: OverflowError"),
        ("c.parquet", 2, "a value that Python cannot hold: OverflowError"),
        ("d.parquet", 1, "field 'question' is not text"), ("e.parquet", 1, "field 'tools' is no list of objects"),
    ]  # fmt: skip


def test_saved_datasets_are_read_without_their_caches(stage: Stage) -> None:
    import datasets

    one = datasets.Dataset.from_list([{"question": "one", "answer": "a"}])
    datasets.DatasetDict({"train": one, "test": one.map(lambda row: {"question": "two"})}).save_to_disk(
        stage.data / "set"
    )
    (stage.data / "set/train/cache-1.arrow").write_bytes(b"stale")
    report = stage.run()
    assert [file["file"] for file in report["files"]] == [
        f"set/{name}/data-00000-of-00001.arrow" for name in ("test", "train")
    ]
    assert report["files_not_read"] == ["set/train/cache-1.arrow"]


@pytest.mark.parametrize("content", [GOOD + GOOD, GOOD], ids=["longer", "of the same size"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    rows = read_rows(path)
    next(rows)
    path.write_bytes(content)
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"rows\.jsonl: changed while it was read"):
        list(rows)


def test_a_folder_of_many_files_is_listed_in_seconds(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number}.{'txt' if number % 2 else 'jsonl'}").touch()
    started = time.process_time()
    read, others = data_files(tmp_path)
    assert (len(read), len(others)) == (5000, 5000)
    assert time.process_time() - started < 5


def test_files_of_one_name_and_empty_files_are_listed_apart(stage: Stage) -> None:
    for folder in ("a", "b", "c"):
        (stage.data / folder).mkdir()
        (stage.data / folder / "rows.jsonl").write_bytes(b"" if folder == "c" else lines([talk(folder), {}]))
    report = stage.run()
    assert [(one["file"], one["usable"], one["bad"]) for one in report["files"]] == [
        ("a/rows.jsonl", 1, 1), ("b/rows.jsonl", 1, 1), ("c/rows.jsonl", 0, 0),
    ]  # fmt: skip
    assert {row["source"] for row in stage.split()} == {"a/rows.jsonl:1", "b/rows.jsonl:1"}
