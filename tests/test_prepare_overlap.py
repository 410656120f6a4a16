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
    with pytest.raises(DataError, match=r"items\.jsonl: test items not readable, row 2: bad JSON"):
        stage.run()


@pytest.mark.parametrize(("words", "rule"), [(11, "exact"), (12, "exact"), (13, "13-gram"), (14, "13-gram")])
def test_an_item_of_fewer_than_13_words_is_only_compared_whole(tmp_path: Path, words: int, rule: str) -> None:
    text = " ".join(WORDS[:words])
    found = items(tmp_path, {"answer": text})
    assert found.match([text]) == ("items.jsonl:1", "exact")
    assert found.match([f"please: {text}!"]) == (("items.jsonl:1", rule) if rule == "13-gram" else None)


@pytest.mark.parametrize(("before", "hit"), [(0, True), (7, True), (8, True), (9, True), (60, True)])
def test_a_sequence_is_found_wherever_it_begins(tmp_path: Path, before: int, hit: bool) -> None:
    row = " ".join([*(f"x{number}" for number in range(before)), *WORDS[:13], "after"])
    assert (items(tmp_path, {"question": " ".join(WORDS[:13])}).match([row]) is not None) == hit


PREFIX = " ".join(f"p{number}" for number in range(20))


def file_of(folder: Path, rows: list[dict[str, str]]) -> Items:
    (folder / "items.jsonl").write_bytes(lines(rows))
    return Items(folder)


@pytest.mark.parametrize(("count", "of", "hit"), [(2, 2, True), (3, 3, False), (5, 10, True), (6, 10, False),
                                                  (10, 100, True), (11, 100, False)])  # fmt: skip
def test_a_text_that_many_items_share_is_not_compared(tmp_path: Path, count: int, of: int, hit: bool) -> None:
    """An instruction before the questions, in more than ten of them, or in more than half and more than two."""
    asked = [f"{PREFIX if number < count else ''} what is q{number}" for number in range(of)]
    found = file_of(tmp_path, [{"question": text} for text in asked])
    assert (found.match([f"{PREFIX} who was it that came"]) is not None) == hit
    assert found.match([f"so: {asked[0]}?"]) == ("items.jsonl:1", "13-gram")


@pytest.mark.parametrize(("count", "hit"), [(2, True), (3, False)])
def test_a_question_of_many_items_is_not_compared(tmp_path: Path, count: int, hit: bool) -> None:
    rows = [{"question": "Which is right?", "choice": f"the choice {number}"} for number in range(count)]
    assert (file_of(tmp_path, rows).match(["which is right?"]) is not None) == hit


def test_an_item_that_is_repeated_counts_once(tmp_path: Path) -> None:
    found = file_of(tmp_path, [{"question": STORY}] * 20 + [{"question": "Why?"}])
    assert found.match([STORY]) == ("items.jsonl:1", "exact")
    assert found.match([f"Say {STORY}"]) == ("items.jsonl:1", "13-gram")
    assert found.count == 21


def test_a_short_instruction_is_compared_with_its_input(tmp_path: Path) -> None:
    """Many clean rows ask to summarize a text; the leak is the row that gives the item's text, too."""
    text = {"instruction": "Summarize the following text", "input": "A fox came by."}
    found = file_of(tmp_path, [text, {"instruction": "Name a fox", "input": " "}])
    assert found.match(["summarize the following text"]) is None
    assert found.match(["Summarize the following text\nA fox came by."]) == ("items.jsonl:1", "exact")
    assert found.match(["name a fox"]) == ("items.jsonl:2", "exact")
    long = file_of(tmp_path, [{"instruction": STORY, "context": "It is a farm."}])
    assert long.match([STORY]) == ("items.jsonl:1", "exact")


def test_an_item_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"question": ' + "[" * 1000 + '"x"' + "]" * 1000 + "}\n")
    with pytest.raises(DataError, match=r"items\.jsonl: an item is nested too deeply"):
        Items(tmp_path)


def test_a_leaked_row_is_named_wherever_it_is(stage: Stage) -> None:
    """Rows are held in batches of 2,000."""
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": "question 2400"}]))
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(2600)]))
    assert stage.run()["contaminated"]["rows"] == [
        {"source": "rows.jsonl:2401", "item": "items.jsonl:1", "rule": "exact"}
    ]
