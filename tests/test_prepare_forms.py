"""Every form of data file, and what a row says beside its question and answer."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shadowft_core.errors import DataError
from shadowft_core.params import Prepare
from shadowft_core.prepare import prepare
from tests.fixtures.data import Stage, lines, talk

FORMS = {
    "rows.jsonl": b"%s\n%s\n",
    "rows.NDJSON": b"%s\n\n%s",
    "rows.json": b"[%s,\n%s]",
    "pretty.jsonl": None,
    "wrapped.json": None,
    "rows.csv": b'question,answer,note\r\n"one, two",a,\r\nthree,b,n\r\n',
    "rows.tsv": b"question\tanswer\none, two\ta\nthree\tb\n",
    "rows.jsonl.gz": b"%s\n%s\n",
    "rows.json.zst": b"[%s, %s]",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_is_read(stage: Stage, name: str) -> None:
    import gzip

    import zstandard

    rows = [{"question": "one, two", "answer": "a"}, {"question": "three", "answer": "b"}]
    packers = {".gz": gzip.compress, ".zst": zstandard.compress}
    content = FORMS[name]
    if name.startswith("pretty"):
        content = "\n".join(json.dumps(row, indent=2) for row in rows).encode()
    elif name.startswith("wrapped"):
        content = json.dumps({"data": rows, "version": 1}, indent=1).encode()
    elif b"%s" in content:
        content %= tuple(json.dumps(row).encode() for row in rows)
    path = stage.data / name
    path.write_bytes(packers.get(path.suffix, bytes)(content))
    report = stage.run()
    assert [(row["prompt"], row["reply"]) for row in stage.split()] == [("one, two", "a"), ("three", "b")]
    assert report["rows_read"] == report["rows_used"] == 2


def test_saved_datasets_and_subfolders_are_read_and_other_files_named(stage: Stage) -> None:
    import datasets

    datasets.Dataset.from_list([{"question": "saved", "answer": "a"}]).save_to_disk(stage.data / "saved")
    (stage.data / "deep/er").mkdir(parents=True)
    (stage.data / "deep/er/rows.jsonl").write_bytes(lines([talk("deep")]))
    (stage.data / "notes.txt").write_text("x")
    report = stage.run()
    assert {row["source"].split(":")[0]: row["prompt"] for row in stage.split()} == {
        "deep/er/rows.jsonl": "deep",
        "saved/data-00000-of-00001.arrow": "saved",
    }
    assert report["files_not_read"] == ["notes.txt"]


def test_only_hidden_files_and_the_caches_of_saved_datasets_are_not_read(stage: Stage) -> None:
    """Elsewhere a name that the datasets library uses is that of a data file."""
    import pyarrow as pa

    for folder in (".git", "a", "b"):
        (stage.data / folder).mkdir()
    (stage.data / ".git/rows.jsonl").write_bytes(lines([talk("hidden")]))
    (stage.data / "a/state.json").write_bytes(lines([talk("state")]))
    table = pa.Table.from_pylist([{"question": "cache", "answer": "a"}])
    with pa.ipc.new_file(str(stage.data / "b/cache-1.arrow"), table.schema) as file:
        file.write_table(table)
    report = stage.run()
    assert [row["prompt"] for row in stage.split()] == ["state", "cache"]
    assert report["files_not_read"] == [".git/rows.jsonl"]


@pytest.mark.parametrize("key", ["data", "rows", "examples", "instances"])
def test_an_object_that_holds_a_list_of_rows_stands_for_them(stage: Stage, key: str) -> None:
    (stage.data / "rows.json").write_text(json.dumps({"version": 1, key: [talk("one"), talk("two")]}, indent=1))
    stage.run()
    assert [(row["prompt"], row["source"]) for row in stage.split()] == [("one", "rows.json:1"), ("two", "rows.json:2")]


NOT_DATA = {
    "a Git LFS pointer, not the data; run `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid 1\n",
    "UTF-16; save the file as UTF-8": "[1]".encode("utf-16"),
    "UTF-16; save the file as UTF-8, big endian": b"\xfe\xff" + "[1]".encode("utf-16-be"),
    "an HTML page, not the data": b"<!DOCTYPE html><html>no access</html>",
    "a parquet file; name it *.parquet": b"PAR1....",
    "a gzip file; name it *.gz": b"\x1f\x8b....",
}


@pytest.mark.parametrize(("message", "content"), NOT_DATA.items(), ids=NOT_DATA)
def test_what_is_no_json_is_named(stage: Stage, message: str, content: bytes) -> None:
    (stage.data / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=f"rows.jsonl: expected JSON, found {message[:20]}"):
        stage.run()


def test_a_first_line_that_is_cut_off_is_one_bad_row(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(b'{"question": "cut\n' + lines([talk("one"), talk("two")]))
    assert [(one["line"], one["reason"]) for one in stage.run()["dropped"]] == [(1, "bad JSON")]


USED = {
    "thought in a field": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "t"}]},
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "t"}],
    ),
    "thought in the text": (
        {"question": "q", "answer": "<think>\nt\n</think>\n\na"},
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "t"}],
    ),
    "weight": (
        {"messages": [*talk("q", "a")["messages"][:1], {"role": "assistant", "content": "a", "loss": False},
                      *talk("r", "b")["messages"]]},
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0},
         {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}],
    ),
    "an empty thought": ({"question": "q", "answer": "<think>\n\n</think>\n\na"}, talk("q", "a")["messages"]),
    "roles in capitals": (
        {"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]}, talk("q", "a")["messages"],
    ),
    "two calls and their results": (
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "tool_calls": [{"function": {"name": name}} for name in "fg"]},
                      {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"},
                      {"role": "assistant", "content": "a"}]},
        [{"role": "user", "content": "q"},
         {"role": "assistant", "content": "",
          "tool_calls": '[{"function":{"arguments":{},"name":"f"},"type":"function"},'
                        '{"function":{"arguments":{},"name":"g"},"type":"function"}]'},
         {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "a"}],
    ),
    "call of an older form": (
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
                      {"role": "function", "name": "f", "content": "2"}, {"role": "assistant", "content": "a"}]},
        [{"role": "user", "content": "q"},
         {"role": "assistant", "content": "",
          "tool_calls": '[{"function":{"arguments":{"x":1},"name":"f"},"type":"function"}]'},
         {"role": "tool", "name": "f", "content": "2"}, {"role": "assistant", "content": "a"}],
    ),
    "call in ShareGPT's roles": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f"}'},
                           {"from": "observation", "value": "2"}, {"from": "gpt", "value": "a"}]},
        [{"role": "user", "content": "q"},
         {"role": "assistant", "content": "",
          "tool_calls": '[{"function":{"arguments":{},"name":"f"},"type":"function"}]'},
         {"role": "tool", "content": "2"}, {"role": "assistant", "content": "a"}],
    ),
    "choices": ({"question": "q", "choices": ["x", "y"], "answer": "B"}, talk("q\nA. x\nB. y", "B")["messages"]),
    "context": ({"instruction": "q", "context": "c", "response": "a"}, talk("q\nc", "a")["messages"]),
    "history": (
        {"instruction": "q", "output": "a", "history": [["p", "o"]]},
        [*talk("p", "o")["messages"], *talk("q", "a")["messages"]],
    ),
    "preference": ({"prompt": "q", "chosen": "a", "rejected": "b"}, talk("q", "a")["messages"]),
    "preference of turns": (
        {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "a"}],
         "rejected": [{"role": "assistant", "content": "b"}]},
        talk("q", "a")["messages"],
    ),
    "desired": ({"prompt": "q", "completion": "a", "label": True}, talk("q", "a")["messages"]),
}  # fmt: skip


USED |= {
    f"reply with {name} false": (
        {"messages": [*talk("q", "a")["messages"][:1], {"role": "assistant", "content": "a", name: False},
                      *talk("r", "b")["messages"]]},
        USED["weight"][1],
    )
    for name in ("weight", "train", "training")
} | {
    f"thought in {name}": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", name: "t"}]},
        USED["thought in a field"][1],
    )
    for name in ("reasoning_content", "thinking")
}  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), USED.values(), ids=USED)
def test_what_a_row_says_is_used(stage: Stage, given: dict[str, Any], expected: list[Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([given]))
    assert stage.run()["fields_ignored"] == {}
    assert stage.split()[0]["messages"] == expected


def test_several_files_and_folders_are_read_together(stage: Stage, tmp_path: Path) -> None:
    folder, file = tmp_path / "more", tmp_path / "rows.csv"
    folder.mkdir()
    (folder / "rows.csv").write_text("question,answer\none,a\n")
    (folder / "notes.txt").write_text("not data")
    file.write_text("question,answer\ntwo,b\nthree,\n")
    settings = Prepare(data="-", valid=0, max_bad=0.5)
    prepare([folder, file], None, settings, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/train.parquet").column("source").to_pylist() == [
        "more/rows.csv:2",
        "rows.csv:2",
    ]
    report = json.loads((tmp_path / "out/data-report.json").read_text())
    assert [one["file"] for one in report["files"]] == ["more/rows.csv", "rows.csv"]
    assert report["files_not_read"] == ["more/notes.txt"]
    assert [one["file"] for one in report["dropped"]] == ["rows.csv"]
    with pytest.raises(DataError, match=r"two are called rows\.csv, .*; put them into one folder"):
        prepare([folder / "rows.csv", file], None, settings, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_option_data_may_be_repeated(shadowft: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": name, "answer": "a"}) + "\n")
    words = [word for name in ("one", "two") for word in ("--data", tmp_path / f"{name}.jsonl")]
    done = shadowft("prepare", *words, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out/data-report.json").read_text())["rows_used"] == 2
