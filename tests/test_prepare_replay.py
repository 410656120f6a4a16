"""Replay: general rows that are added to the training split alone."""

from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import DataError
from shadowft_core.params import Newest, Prepare, Replay
from tests.fixtures.data import Stage, lines, pinned, talk

LONG = " ".join(f"word{n}" for n in range(40))
MAIN = Prepare(data="-", valid=0.1, dev=0.1, test=0.2, max_bad=0.9)
OWN = [talk(f"question {n}", f"answer {n}") for n in range(200)]
GENERAL = [talk(f"general {n}", f"said {n}") for n in range(120)]


@pytest.fixture
def general(stage: Stage, tmp_path: Path) -> Path:
    """A folder beside the data, with a file named as one of the data."""
    (stage.data / "rows.jsonl").write_bytes(lines(OWN))
    (tmp_path / "general").mkdir()
    (tmp_path / "general/rows.jsonl").write_bytes(lines(GENERAL))
    return tmp_path / "general"


def with_replay(place: Path, share: float = 0.2, params: Prepare = MAIN) -> Prepare:
    return pinned(params.model_copy(update={"replay": Replay(data=str(place), share=share)}))


@pytest.mark.parametrize("more", [{}, {"near": None}, {"max_rows": 150}, {"newest": Newest(by="at")}])
def test_the_splits_are_the_same_bytes_with_and_without_replay(
    stage: Stage, general: Path, more: dict[str, Any]
) -> None:
    params = MAIN.model_copy(update=more)
    rows = [row | {"at": 1.6e9 + n} for n, row in enumerate(OWN)]
    (stage.data / "rows.jsonl").write_bytes(lines(rows + rows[:20]))
    plain = stage.run(params)
    before = {path.name: path.read_bytes() for path in stage.out.iterdir()}
    report = stage.run(with_replay(general, params=params))
    after = {path.name: path.read_bytes() for path in stage.out.iterdir()}
    assert after.keys() - before.keys() == {"replay.parquet"}
    same = before.keys() - {"data-report.json", "dropped.jsonl"}
    assert same == {"train.parquet", "valid.parquet", "dev.parquet", "test.parquet"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after["dropped.jsonl"].startswith(before["dropped.jsonl"])
    changed = {name for name in plain if report[name] != plain[name]}
    assert changed == {"digest"}
    assert report.keys() - plain.keys() == {"replay"}


def test_the_share_is_that_of_all_training_rows(stage: Stage, general: Path) -> None:
    report = stage.run(with_replay(general, 0.2))
    trained, added = report["splits"]["train"], len(stage.split("replay"))
    assert added / (trained + added) == pytest.approx(0.2, abs=0.005)
    about = report["replay"]
    assert (about["rows_read"], about["rows_used"], about["share"]) == (120, added, 0.2)
    assert about["rows_dropped"] == {"beyond prepare.replay.share": 120 - added}
    assert about["digest"] == with_replay(general).replay.digest  # type: ignore[union-attr]


def test_a_hash_chooses_the_rows_so_added_rows_move_few(stage: Stage, general: Path) -> None:
    stage.run(with_replay(general))
    one = {row["id"] for row in stage.split("replay")}
    stage.run(with_replay(general))
    assert {row["id"] for row in stage.split("replay")} == one
    (general / "rows.jsonl").write_bytes(lines([*GENERAL[::-1], talk("general 120")]))
    stage.run(with_replay(general))
    assert len({row["id"] for row in stage.split("replay")} - one) <= 1


def test_too_few_usable_rows_are_refused_with_both_numbers(stage: Stage, general: Path) -> None:
    trained = stage.run(MAIN)["splits"]["train"]
    with pytest.raises(DataError, match=rf"expected {4 * trained} replay rows \(0\.8 .*found 120 usable of 120"):
        stage.run(with_replay(general, 0.8))


def test_every_row_that_may_not_be_trained_on_is_left_out_with_its_reason(stage: Stage, general: Path) -> None:
    near = [talk(f"{LONG} {n}", f"own {n}") | {"conversation_id": f"c{n}"} for n in range(100)]
    (stage.data / "near.jsonl").write_bytes(lines(near))
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": "an item"}]))
    params = MAIN.model_copy(update={"near": None})
    stage.run(params)
    numbers = {  # the first row of near.jsonl in each split
        name: next(int(row["prompt"].split()[-1]) for row in stage.split(name) if row["prompt"].startswith(LONG))
        for name in ("test", "dev", "valid", "train")
    }
    planted = {
        "question of a held-out row": [f"  {LONG.upper()} {numbers[name]}" for name in ("test", "dev", "valid")],
        "in a test item": ["An  ITEM"],
        "text only: no prompt and no reply": [{"text": "alone"}],
        "same conversation as a held-out row": [talk("new") | {"conversation_id": f"c{numbers['test']}"}],
        "duplicate": [near[numbers["train"]], GENERAL[0]],
    }
    rows = [row if isinstance(row, dict) else talk(row, "other") for found in planted.values() for row in found]
    (general / "planted.jsonl").write_bytes(lines(rows))
    (general / "rows.jsonl").rename(general / "a.jsonl")
    report = stage.run(with_replay(general, 0.2, params))
    expected = {reason: len(found) for reason, found in planted.items()}
    found = report["replay"]["rows_dropped"]
    assert found.pop("beyond prepare.replay.share") > 0
    assert found == expected
    reasons = [reason for reason, found in planted.items() for _ in found]
    dropped = [one for one in stage.dropped() if one["file"] == "planted.jsonl"]
    assert [one["reason"] for one in sorted(dropped, key=lambda one: one["line"])] == reasons
    assert all(one["of"] == "replay" for one in dropped)


def test_near_copies_are_left_out(stage: Stage, general: Path) -> None:
    """Also of a held-out question whose first near copy in the data is itself left out."""
    copies = [talk(f"{LONG} and {'please ' * (n % 3)}{n}", f"own {n}") for n in range(30)]
    (stage.data / "near.jsonl").write_bytes(lines(copies))
    report = stage.run(MAIN)
    assert report["splits"]["test"]
    assert not [row for row in stage.split() if row["prompt"].startswith(LONG)]
    (general / "near.jsonl").write_bytes(lines([talk(f"{LONG} and then {n}", f"other {n}") for n in range(9)]))
    twin = " ".join(f"twin{n}" for n in range(40))
    (general / "twins.jsonl").write_bytes(lines([talk(twin, "a"), talk(f"{twin}!", "a")]))
    found = stage.run(with_replay(general))["replay"]["rows_dropped"]
    assert (found["near a held-out question"], found["near duplicate"]) == (9, 1)
    assert not [row for row in stage.split("replay") if row["prompt"].startswith(LONG)]


def test_changed_or_missing_files_are_refused(stage: Stage, general: Path) -> None:
    params = with_replay(general)
    (general / ".hidden").write_text("not read")
    stage.run(params)
    (general / "rows.jsonl").write_bytes(lines(GENERAL[:-1]))
    with pytest.raises(DataError, match=r"expected prepare\.replay\.digest, sha256:\w+, found sha256:\w+; if"):
        stage.run(params)
    gone = Prepare(data="-", replay=Replay(data="nowhere", share=0.1))
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; check prepare\.replay\.data"):
        stage.run(gone)
    (general / "rows.jsonl").write_bytes(b"{}\n" * 3)
    with pytest.raises(DataError, match="none of 3 rows is usable"):
        stage.run(with_replay(general))
    (general / "rows.jsonl").write_bytes(lines([*GENERAL, {}, {}]))
    with pytest.raises(
        DataError, match=r"general: 2 of 122 rows \(1\.6%\) are not usable, but prepare\.max_bad allows 1"
    ):
        stage.run(with_replay(general, params=MAIN.model_copy(update={"max_bad": 0.01})))
