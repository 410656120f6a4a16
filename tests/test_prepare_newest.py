"""Dev and test from the newest rows: by a date, or as rows that an earlier version of the data lacks."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.errors import DataError, ParamsError
from shadowft_core.params import Newest, Prepare, load_params
from shadowft_core.prepare.newest import moment_of
from tests.fixtures.data import Stage, lines, pinned, talk

BY = Prepare(data="-", valid=0, dev=0.1, test=0.2, max_bad=0.9, newest=Newest(by="at"))


def dated(number: int, asked: str | None = None, day: int | None = None) -> dict[str, Any]:
    at = dt.date(2024, 1, 1) + dt.timedelta(days=number if day is None else day)
    return talk(asked or f"question {number}", f"answer {number}") | {"at": at.isoformat()}


def numbers(stage: Stage, split: str) -> list[int]:
    return sorted(int(row["reply"].split()[1]) for row in stage.split(split))


def test_the_latest_rows_are_test_and_the_next_ones_dev(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([dated(n) for n in range(40)][::-1]))
    report = stage.run(BY)
    assert [numbers(stage, name) for name in ("test", "dev", "train")] == [
        list(range(32, 40)),
        list(range(28, 32)),
        list(range(28)),
    ]
    assert report["newest"] | {"note": ""} == {
        "by": "at",
        "oldest_in_test": "2024-02-02T00:00:00Z",
        "oldest_in_dev": "2024-01-29T00:00:00Z",
        "note": "",
    }
    assert "old test rows move" in report["newest"]["note"]
    assert "the oldest row in test has the date 2024-02-02T00:00:00Z" in capsys.readouterr().err
    assert report["fields_ignored"] == {}


def test_newer_rows_move_the_cut(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([dated(n) for n in range(40)]))
    stage.run(BY)
    (stage.data / "newer.jsonl").write_bytes(lines([dated(n) for n in range(40, 60)]))
    stage.run(BY)
    assert numbers(stage, "test") == list(range(48, 60))
    assert 35 in numbers(stage, "train")


def test_an_older_row_with_the_question_of_a_held_out_one_is_left_out(stage: Stage) -> None:
    rows = [dated(n) for n in range(18)]
    rows += [dated(90, "Asked  again", day=2), dated(91, "asked AGAIN", day=50)]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(BY)
    assert 91 in numbers(stage, "test")
    assert 90 not in numbers(stage, "train") + numbers(stage, "dev")
    assert stage.dropped() == [{"file": "rows.jsonl", "line": 19, "reason": "question of a newer held-out row"}]
    assert sum(report["splits"].values()) == 19


def test_a_repeated_conversation_is_as_old_as_its_first_date(stage: Stage) -> None:
    """It was known then, so its question is not new."""
    rows = [dated(n) for n in range(20)] + [dated(3, day=100)]
    for order in (rows, rows[::-1]):
        (stage.data / "rows.jsonl").write_bytes(lines(order))
        stage.run(BY)
        assert 3 in numbers(stage, "train")


def test_rows_of_one_date_are_split_by_their_questions(stage: Stage) -> None:
    rows = [dated(n, f"question {n // 2}", day=0) for n in range(100)]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(BY.model_copy(update={"valid": 0.1, "near": None}))
    assert sum(report["splits"].values()) == 100
    assert 20 <= report["splits"]["test"] <= 21
    asked = [{row["prompt"] for row in stage.split(name)} for name in ("train", "valid", "dev", "test")]
    assert all(asked)
    assert sum(map(len, asked)) == 50


UTC = dt.UTC
DATES = {
    "2024-05-01": 1714521600,
    "20240501": 1714521600,
    "2024-05-01T02:00:00+02:00": 1714521600,
    " 2024-05-01T00:00:00Z ": 1714521600,
    1714521600: 1714521600,
    1714521600.5: 1714521600.5,
    "1714521600": 1714521600,
    dt.date(2024, 5, 1): 1714521600,
    dt.datetime(2024, 5, 1): 1714521600,
    dt.datetime(2024, 5, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))): 1714521600,
    "1969-12-31T23:59:59Z": -1,
}


@pytest.mark.parametrize(("value", "seconds"), DATES.items(), ids=map(repr, DATES))
def test_every_form_of_date_is_read(value: Any, seconds: float) -> None:
    assert moment_of(value) == round(seconds * 1_000_000)


UNREADABLE = {
    "no date: field 'at' is absent or empty": [{}, {"at": None}, {"at": ""}],
    "date not readable": [{"at": "yesterday"}, {"at": "1.5.2024"}, {"at": True}, {"at": ["2024-05-01"]}],
    "date not readable: expected seconds since 1970, found": [{"at": 2024}, {"at": 1714521600000}, {"at": "9" * 400}],
}


def test_a_row_without_a_readable_date_is_a_bad_row(stage: Stage) -> None:
    bad = [
        (reason, talk(f"bad {n}") | at) for reason, all_of_it in UNREADABLE.items() for n, at in enumerate(all_of_it)
    ]
    (stage.data / "rows.jsonl").write_bytes(lines([row for _, row in bad] + [dated(n) for n in range(20)]))
    assert stage.run(BY)["bad"] == len(bad)
    for line, ((reason, _), dropped) in enumerate(zip(bad, stage.dropped(), strict=True), 1):
        assert (dropped["file"], dropped["line"]) == ("rows.jsonl", line)
        assert dropped["reason"].startswith(reason)


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("us", "Europe/Berlin"), pa.date32(), pa.int64()])
def test_dates_of_a_table_are_read(stage: Stage, kind: pa.DataType) -> None:
    start = dt.datetime(2024, 1, 1, tzinfo=UTC)
    days = [start + dt.timedelta(days=n) for n in range(20)]
    at = pa.array([int(day.timestamp()) for day in days] if kind == pa.int64() else days, kind)
    asked = [f"question {n}" for n in range(20)]
    table = pa.table({"question": asked, "answer": [f"answer {n}" for n in range(20)], "at": at})
    pq.write_table(table, stage.data / "rows.parquet")
    stage.run(BY)
    assert numbers(stage, "test") == [16, 17, 18, 19]


def since(stage: Stage, place: Path, params: Prepare = BY) -> dict[str, Any]:
    """Run `prepare` with an earlier version."""
    return stage.run(pinned(params.model_copy(update={"newest": Newest(since=str(place))})))


@pytest.mark.parametrize("kind", ["file", "folder", "prepared"])
def test_rows_that_an_earlier_version_lacks_are_held_out(stage: Stage, tmp_path: Path, kind: str) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"q {n}", f"answer {n}") for n in range(60)]))
    earlier = tmp_path / "earlier"
    if kind == "prepared":
        stage.run(BY.model_copy(update={"newest": None}))
        stage.out.rename(earlier)
    else:
        earlier.mkdir()
        (earlier / "rows.jsonl").write_bytes((stage.data / "rows.jsonl").read_bytes() + b"{}\n")
    (stage.data / "more.jsonl").write_bytes(lines([talk(f"q {n}", f"answer {n}") for n in range(60, 100)]))
    report = since(stage, earlier / "rows.jsonl" if kind == "file" else earlier)
    assert (report["splits"]["test"], report["splits"]["dev"]) == (20, 10)
    assert min(numbers(stage, "test") + numbers(stage, "dev")) >= 60
    assert max(numbers(stage, "train")) >= 60
    found = report["newest"]
    assert (found["rows_of_earlier"], found["bad_rows_of_earlier"], found["new_rows"]) == (60, kind != "prepared", 40)


def test_too_few_new_rows_or_no_common_ones_are_refused(stage: Stage, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_bytes(lines([talk(f"q {n}") for n in range(90)]))
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"q {n}") for n in range(100)]))
    with pytest.raises(DataError, match=r"expected 20 new rows for test \(0\.2 of 100 rows\), found 10; lower"):
        since(stage, earlier)
    earlier.write_bytes(lines([talk("other")]))
    with pytest.raises(DataError, match="found 1 rows, none of which is in the data"):
        since(stage, earlier)
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; check prepare\.newest\.since"):
        stage.run(BY.model_copy(update={"newest": Newest(since="nowhere")}))


@pytest.mark.parametrize("written", ["{}", "{by: a, since: b}", "{by: a, digest: sha256:%s}" % ("0" * 64)])
def test_either_a_field_or_an_earlier_version_is_named(tmp_path: Path, written: str) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("newest: null", f"newest: {written}"), "utf-8")
    with pytest.raises(ParamsError, match=r"prepare\.newest: .*expected either \{by: FIELD\} or \{since: PATH"):
        load_params(tmp_path / "params.yaml")


def test_the_share_of_valid_is_that_of_all_rows(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([dated(n) for n in range(400)]))
    report = stage.run(BY.model_copy(update={"valid": 0.25, "test": 0.4}))
    assert (report["splits"]["test"], report["splits"]["dev"]) == (160, 40)
    assert 80 < report["splits"]["valid"] < 120


def test_the_shares_are_those_of_the_rows_that_are_used(stage: Stage) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([dated(n) for n in range(40)] + [dated(0)] * 40))
    assert stage.run(BY)["splits"] == {"train": 28, "valid": 0, "dev": 4, "test": 8}
