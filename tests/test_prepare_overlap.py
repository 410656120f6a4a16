"""When does a training row stand in an item? At the bounds of both rules."""

import json
from pathlib import Path

import pytest

from shadowft_core.prepare.overlap import Items

WORDS = [f"w{number}" for number in range(200)]


def items(folder: Path, item: object) -> Items:
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n", encoding="utf-8")
    return Items(folder)


@pytest.mark.parametrize(("answer", "hit"), [("yes", False), ("oh yes", False), ("oh yes indeed", True)])
def test_a_short_answer_accuses_nobody(tmp_path: Path, answer: str, hit: bool) -> None:
    found = items(tmp_path, {"question": "is it so?", "answer": answer}).match([answer])
    assert found == (("items.jsonl:1", "exact") if hit else None)


def test_a_question_counts_however_short(tmp_path: Path) -> None:
    assert items(tmp_path, {"question": "Why?", "answer": "so"}).match(["  why? "]) == ("items.jsonl:1", "exact")


@pytest.mark.parametrize(("shared", "hit"), [(17, False), (18, True), (32, True)])
def test_half_of_the_sequences_of_an_item_are_enough(tmp_path: Path, shared: int, hit: bool) -> None:
    """An item of 24 words has 12 sequences of 13 words; a row with its first 18 words has 6 of them, 17 have 5."""
    row = " ".join(["before", *WORDS[:shared][:24], "after"])
    found = items(tmp_path, {"question": " ".join(WORDS[:24])}).match([row])
    assert found == (("items.jsonl:1", "13-gram") if hit else None)
