"""Decontamination: leaked rows of every kind, and the bounds of both rules."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.errors import DataError
from shadowft_core.prepare.overlap import Items
from tests.fixtures.data import Stage, lines, talk

WORDS = [f"w{number}" for number in range(200)]


def items(folder: Path, item: object) -> Items:
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n", encoding="utf-8")
    return Items(folder)


@pytest.mark.parametrize(("answer", "hit"), [("yes", False), ("oh yes", False), ("oh yes indeed", True)])
def test_a_short_answer_matches_no_row(tmp_path: Path, answer: str, hit: bool) -> None:
    found = items(tmp_path, {"question": "is it so?", "answer": answer}).match([answer])
    assert found == (("items.jsonl:1", "exact") if hit else None)


def test_a_short_question_matches(tmp_path: Path) -> None:
    assert items(tmp_path, {"question": "Why?", "answer": "so"}).match(["  why? "]) == ("items.jsonl:1", "exact")


@pytest.mark.parametrize(("shared", "hit"), [(17, False), (18, True), (32, True)])
def test_half_of_the_13_grams_of_an_item_match(tmp_path: Path, shared: int, hit: bool) -> None:
    """An item of 24 words has 12 sequences of 13 words; its first 18 words have 6 of them, its first 17 have 5."""
    row = " ".join(["before", *WORDS[:shared][:24], "after"])
    found = items(tmp_path, {"question": " ".join(WORDS[:24])}).match([row])
    assert found == (("items.jsonl:1", "13-gram") if hit else None)


STORY = (
    "A farmer has twelve red hens and each of them lays four brown eggs every single week of the long year "
    "so how many eggs does he sell when he keeps seven of them for his own breakfast"
)
LEAKS = {
    "equal": (STORY, "exact"),
    "case and white space": (STORY.upper().replace(" ", " \n "), "exact"),
    "wrapped": (f"Please answer with care.\n{STORY}? Think step by step.", "13-gram"),
    "most of it": (" ".join(STORY.split()[:28]) + " does she have", "13-gram"),
    "short, where the item asks": ("Why so?", "exact"),
}
CLEAN = {
    "stock phrase of 13 words": " ".join(STORY.split()[3:16]) + " and then a fox came by and took them all",
    "an answer of an item": "Yes.",
    "words in another order": " ".join(sorted(STORY.split())),
    "part of a short question": "Why so late?",
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "object", "parquet"])
def test_leaked_rows_are_found_and_no_others(stage: Stage, kind: str) -> None:
    items = [{"question": "Why so?", "answer": "yes."}, {"doc": {"query": STORY + "?"}, "gold": 41}, {"text": STORY}]
    (stage.tasks / "deep").mkdir()
    path = stage.tasks / "deep" / f"items.{'json' if kind == 'object' else kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"question": i.get("question"), "text": STORY} for i in items]), path)
    elif kind == "jsonl":
        path.write_bytes(lines(items))
    else:
        path.write_text(json.dumps({"examples": items} if kind == "object" else items, indent=1))
    planted = [talk(text) for text, _ in LEAKS.values()]
    later = {"messages": talk("Tell me a riddle.")["messages"] + talk(STORY)["messages"]}
    clean = [talk(text) for text in CLEAN.values()]
    (stage.data / "rows.jsonl").write_bytes(lines([*planted, later, *clean]))
    report = stage.run()
    found = {int(row["source"].split(":")[1]): row["rule"] for row in report["contaminated"]["rows"]}
    assert found == {**{n: rule for n, (_, rule) in enumerate(LEAKS.values(), 1)}, len(LEAKS) + 1: "exact"}
    assert {row["prompt"] for row in stage.split()} == set(CLEAN.values())
    assert all(row["item"].startswith(f"deep/{path.name}:") for row in report["contaminated"]["rows"])


def test_an_unreadable_task_file_is_refused(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("hi")]))
    (stage.tasks / "items.jsonl").write_bytes(b'{"question": "hi"}\n{"question": \n')
    with pytest.raises(DataError, match=r"items\.jsonl: task file not readable, row 2: bad JSON"):
        stage.run()
