"""Data files of every supported shape and format, and every kind of bad row or file."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.errors import DataError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.files.rows import read_rows
from shadowft_core.limits import ROW_BYTES
from tests.fixtures.data import Stage, lines, talk
from tests.fixtures.memory import traced

SYSTEM = {"role": "system", "content": "Be kind."}
SHAPES = {
    "messages": (talk("hi"), [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "fine"}]),
    "system turn": ({"messages": [SYSTEM, *talk("hi")["messages"]]}, [SYSTEM, *talk("hi")["messages"]]),
    "sharegpt": (
        {"system": "Be kind.", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "fine"}]},
        [SYSTEM, *talk("hi")["messages"]],
    ),
    "no tools": (
        {"tools": "[]", "conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "fine"}]},
        talk("hi")["messages"],
    ),
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, talk("Add.\n1 2", "3")["messages"]),
    "alpaca, no input": ({"instruction": "hi", "input": "", "output": "fine"}, talk("hi")["messages"]),
    "question/answer": ({"question": "hi", "answer": "fine"}, talk("hi")["messages"]),
    "prompt/response": ({"prompt": "hi", "response": "fine"}, talk("hi")["messages"]),
    "CRLF": (talk("a\r\nb", "c\r\nd"), talk("a\nb", "c\nd")["messages"]),
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "json with BOM", "parquet"])
@pytest.mark.parametrize(("given", "expected"), SHAPES.values(), ids=SHAPES)
def test_every_shape_in_every_format(stage: Stage, given: dict[str, Any], expected: list[Any], kind: str) -> None:
    path = stage.data / f"rows.{kind.split(maxsplit=1)[0]}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([given]), path)
    elif kind == "jsonl":
        path.write_bytes(json.dumps(given).encode())  # without a final newline
    else:
        path.write_bytes(b"\xef\xbb\xbf" * kind.endswith("BOM") + json.dumps([given], indent=1).encode())
    report = stage.run()
    assert report["bad"] == 0
    (row,) = stage.split()
    assert row["messages"] == expected
    assert f"sha256:{row['id']}" == bytes_digest(canonical_json(expected))
    assert row["source"] == f"{path.name}:1"
    system = [turn["content"] for turn in expected if turn["role"] == "system"]
    assert row["prompt"] == "\n\n".join([*system, expected[len(system)]["content"]])
    assert row["reply"] == expected[-1]["content"]


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


BAD = {
    "bad JSON": b'{"messages": [',
    "invalid UTF-8": b'{"question": "\xff", "answer": "x"}',
    "duplicate key": b'{"question": "a", "question": "b", "answer": "c"}',
    "NaN is not JSON": b'{"question": "a", "answer": "c", "score": NaN}',
    "nested too deeply": b"[" * 200_000,
    "expected a JSON object, found a list": b'["question", "answer"]',
    "text only: no prompt and no reply": b'{"text": "no conversation"}',
    "no known fields among Frage; map them with prepare.columns": b'{"Frage": "a"}',
    "no reply beside 'question'": b'{"question": "a"}',
    "no question beside 'chosen'": b'{"chosen": "a", "rejected": "b"}',
    "headings Human: and Assistant: in 'chosen': split": (
        b'{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", "rejected": "\\n\\nHuman: q\\n\\nAssistant: b"}'
    ),
    "empty 'output'": b'{"instruction": "a", "output": ""}',
    "empty 'question'": b'{"question": null, "answer": "a"}',
    "empty 'messages'": b'{"messages": [], "source": "x"}',
    "field 'answer' is not text": b'{"question": "a", "answer": 3}',
    "empty 'answer'": b'{"question": "a", "answer": " \\n"}',
    "NUL in 'question'": b'{"question": "a\\u0000", "answer": "b"}',
    "lone surrogate in 'question'": b'{"question": "\\ud83d", "answer": "b"}',
    "field 'messages' is text, not a list of turns": b'{"messages": "hi"}',
    "a turn of 'messages' has neither 'role' nor 'from'": b'{"messages": [{"content": "x"}]}',
    "a turn of 'messages' has no 'content'": b'{"messages": [{"role": "user"}]}',
    "unsupported role 'judge'": b'{"messages": [{"role": "judge", "content": "x"}]}',
    "a tool call has no name": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [1]}]}'
    ),
    "field 'tools' is no JSON": b'{"question": "a", "answer": "b", "tools": "[f"}',
    "field 'history' is no list of pairs": b'{"instruction": "a", "output": "b", "history": ["c", "d"]}',
    "marked as undesired: 'label' is false": b'{"prompt": "a", "completion": "b", "label": false}',
    "unsupported field 'audio'": b'{"question": "a", "answer": "b", "audio": "x.wav"}',
    "unsupported field 'videos' of a turn": (
        b'{"messages": [{"role": "user", "content": "a", "videos": ["x"]}, {"role": "assistant", "content": "b"}]}'
    ),
    "unsupported part 'input_audio' of 'content'": (
        b'{"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, {"role": "assistant", "content": "b"}]}'
    ),
    "unsupported weight 0.5: expected 0 or 1": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}'
    ),
    "every reply has weight 0": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": false}]}'
    ),
    "invisible 'answer'": b'{"question": "a", "answer": "\\u200b\\u200b"}',
    "a reply that is only a thought": b'{"question": "a", "answer": "<think>b</think>"}',
    "no user turn": json.dumps(turns("system")).encode(),
    "user and assistant do not alternate": json.dumps(turns("user", "user", "assistant")).encode(),
    "last turn is not the assistant's": json.dumps(turns("user", "assistant", "user")).encode(),
    "longer than 16 MiB": b'{"question": "' + b"x" * (17 << 20) + b'", "answer": "b"}',
}


@pytest.mark.parametrize(("reason", "line"), BAD.items(), ids=BAD)
def test_a_bad_row_is_counted_with_its_line_and_reason(stage: Stage, reason: str, line: bytes) -> None:
    good = [json.dumps(talk(f"question {n}")).encode() for n in range(4)]
    (stage.data / "rows.jsonl").write_bytes(b"\n".join([good[0], good[1], line, b"", good[2], good[3]]))
    report = stage.run()
    (refused,) = report["dropped"]
    assert (refused["file"], refused["line"]) == ("rows.jsonl", 3)
    assert refused["reason"].startswith(reason)
    assert report["rows_dropped"] == {refused["reason"]: 1}
    assert (report["rows_read"], report["splits"]["train"]) == (5, 4)
    assert {row["source"] for row in stage.split()} == {f"rows.jsonl:{n}" for n in (1, 2, 5, 6)}


def test_a_bad_element_of_an_array_is_one_bad_row(stage: Stage) -> None:
    (stage.data / "rows.json").write_text(
        f'[{json.dumps(talk("one"))}, {{"question": 1, "question": 2}}, NaN, {json.dumps(talk("two"))}]'
    )
    report = stage.run()
    assert [(one["line"], one["reason"]) for one in report["dropped"]] == [(2, "duplicate key"), (3, "NaN is not JSON")]
    assert report["splits"]["train"] == 2


UNREADABLE = {
    "expected data files, .json": {},
    "expected rows, found none": {"rows.jsonl": b""},
    "none of 2 rows is usable: rows.jsonl:1 bad JSON (2 rows)": {"rows.jsonl": b"{x\n}}\n"},
    "all 3 usable rows are the same conversation": {"rows.jsonl": lines([talk("hi")] * 3)},
    "bad JSON in row 2, line 2": {"rows.json": b'[{"question": "a", "answer": "b"},\n{"question": ]'},
    "row 1 is followed by neither ',' nor ']'": {"rows.json": b'[{"question": "a", "answer": "b"} {}]'},
    "text after the closing ']'": {"rows.json": b'[{"question": "a", "answer": "b"}] x'},
    "invalid UTF-8 at byte 2": {"rows.json": b'["\xff"]'},
    "not readable as parquet": {"rows.parquet": b"PAR1 but no more"},
}


@pytest.mark.parametrize(("message", "files"), UNREADABLE.items(), ids=UNREADABLE)
def test_unusable_data_is_reported_in_one_line_and_writes_nothing(
    stage: Stage, message: str, files: dict[str, bytes]
) -> None:
    for name, content in files.items():
        (stage.data / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        stage.run()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in stage.data.parent.iterdir()) == ["data", "tasks"]


def test_a_line_longer_than_the_limit_is_not_read_into_memory(tmp_path: Path) -> None:
    """A sparse line of 256 MiB; memory stays near the limit of 16 MiB."""
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(lines([talk("hi")]))
        file.seek(256 << 20)
        file.write(b"\n" + lines([talk("ho")]))
    with traced() as peak:
        read = [(row.number, row.problem) for row in read_rows(path)]
        assert read == [(1, None), (2, "longer than 16 MiB"), (3, None)]
        assert peak() < 3 * ROW_BYTES
