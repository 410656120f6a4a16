"""The benchmark of prepare: it generates the same rows each time."""

from pathlib import Path

from benchmarks.data import write_rows
from shadowft_core.params import Prepare
from shadowft_core.prepare import prepare


def test_the_rows_are_the_same_each_time_and_some_are_repeated_or_test_items(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "rows.jsonl", 3_000_000, tmp_path / name / "tasks")
    one = (tmp_path / "one/rows.jsonl").read_bytes()
    assert one == (tmp_path / "two/rows.jsonl").read_bytes()
    prepare(tmp_path / "one/rows.jsonl", tmp_path / "one/tasks", Prepare(data="-", near=None), tmp_path / "out")
    dropped = (tmp_path / "out/dropped.jsonl").read_text()
    assert 20 < dropped.count("duplicate") < 200
    assert 5 < dropped.count("in a test item") < 200
    assert 800 < len(one) / one.count(b"\n") < 1200
