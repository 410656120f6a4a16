"""Thoughts in the text of replies, replies that look empty to a program, and a file of one line that holds all rows."""

import json
from typing import Any

import pytest

from tests.fixtures.data import Stage, lines, talk

CALL = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
RESULT = [{"role": "tool", "content": "2"}, {"role": "assistant", "content": "done"}]


def asked(**said: Any) -> dict[str, Any]:
    more = RESULT if "tool_calls" in said else []
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", **said}, *more]}


SPLIT: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "tags": (asked(content="<think>\nt\n</think>\n\na"), "a", "t"),
    "no opening tag": (asked(content="first\nthen\n</think>\n\na"), "a", "first\nthen"),
    "the end tag ends a line": (asked(content="t</think>\na"), "a", "t"),
    "an empty thought": (asked(content="<think>\n\n</think>\n\na"), "a", None),
    "tags within the text": (asked(content="see <think>x</think> there"), "see <think>x</think> there", None),
    "an end tag within a line": (asked(content="write </think> there"), "write </think> there", None),
    "in a field and in the text": (asked(content="<think>t</think>a", reasoning_content="t"), "a", "t"),
    "beside a call": (asked(content="<think>t</think>", tool_calls=CALL), "", "t"),
}


@pytest.mark.parametrize(("row", "content", "thought"), SPLIT.values(), ids=SPLIT)
def test_a_thought_is_split_from_the_text(stage: Stage, row: dict[str, Any], content: str, thought: str | None) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row]))
    stage.run()
    said = stage.split()[0]["messages"][1]
    assert (said["content"], said.get("reasoning_content")) == (content, thought)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (asked(content="<think>and so on"), "a thought that does not end"),
        (asked(content="<think>t</think>"), "a reply that is only a thought"),
        (asked(content="t\n</think>\n"), "a reply that is only a thought"),
        (asked(content="<think>t</think>a", thinking="u"), "two thoughts of a reply: one in 'thinking'"),
    ],
)
def test_a_thought_that_is_not_whole_is_a_bad_row(stage: Stage, row: dict[str, Any], reason: str) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row, talk("fine")]))
    [dropped] = stage.run()["dropped"]
    assert dropped["reason"].startswith(reason)


@pytest.mark.parametrize("said", ["[]", "null"])
def test_a_reply_may_be_an_empty_list_or_null(stage: Stage, said: str) -> None:
    rows = [{"instruction": "List the errors.", "output": said}, {"prompt": said, "completion": "nothing"}]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    assert stage.run()["bad"] == 0
    assert [(one["prompt"], one["reply"]) for one in stage.split()] == [("List the errors.", said), (said, "nothing")]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("key", ["data", "instances"])
def test_one_object_that_holds_the_rows_may_be_on_one_line(stage: Stage, key: str, indent: int | None) -> None:
    rows = [{"question": str(n), "answer": "a"} for n in range(3)]
    (stage.data / "rows.json").write_text(json.dumps({"version": "1", key: rows}, indent=indent))
    assert stage.run()["rows_used"] == 3


def test_a_row_alone_is_a_row(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([{"question": "q", "answer": "a", "examples": [{"x": 1}]}]))
    report = stage.run()
    assert (report["rows_used"], report["fields_ignored"]) == (1, {"examples": 1})
