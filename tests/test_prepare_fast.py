"""The short ways that most rows take give what the long ways give."""

import gc
import unicodedata
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowft_core.errors import DataError
from shadowft_core.prepare.suspect import _ANY
from shadowft_core.prepare.table import SCHEMA, _messages, fold
from shadowft_core.prepare.turns import ROLES, BadRow, Notes, turn_of
from tests.fixtures.data import Stage, lines, talk

SIGNS = st.text(st.characters(max_codepoint=127)) | st.text(st.sampled_from(" aA\t\n\x1f\x7fß\u00a0"))
SAID = st.text() | st.sampled_from(
    ["", " \n", "a\r\nb", "\0", "\ud800", "\u200b", " <think>so</think> yes", "so\n</think>yes", "<think>"]
)


@given(SIGNS)
def test_folded_text_has_single_blanks_and_no_case(text: str) -> None:
    assert fold(text) == " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _read(turn: dict[str, Any]) -> tuple[Any, Notes]:
    notes = Notes()
    try:
        return turn_of(turn, "messages", notes), notes
    except BadRow as problem:
        return (str(problem), problem.feature), Notes()


@given(
    st.sampled_from([*ROLES, "Assistant", "USER", "nurse", "", None]),
    st.sampled_from([("role", "content"), ("from", "value"), ("role", "value")]),
    SAID | st.none(),
)
def test_a_plain_turn_is_read_as_one_with_an_empty_field_more(role: Any, names: tuple[str, str], said: Any) -> None:
    turn = dict(zip(names, (role, said), strict=True))
    assert _read(turn) == _read(turn | {"nothing": None})


MESSAGES = st.fixed_dictionaries(
    {"role": st.text(), "content": st.text()},
    optional={
        **dict.fromkeys(("reasoning_content", "tool_calls", "name"), st.text()),
        "weight": st.just(0),
        "image_places": st.lists(st.integers(0, 9)),
    },
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(MESSAGES)))
def test_the_column_of_messages_is_what_arrow_makes_of_them(rows: list[list[dict[str, Any]]]) -> None:
    column = _messages(rows)
    assert column.equals(pa.array(rows, SCHEMA.field("messages").type))
    column.validate(full=True)


@given(st.from_regex(_ANY))
def test_a_suspect_text_has_one_of_the_signs_that_are_looked_for_first(text: str) -> None:
    assert any(sign in text for sign in ("<", "[", "{", "##"))


@pytest.mark.parametrize("reply", ["yes", ""])
def test_the_collector_is_left_as_it_was(stage: Stage, reply: str) -> None:
    before = gc.get_threshold()
    (stage.data / "rows.jsonl").write_bytes(lines([talk("why?", reply), talk("how?", reply)]))
    if reply:
        stage.run()
    else:
        with pytest.raises(DataError, match="none of 2 rows is usable"):
            stage.run()
    assert gc.get_threshold() == before
