"""No question, conversation or near copy of a held-out row is trained on; every row is used or counted."""

import pytest

from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Prepare
from shadowft_core.prepare import SPLITS
from tests.fixtures.data import Stage, lines, talk

LONG = " ".join(f"word{n}" for n in range(60))
STORY = "the farmer has twelve red hens and each lays {} brown eggs in a week of the long year so how many are sold"


def test_one_question_is_in_one_split(stage: Stage) -> None:
    """Whatever the answers, the case, the white space, and the system text."""
    rows = []
    for number in range(200):
        asked = f"Write a note about topic {number}."
        rows += [talk(asked, "one"), talk(f" {asked.upper()}\n", "two"), talk(asked.replace(" ", "  "), "three")]
        rows.append({"messages": [{"role": "system", "content": "Be kind."}, *talk(asked, "four")["messages"]]})
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(Prepare(data="-", valid=0.1, dev=0.2, test=0.2, near=None))
    assert sum(report["splits"].values()) == 800
    questions = {
        name: {" ".join(row["prompt"].lower().split()).removeprefix("be kind. ") for row in stage.split(name)}
        for name in SPLITS
    }
    assert all(len(found) > 5 for found in questions.values())
    assert sum(map(len, questions.values())) == 200


def test_a_conversation_that_is_held_out_is_not_trained_on(stage: Stage) -> None:
    rows = [talk(f"question {n}") | {"conversation_id": f"c{n // 4}"} for n in range(400)]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(Prepare(data="-", valid=0, test=0.2))
    tested = {int(row["prompt"].split()[1]) // 4 for row in stage.split("test")}
    trained = {int(row["prompt"].split()[1]) // 4 for row in stage.split()}
    assert tested
    assert trained
    assert not tested & trained
    left_out = report["rows_dropped"]["same conversation as a held-out row"]
    assert left_out == 400 - report["splits"]["train"] - report["splits"]["test"] > 0


def test_near_duplicates_are_dropped_and_numbers_count(stage: Stage) -> None:
    """A row that differs in punctuation is dropped; one with another number has another answer."""
    rows = [talk(f"tell {LONG}", "so"), talk(f"tell, {LONG}!", "so"), talk(STORY.format(4)), talk(STORY.format(5))]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(Prepare(data="-", valid=0, near=0.9))
    assert report["rows_dropped"] == {"near duplicate": 1}
    assert [row["source"] for row in stage.split()] == ["rows.jsonl:1", "rows.jsonl:3", "rows.jsonl:4"]
    assert stage.dropped() == [{"file": "rows.jsonl", "line": 2, "reason": "near duplicate"}]
    assert stage.run(Prepare(data="-", valid=0, near=None))["splits"]["train"] == 4


def test_a_question_near_a_held_out_one_is_not_trained_on(stage: Stage) -> None:
    """Not even where another near copy, itself left out, comes first."""
    rows = [talk(f"{LONG} {'please ' * m}{n}", f"answer {n} {m}") for n in range(30) for m in range(2)]
    (stage.data / "rows.jsonl").write_bytes(lines([talk("other", "a"), talk("another", "b"), *rows]))
    report = stage.run(Prepare(data="-", valid=0, test=0.3, near=0.8))
    assert report["splits"]["test"] > 0
    assert [row["prompt"] for row in stage.split()] == ["other", "another"]
    assert report["rows_dropped"]["near a held-out question"] > 10


def test_every_row_is_used_or_dropped_with_its_reason(stage: Stage) -> None:
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": "a test item"}]))
    rows = [
        talk("one"),
        talk("one"),
        talk("a TEST  item"),
        {"text": "alone"},
        talk(LONG),
        talk(f"{LONG}."),
        talk("two"),
    ]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(Prepare(data="-", valid=0, max_bad=0.5))
    assert (report["rows_read"], report["rows_used"]) == (7, 3)
    reasons = {2: "duplicate", 3: "in a test item", 4: "text only: no prompt and no reply", 6: "near duplicate"}
    assert report["rows_dropped"] == dict.fromkeys(reasons.values(), 1)
    assert {one["line"]: one["reason"] for one in stage.dropped()} == reasons
    assert report["dropped"] == stage.dropped()


def test_a_field_that_is_not_used_is_named_and_counted(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("a") | {"idx": 1, "score": 2.0}, talk("b") | {"idx": 2}]))
    assert stage.run()["fields_ignored"] == {"idx": 2, "score": 1}


def test_columns_are_read_by_other_names(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([{"Frage": "wer?", "Antwort": "ich"}]))
    stage.run(Prepare(data="-", valid=0, columns={"Frage": "question", "Antwort": "answer"}))
    assert [(row["prompt"], row["reply"]) for row in stage.split()] == [("wer?", "ich")]


def test_a_task_whose_items_are_not_in_the_folder_is_named(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("a")]))
    (stage.tasks / "far.yaml").write_text("task: far\ndataset_path: someone/data\nprocess: !function x.y\n")
    near = "task: near\ndataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\n"
    (stage.tasks / "near.yaml").write_text(near)
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": "b"}]))
    report = stage.run()
    assert report["not_compared"] == ["far"]
    assert report["contaminated"]["items"] == 1


def test_a_conversation_near_a_held_out_one_is_not_trained_on(stage: Stage) -> None:
    """Though its question is short, and another."""
    rows = [talk(f"question {n}", f"{LONG} {n}") for n in range(30)]
    (stage.data / "rows.jsonl").write_bytes(lines([talk("other", "a"), talk("another", "b"), *rows]))
    report = stage.run(Prepare(data="-", valid=0, test=0.3, near=0.8))
    assert report["splits"]["test"] > 0
    assert [row["prompt"] for row in stage.split()] == ["other", "another"]


def test_a_row_near_one_that_is_left_out_is_kept(stage: Stage) -> None:
    """The second row is near the first, the third near the second alone."""
    words = [f"word{n}" for n in range(72)]
    rows = [talk(" ".join(words[at : at + 60])) for at in (0, 6, 12)]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    stage.run(Prepare(data="-", valid=0, near=0.75))
    assert [row["source"] for row in stage.split()] == ["rows.jsonl:1", "rows.jsonl:3"]


@pytest.mark.parametrize(("words", "kept"), [(12, 2), (13, 1)])
def test_texts_of_12_sequences_and_more_are_compared(stage: Stage, words: int, kept: int) -> None:
    """The reply is one more word."""
    text = " ".join(f"word{n}" for n in range(words))
    (stage.data / "rows.jsonl").write_bytes(lines([talk(text), talk(f"{text}!")]))
    stage.run(Prepare(data="-", valid=0, near=0.9))
    assert len(stage.split()) == kept


def test_a_similarity_that_equals_the_setting_is_near(stage: Stage) -> None:
    """24 of 32 sequences are in both rows."""
    words = [f"word{n}" for n in range(29)]
    (stage.data / "rows.jsonl").write_bytes(lines([talk(" ".join(words)), talk(" ".join([*"abcd", *words[4:]]))]))
    assert stage.run(Prepare(data="-", valid=0, near=0.75))["rows_dropped"] == {"near duplicate": 1}


def test_near_duplicates_are_found_among_many_rows(stage: Stage) -> None:
    """Pairs of similarity 0.79: at most one in a thousand is missed."""
    rows = []
    for number in range(100):
        words = [f"w{number}x{n}" for n in range(66)]
        rows += [talk(" ".join(words[:60])), talk(" ".join(words[6:]))]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    assert stage.run(Prepare(data="-", valid=0, near=0.75))["rows_dropped"]["near duplicate"] >= 99


def test_the_report_has_the_digest_of_the_ids_and_the_lengths_of_the_texts(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"{n:03}", "x" * n) for n in range(1, 102)]))
    report = stage.run(Prepare(data="-", valid=0))
    ids = {name: sorted(row["id"] for row in stage.split(name)) for name in SPLITS}
    assert report["digest"] == bytes_digest(canonical_json(ids))
    assert report["characters"]["train"] == {
        "prompt": dict.fromkeys(("min", "median", "p95", "max"), 3),
        "reply": {"min": 1, "median": 51, "p95": 96, "max": 101},
    }


def test_a_leaked_row_that_is_repeated_is_a_duplicate(stage: Stage) -> None:
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": "a test item"}]))
    (stage.data / "rows.jsonl").write_bytes(lines([talk("a test item"), talk("a test item"), talk("other")]))
    stage.run(Prepare(data="-", valid=0))
    assert [one["reason"] for one in stage.dropped()] == ["in a test item", "duplicate"]
