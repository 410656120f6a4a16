"""The stage prepare: splits, duplicates, shares and digests, on data files written by the tests."""

import json

import pytest

from shadowft_core.errors import DataError, ParamsError
from shadowft_core.params import Prepare
from shadowft_core.prepare import SPLITS, prepare
from tests.fixtures.data import ALL_TO_TRAIN, Stage, lines, talk


def test_a_missing_file_or_folder_is_named(stage: Stage) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        prepare(stage.data / "nowhere", stage.tasks, ALL_TO_TRAIN, stage.out)
    (stage.data / "rows.txt").write_text("x")
    with pytest.raises(DataError, match=r"rows\.txt: expected one of .*, found '\.txt'"):
        prepare(stage.data / "rows.txt", stage.tasks, ALL_TO_TRAIN, stage.out)
    (stage.data / "rows.jsonl").write_bytes(lines([talk("hi")]))
    with pytest.raises(DataError, match="nowhere: no such task folder"):
        prepare(stage.data, stage.data / "nowhere", ALL_TO_TRAIN, stage.out)


def test_more_bad_rows_than_max_bad_fail(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(str(n)) for n in range(95)] + [{}] * 5))
    assert stage.run(Prepare(data="-", max_bad=0.05))["bad"] == 5
    message = (
        r"5 of 100 rows \(5\.0%\) are not usable, but prepare\.max_bad allows 4\.0%: rows\.jsonl:96 no known fields"
    )
    with pytest.raises(DataError, match=message):
        stage.run(Prepare(data="-", max_bad=0.04))


def test_duplicates_across_files_keep_the_first(stage: Stage) -> None:
    (stage.data / "b.jsonl").write_bytes(lines([talk("two"), talk("one")]))
    (stage.data / "a.jsonl").write_bytes(lines([talk("zero"), talk("one"), talk("one")]))
    report = stage.run()
    assert (report["duplicates"], report["splits"]["train"]) == (2, 3)
    assert {row["prompt"]: row["source"] for row in stage.split()} == {
        "zero": "a.jsonl:1",
        "one": "a.jsonl:2",
        "two": "b.jsonl:1",
    }


def split_of_each_id(stage: Stage) -> dict[str, str]:
    return {row["id"]: name for name in SPLITS for row in stage.split(name)}


def test_splits_have_their_shares_and_added_rows_move_no_others(stage: Stage) -> None:
    shares = Prepare(data="-", valid=0.1, dev=0.2, test=0.3)
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(2000)]))
    report = stage.run(shares)
    old = split_of_each_id(stage)
    for name, share in (("valid", 0.1), ("dev", 0.2), ("test", 0.3), ("train", 0.4)):
        spread = (2000 * share * (1 - share)) ** 0.5
        assert abs(report["splits"][name] - 2000 * share) < 4 * spread
    (stage.data / "more.jsonl").write_bytes(lines([talk(f"another {n}") for n in range(1000)]))
    more = stage.run(shares)
    new = split_of_each_id(stage)
    assert len(new) == 3000
    assert {key: new[key] for key in old} == old
    assert more["digest"] != report["digest"]


def test_the_same_rows_in_other_files_give_the_same_ids_and_digest(stage: Stage) -> None:
    values = [talk(f"question {n}") for n in range(50)]
    (stage.data / "rows.jsonl").write_bytes(lines(values))
    one, ids = stage.run()["digest"], split_of_each_id(stage)
    first = [(path.name, path.read_bytes()) for path in sorted(stage.out.iterdir())]
    stage.run()
    assert [(path.name, path.read_bytes()) for path in sorted(stage.out.iterdir())] == first
    (stage.data / "rows.jsonl").unlink()
    (stage.data / "other.json").write_text(json.dumps(values[::-1]))
    assert stage.run()["digest"] == one
    assert split_of_each_id(stage) == ids


def test_max_rows_keeps_a_sample_of_every_split(stage: Stage) -> None:
    params = Prepare(data="-", valid=0.5)
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(1000)]))
    stage.run(params)
    everything = split_of_each_id(stage)
    report = stage.run(params.model_copy(update={"max_rows": 200}))
    kept = split_of_each_id(stage)
    assert (len(kept), report["left_out_by_max_rows"]) == (200, 800)
    assert kept.items() <= everything.items()
    assert 70 < report["splits"]["valid"] < 130


def test_shares_that_leave_no_training_rows_are_refused(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("hi")]))
    with pytest.raises(ParamsError, match=r"valid 0\.5 \+ dev 0\.3 \+ test 0\.2 leaves nothing to train on"):
        stage.run(Prepare(data="-", valid=0.5, dev=0.3, test=0.2))
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": "HI"}]))
    with pytest.raises(DataError, match=r"no row is left to train on: of 1 usable rows 1 in a test item"):
        stage.run()


def test_hidden_files_are_not_read(stage: Stage) -> None:
    """An editor's backup, for instance, still has rows that were removed."""
    (stage.data / "rows.jsonl").write_bytes(lines([talk("kept")]))
    (stage.data / ".rows.jsonl").write_bytes(lines([talk("removed")]))
    assert [file["file"] for file in stage.run()["files"]] == ["rows.jsonl"]
    assert [row["prompt"] for row in stage.split()] == ["kept"]


def test_the_split_of_a_row_never_changes(stage: Stage) -> None:
    """Another hash, or another order of the shares, would move rows of past verdicts into training."""
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(20)]))
    stage.run(Prepare(data="-", valid=0.2, dev=0.2, test=0.2))
    numbers = {name: sorted(int(row["prompt"].split()[1]) for row in stage.split(name)) for name in SPLITS}
    assert numbers == {
        "train": [2, 3, 6, 7, 10, 17],
        "valid": [4, 5, 9, 12, 14, 15, 16],
        "dev": [0, 8],
        "test": [1, 11, 13, 18, 19],
    }


PINNED = {  # the same question in another spelling, or behind a system text, is in the same split
    "train": ["What is 1 + 1?", "x² or x2"],
    "valid": ["Was ist die Größe?", "WAS IST  DIE GRÖSSE? ", "hi", "Hi\n"],
    "dev": ["日本の首都は？", "日本の首都は?"],
    "test": ["question 1", " QUESTION\t1"],
}


def test_the_split_of_a_spelling_never_changes(stage: Stage) -> None:
    asked = [(name, question) for name, questions in PINNED.items() for question in questions]
    system = [{"role": "system", "content": "Be kind."}]
    rows = [talk(question, str(n)) for n, (_, question) in enumerate(asked)]
    rows += [{"messages": system + talk(question, str(n))["messages"]} for n, (_, question) in enumerate(asked)]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    stage.run(Prepare(data="-", valid=0.2, dev=0.2, test=0.2))
    found = {(name, asked[int(row["reply"])][1]) for name in SPLITS for row in stage.split(name)}
    assert found == set(asked)


def test_the_rows_that_max_rows_keeps_never_change(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(20)]))
    stage.run(ALL_TO_TRAIN.model_copy(update={"max_rows": 4}))
    assert [row["prompt"] for row in stage.split()] == [f"question {n}" for n in (2, 4, 12, 14)]


def test_a_field_of_columns_that_no_row_has_is_named(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    said = [{"who": "user", "content": "a"}, {"who": "assistant", "content": "b"}]
    (stage.data / "rows.jsonl").write_bytes(lines([{"Frage": "q", "Antwort": "a"}, {"messages": said}]))
    columns = {"Frage": "question", "Antwort": "answer", "Antwrt": "answer", "messages[].who": "role"}
    assert stage.run(Prepare(data="-", valid=0, columns=columns))["rows_used"] == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "columns" in line] == [
        "prepare: no used row has the field 'Antwrt' of prepare.columns"
    ]
