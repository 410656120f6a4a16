"""data-report.json counts the changes in rows, the fields that are not read, and the causes of refusals."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowft_core.errors import DataError
from shadowft_core.params import Prepare
from tests.fixtures.data import ALL_TO_TRAIN, Stage, lines, talk
from tests.test_prepare_forms import USED
from tests.test_prepare_rows import SHAPES

NORMALISED = {
    "field 'Frage' to 'question'": {"Frage": "q", "answer": "a"},
    "role 'gpt' to 'assistant'": {"messages": [{"role": "user", "content": "q"}, {"role": "gpt", "content": "a"}]},
    "CR LF to LF": talk("q\r\nr"),
    "text parts joined": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *talk("q")["messages"][1:]]
    },
    "empty system turn left out": {"messages": [{"role": "system", "content": ""}, *talk("q")["messages"]]},
    "field 'system' to a system turn": {"system": "s", **talk("q")},
    "<think> split off": talk("q", "<think>t</think>a"),
    "thought before </think> split off": talk("q", "t\n</think>\na"),
    "field 'messages' from JSON text": {"messages": json.dumps(talk("q")["messages"])},
    "'function_call' to 'tool_calls'": USED["call of an older form"][0],
    "turn with a call to 'tool_calls'": USED["call in ShareGPT's roles"][0],
    "field 'history' to turns": USED["history"][0],
    "field 'context' appended to the question": USED["context"][0],
    "field 'choices' appended to the question": USED["choices"][0],
    "field 'reasoning' of a turn to 'reasoning_content'": USED["thought in a field"][0],
    "field 'loss' of a turn to 'weight'": USED["weight"][0],
    "functions of 'tools' wrapped": {"tools": [{"name": "f"}], **talk("q")},
}  # fmt: skip


@pytest.mark.parametrize(("name", "row"), NORMALISED.items(), ids=NORMALISED)
def test_changes_are_counted_in_used_rows(stage: Stage, name: str, row: dict[str, Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row, row, talk("another")]))
    report = stage.run(Prepare(data="-", valid=0, columns={"Frage": "question"}))
    assert report["normalised"][name] == 1, "the second row is a duplicate"


IGNORED = {
    "note": {"note": 1, **talk("q")},
    "\\ud800": {"\ud800": 1, **talk("q")},
    "messages[].mood": {"messages": [{"role": "user", "content": "q", "mood": "glad"}, *talk("q")["messages"][1:]]},
    "messages[].value": {"messages": [{"role": "user", "content": "q", "value": "r"}, *talk("q")["messages"][1:]]},
    "content[].cache_control": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q", "cache_control": 1}]}, *talk("q")["messages"][1:]
        ]
    },
    "messages[].tool_calls[].note": {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": [{"note": "x", "type": "function", "function": {"name": "f"}}]},
        ]
    },
    "messages[].thinking": {
        "messages": [{"role": "user", "content": "q", "thinking": "t"}, *talk("q")["messages"][1:]],
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "row"), IGNORED.items(), ids=IGNORED)
def test_ignored_fields_of_rows_and_turns_are_named(stage: Stage, name: str, row: dict[str, Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row, talk("another")]))
    assert stage.run()["fields_ignored"] == {name: 1}


REFUSED = {
    "videos": {"videos": ["x.mp4"], **talk("q")},
    "images": {"images": ["absent.png"], **talk("q")},
    "messages[].audio": {"messages": [{"role": "user", "content": "q", "audio": "x"}, *talk("q")["messages"][1:]]},
    "part 'video'": {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
    "role 'judge'": {"messages": [{"role": "judge", "content": "q"}]},
    "label": {"prompt": "q", "completion": "a", "label": False},
    "text": {"text": "no conversation"},
    "weight": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}]},
}


def test_causes_of_refusals_are_counted(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([*REFUSED.values(), {"text": "again"}, talk("q"), talk("r")]))
    assert stage.run()["refused"] == {**dict.fromkeys(sorted(REFUSED), 1), "text": 2}


def test_the_report_has_the_first_thousand_dropped_rows_and_the_file_all(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([{}] * 1002 + [talk(str(number)) for number in range(200)]))
    report, dropped = stage.run(), stage.dropped()
    assert (len(dropped), report["dropped"]) == (1002, dropped[:1000])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["\ud800", "[]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
ROWS = [given_row for given_row, _ in [*SHAPES.values(), *USED.values()]] + [*NORMALISED.values(), *IGNORED.values()]


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """A row of a usual shape in which values at any depth are removed, replaced, repeated or renamed."""

    def walk(value: Any) -> Any:
        change = draw(st.sampled_from(["keep"] * 12 + ["replace", "drop", "repeat", "rename", "break"]))
        if change == "replace":
            return draw(JSON)
        if change == "break" and isinstance(value, str):
            return "\ud800"
        if isinstance(value, list):
            inner = [walk(one) for one in value]
            return inner[1:] if change == "drop" else inner * 2 if change == "repeat" else inner
        if isinstance(value, dict):
            items = [(name, walk(one)) for name, one in value.items()]
            if change == "rename" and items:
                at = draw(st.integers(0, len(items) - 1))
                items[at] = (draw(st.sampled_from(["\ud800", "role", "chosen", "tools", "label"])), items[at][1])
            return dict(items[1:] if change == "drop" else items)
        return value

    return walk(draw(st.sampled_from(ROWS)))


@given(st.lists(broken(), min_size=10, max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_used_or_counted_under_a_reason(stage: Stage, rows: list[Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([*map(talk, "abcd"), *rows]))
    with contextlib.suppress(DataError):
        report = stage.run(ALL_TO_TRAIN)
        dropped = stage.dropped()
        assert report["rows_read"] == len(rows) + 4 == report["rows_used"] + sum(report["rows_dropped"].values())
        assert report["rows_used"] == sum(report["splits"].values())
        lines_of = [int(row["source"].split(":")[1]) for row in stage.split()] + [one["line"] for one in dropped]
        assert sorted(lines_of) == list(range(1, len(rows) + 5))
