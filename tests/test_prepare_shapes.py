"""One row of every shape that docs/data.md lists, and the messages it gives."""

import json
from typing import Any

import pytest

from shadowft_core.params import Prepare
from tests.fixtures.data import Stage, lines, talk

TALK = talk("q", "a")["messages"]
Q, A = TALK
B = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
SAID = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CALL = '[{"function":{"arguments":{"x":1},"name":"f"},"type":"function"}]'
CALLED = [{"role": "assistant", "content": "", "tool_calls": CALL}, {"role": "tool", "content": "2"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
COLUMNS = {"Frage": "question", "Antwort": "answer", "dialog": "messages", "messages[].who": "role",
           "messages[].what": "content"}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "Alpaca": ("alpaca", {"instruction": "q", "input": "", "output": "a"}, TALK),
    "Alpaca with input": ("alpaca", {"instruction": "q", "input": "i", "output": "a"}, talk("q\ni", "a")["messages"]),
    "ShareGPT": ("sharegpt", {"conversations": SAID}, TALK),
    "ShareGPT with system": ("sharegpt", {"system": "s", "conversations": SAID}, [SYSTEM, *TALK]),
    "ShareGPT with a system turn": (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "s"}, *SAID]},
        [SYSTEM, *TALK],
    ),
    "ShareGPT with tools": (
        "sharegpt",
        {
            "tools": json.dumps([TOOL]),
            "conversations": [
                SAID[0],
                {"from": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "tool_response", "value": "2"},
                SAID[1],
            ],
        },
        [Q, *CALLED, A],
    ),
    "role and content under conversations": ("messages", {"conversations": TALK}, TALK),
    "OpenAI": ("messages", {"messages": TALK}, TALK),
    "OpenAI with developer": (
        "messages",
        {"messages": [{"role": "developer", "content": "s"}, *TALK]},
        [{"role": "developer", "content": "s"}, *TALK],
    ),
    "OpenAI with parts": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, A]},
        TALK,
    ),
    "OpenAI with weight and name": (
        "messages",
        {"messages": [{**Q, "name": "n"}, {**A, "weight": 0}, Q, {**B, "weight": 1}]},
        [{**Q, "name": "n"}, {**A, "weight": 0}, Q, B],
    ),
    "OpenAI with tools": (
        "messages",
        {
            "tools": [TOOL],
            "messages": [
                Q,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                CALLED[1],
                A,
            ],
        },
        [Q, *CALLED, A],
    ),
    "JSON text in a column": ("messages", {"messages": json.dumps(TALK)}, TALK),
    "JSON text of ShareGPT": ("sharegpt", {"conversations": json.dumps(SAID)}, TALK),
    "prompt/completion": ("prompt/response", {"prompt": "q", "completion": "a"}, TALK),
    "prompt/completion of turns": ("prompt/response", {"prompt": [Q], "completion": [A]}, TALK),
    "question/answer": ("question/answer", {"question": "q", "answer": "a"}, TALK),
    "question/answer with context and choices": (
        "question/answer",
        {"question": "q", "context": "c", "choices": ["x", "y"], "answer": "B"},
        talk("q\nc\nA. x\nB. y", "B")["messages"],
    ),
    "choices with labels": (
        "question/answer",
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"},
        talk("q\n1. x\n2. y", "2")["messages"],
    ),
    "preference": ("prompt/response", {"prompt": "q", "chosen": "a", "rejected": "b"}, TALK),
    "preference of turns": ("prompt/response", {"prompt": [Q], "chosen": [A], "rejected": [B]}, TALK),
    "preference of whole conversations": ("preference", {"chosen": TALK, "rejected": [Q, B]}, TALK),
    "preference of whole conversations with the prompt": (
        "prompt/response",
        {"prompt": "q", "chosen": TALK, "rejected": [Q, B]},
        TALK,
    ),
    "preference behind a conversation": (
        "sharegpt",
        {"conversations": SAID[:1], "chosen": SAID[1], "rejected": {"from": "gpt", "value": "b"}},
        TALK,
    ),
    "messages and rejected": ("messages", {"messages": TALK, "rejected": "b"}, TALK),
    "KTO": ("prompt/response", {"prompt": "q", "completion": "a", "label": True}, TALK),
    "KTO of turns": ("messages", {"messages": TALK, "label": True}, TALK),
    "KTO under another name": ("messages", {"messages": TALK, "kto_tag": True}, TALK),
    "columns": ("question/answer", {"Frage": "q", "Antwort": "a"}, TALK),
    "columns of turns": ("messages", {"dialog": [{"who": "user", "what": "q"}, {"who": "bot", "what": "a"}]}, TALK),
}


@pytest.mark.parametrize(("shape", "row", "messages"), SHAPES.values(), ids=SHAPES)
def test_every_shape_gives_its_messages(stage: Stage, shape: str, row: dict[str, Any], messages: list[Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row]))
    report = stage.run(Prepare(data="-", valid=0, columns=COLUMNS))
    assert report["fields_ignored"] == {}
    assert report["files"][0]["shapes"] == {shape: 1}
    (read,) = stage.split()
    assert read["messages"] == messages
    assert read["tools"] == (("tools" in row and json.dumps([TOOL], sort_keys=True, separators=(",", ":"))) or None)


BAD = {
    "text only: no prompt and no reply": {"text": "q"},
    "marked as undesired: 'kto_tag' is false": {"messages": TALK, "kto_tag": False},
    "last turn is not the assistant's": {"messages": [Q], "rejected": "b"},
    "no user turn": {"messages": CALLED},
    "field 'chosen' is a conversation without the text of 'prompt'": {"prompt": "r", "chosen": TALK},
    "unsupported field 'functions'": talk("q") | {"functions": [{"name": "f"}]},
    "unsupported field 'chat_template_kwargs'": talk("q") | {"chat_template_kwargs": {"enable_thinking": False}},
    "unsupported field 'prefix' of a turn": {"messages": [Q, A | {"prefix": True}]},
    "unsupported field 'label' of a turn": {"messages": [Q, A | {"label": False}]},
    "two system turns: one in 'system'": {"system": "s", "messages": [SYSTEM, *TALK]},
    "field 'choices' is no list of texts": {
        "question": "q",
        "choices": {"text": ["x"], "label": ["1", "2"]},
        "answer": "x",
    },
    "two fields get the name 'question', one of them": {"question": "q", "Frage": "r", "answer": "a"},
    "two fields of a turn get one name: content, what, who": {
        "messages": [{"who": "user", "content": "q", "what": "r"}]
    },
    "'tool_calls' is no JSON": {"messages": [Q, {"role": "assistant", "tool_calls": [{"name": "\ud800"}]}]},
    "field 'messages' is text, not a list of turns": {"messages": "[" * 200_000},
}


@pytest.mark.parametrize(("reason", "row"), BAD.items(), ids=BAD)
def test_a_row_whose_shape_is_unclear_is_counted(stage: Stage, reason: str, row: dict[str, Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("q"), row]))
    (dropped,) = stage.run(Prepare(data="-", valid=0, max_bad=0.5, columns=COLUMNS))["dropped"]
    assert dropped["reason"].startswith(reason)


def test_a_row_that_offers_other_tools_is_no_duplicate(stage: Stage) -> None:
    offered = [{"tools": [TOOL]}, {"tools": [TOOL, TOOL]}, {}, {"tools": [TOOL]}]
    (stage.data / "rows.jsonl").write_bytes(lines([talk("q") | tools for tools in offered]))
    assert stage.run()["rows_dropped"] == {"duplicate": 1}
    assert [row["source"] for row in stage.split()] == [f"rows.jsonl:{line}" for line in (1, 2, 3)]
