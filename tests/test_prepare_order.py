"""Results of tools and their calls, and marks that say which replies are learned."""

from typing import Any

import pytest

from tests.fixtures.data import Stage, lines, talk

Q, A = talk("q", "a")["messages"]


def called(*ids: str) -> dict[str, Any]:
    """A turn with calls of these ids, "" for one without."""
    calls = [{"type": "function", "function": {"name": f"f{n}", "arguments": {}}} for n in range(len(ids))]
    found = [call | ({"id": key} if key else {}) for call, key in zip(calls, ids, strict=True)]
    return {"role": "assistant", "content": "", "tool_calls": found}


def result(key: str) -> dict[str, Any]:
    return {"role": "tool", "content": f"result {key}", **({"tool_call_id": key} if key else {})}


def row(calls: list[str], results: list[str]) -> dict[str, Any]:
    return {"messages": [Q, called(*calls), *map(result, results), A]}


@pytest.mark.parametrize(
    ("calls", "results", "kept"),
    [
        (["x", "y"], ["x", "y"], ["x", "y"]),
        (["x", "y", "z"], ["z", "x", "y"], ["x", "y", "z"]),
        (["", ""], ["y", "x"], ["y", "x"]),  # nothing says which belongs to which
        (["x", "y"], [""], [""]),  # one result of both
    ],
)
def test_results_are_in_the_order_of_their_calls(
    stage: Stage, calls: list[str], results: list[str], kept: list[str]
) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row(calls, results)]))
    report = stage.run()
    said = [one["content"] for one in stage.split()[0]["messages"] if one["role"] == "tool"]
    assert said == [f"result {key}" for key in kept]
    assert report["normalised"].get("results of tools put in the order of their calls", 0) == int(results != kept)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(["x"], ["other"]), "results of tools that do not belong to the calls before them"),
        (row(["x", "y"], ["x"]), "results of tools that do not belong to the calls before them"),
        ({"messages": [Q, A, result("x"), A]}, "a result of a tool without a call before it"),
        ({"messages": [A, Q, A]}, "the first turn is not the user's"),
        ({"instruction": "q", "output": {"x": 1}}, "field 'output' is not text"),
        ({"messages": [Q, A], "loss_mask": [0, 1]}, "unsupported field 'loss_mask'"),
        (
            {"messages": [Q, A | {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}]},
            "unsupported field 'train_detail' of a turn",
        ),
    ],
)
def test_what_cannot_be_kept_is_a_bad_row(stage: Stage, bad: dict[str, Any], reason: str) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([bad, talk("fine")]))
    assert [one["reason"] for one in stage.run()["dropped"]] == [reason]


def test_a_masked_reply_is_context(stage: Stage) -> None:
    turns = [Q | {"masked": True}, A | {"masked": True}, Q, A | {"content": "b", "masked": False}]
    (stage.data / "rows.jsonl").write_bytes(lines([{"messages": turns}]))
    assert stage.run()["fields_ignored"] == {}
    assert [one.get("weight") for one in stage.split()[0]["messages"]] == [None, 0, None, None]
    assert stage.split()[0]["messages"][3] == A | {"content": "b"}
