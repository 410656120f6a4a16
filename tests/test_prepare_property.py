"""Splits of random rows: one question is in one split, and added rows move no others."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowft_core.params import Newest, Prepare
from shadowft_core.prepare import SPLITS
from tests.fixtures.data import Stage, lines, talk

WORDS = ["why", "Ämter", "ﬁne", "STRASSE", "x²", "a\u0301", "9", "日本"]
BLANKS = [" ", "  ", "\n", "\t", "\u00a0", "\u3000"]
PARAMS = Prepare(data="-", valid=0.1, dev=0.15, test=0.25, max_bad=0.9)


@st.composite
def rows(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """A row, and the number of its question: one of 30, in a random spelling."""
    import unicodedata

    number = draw(st.integers(0, 29))
    words = [WORDS[number % 8], WORDS[number // 8], str(number)]
    asked = draw(st.sampled_from(BLANKS)).join(words)
    asked = draw(st.sampled_from([str, str.upper, str.casefold, str.title]))(asked)
    asked = unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD", "NFKC"])), asked)
    asked = draw(st.sampled_from(["", *BLANKS])) + asked + draw(st.sampled_from(["", *BLANKS]))
    row = talk(asked, draw(st.sampled_from(["yes", "no", "Maybe."])))
    if draw(st.booleans()):
        row["messages"].insert(0, {"role": "system", "content": draw(st.sampled_from(["Be kind.", "Be brief."]))})
    if draw(st.booleans()):
        row["messages"] += talk(draw(st.sampled_from(["why 0", "and then?"])), "so")["messages"]
    if draw(st.booleans()):
        row["conversation_id"] = draw(st.integers(0, 9))
    row["at"] = f"2024-01-{draw(st.integers(1, 9)):02}"
    row["number"] = number
    return number, row


def splits(given_rows: list[list[dict[str, Any]]], params: Prepare) -> dict[tuple[str, str], tuple[str, int]]:
    """Prepare the rows, one file per list. Returns split and number of the question by id and source."""
    folder = Path(tempfile.mkdtemp())
    try:
        stage = Stage(folder)
        for number, one in enumerate(given_rows):
            (stage.data / f"{number}.jsonl").write_bytes(lines(one))
        stage.run(params)
        found = {}
        for name in SPLITS:
            for row in stage.split(name):
                file, line = row["source"].split(".jsonl:")
                found[row["id"], row["source"]] = name, given_rows[int(file)][int(line) - 1]["number"]
        return found
    finally:
        shutil.rmtree(folder)


def require_one_split_each(found: dict[tuple[str, str], tuple[str, int]]) -> None:
    split_of: dict[int, str] = {}
    for name, number in found.values():
        assert split_of.setdefault(number, name) == name


FIXED = [(n, talk(f"fixed {n}") | {"at": "2023-01-01", "number": 100 + n}) for n in range(40)]
FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(st.lists(rows(), min_size=10, max_size=60), st.lists(rows(), max_size=40), st.sampled_from([None, 0.5]))
def test_one_question_is_in_one_split_and_added_rows_move_no_others(
    first: list[tuple[int, dict[str, Any]]], more: list[tuple[int, dict[str, Any]]], near: float | None
) -> None:
    """Added rows may leave others out, as near copies or by conversation, but never change their split."""
    params = PARAMS.model_copy(update={"near": near})
    old = splits([[row for _, row in FIXED + first]], params)
    new = splits([[row for _, row in FIXED + first], [row for _, row in more]], params)
    require_one_split_each(old)
    require_one_split_each(new)
    assert all(new[key] == value for key, value in old.items() if key in new)
    held = {key for key, (name, _) in old.items() if name != "train"}
    assert held <= new.keys()


@FEW
@given(st.lists(rows(), min_size=10, max_size=60))
def test_one_question_is_in_one_split_when_the_newest_are_held_out(first: list[tuple[int, dict[str, Any]]]) -> None:
    params = PARAMS.model_copy(update={"newest": Newest(by="at")})
    require_one_split_each(splits([[row for _, row in FIXED + first]], params))
