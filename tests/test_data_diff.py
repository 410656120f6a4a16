"""`shadowft data diff`: what changed between two versions of data."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from shadowft_core.params import Prepare, Replay
from shadowft_core.prepare import prepare
from tests.fixtures.cli import Shadowft
from tests.fixtures.data import Stage, lines, pinned, talk
from tests.fixtures.pictures import picture


def compared(shadowft: Shadowft, first: Path, second: Path) -> dict[str, Any]:
    """The answer of `data diff`, as JSON."""
    done = shadowft("data", "diff", first, second, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_added_removed_moved_and_changed_rows_are_counted(stage: Stage, shadowft: Shadowft) -> None:
    rows = [talk(f"question {number}") for number in range(40)]
    (stage.data / "rows.jsonl").write_bytes(lines([*rows, {}, rows[0]]))
    old = stage.run(Prepare(data="-", valid=0, max_bad=0.9, test=0.2))
    first = stage.out.rename(stage.out.with_name("first"))
    (stage.data / "rows.jsonl").write_bytes(lines([talk("question 0", "better"), *rows[2:], talk("a new question")]))
    new = stage.run(Prepare(data="-", valid=0, max_bad=0.9, test=0.5))
    found = compared(shadowft, first, stage.out)
    splits = found["splits"]
    assert {name: one["before"] for name, one in splits.items()} == {k: n for k, n in old["splits"].items() if n}
    assert {name: one["after"] for name, one in splits.items()} == {k: n for k, n in new["splits"].items() if n}
    assert sum(one["added"] for one in splits.values()) == 2
    assert sum(one["removed"] for one in splits.values()) == 2
    moved = found["moved"]["rows"]
    assert found["moved"]["ways"] == {"train to test": moved}
    assert moved + sum(one["kept"] for one in splits.values()) == 38
    assert moved > 0
    assert found["changed"] == {"questions": 1, "examples": [{"first": "rows.jsonl:1", "second": "rows.jsonl:1"}]}
    no_fields = next(reason for reason in old["rows_dropped"] if reason.startswith("no known fields"))
    assert found["dropped"] == {"duplicate": {"before": 1, "after": 0}, no_fields: {"before": 1, "after": 0}}
    assert not found["equal"]
    text = shadowft("data", "diff", first, stage.out).out
    assert f"moved from train to test: {moved}\n" in text
    assert "questions with a changed reply: 1\n  rows.jsonl:1 is now rows.jsonl:1\n" in text


def test_equal_versions_are_named_equal(stage: Stage, shadowft: Shadowft) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {number}") for number in range(5)]))
    stage.run()
    copy = shutil.copytree(stage.out, stage.out.with_name("copy"))
    found = compared(shadowft, stage.out, copy)
    assert (found["equal"], found["moved"]["rows"], found["changed"]["questions"]) == (True, 0, 0)


def test_data_files_are_compared_before_they_are_prepared(tmp_path: Path, shadowft: Shadowft) -> None:
    (tmp_path / "one.jsonl").write_bytes(lines([talk("a"), talk("b"), talk("b"), {"text": "x"}]))
    (tmp_path / "two.jsonl").write_bytes(lines([talk("b"), talk("a", "other"), talk("c")]))
    found = compared(shadowft, tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    assert found["splits"] == {"rows": {"before": 2, "after": 3, "added": 2, "removed": 1, "kept": 1}}
    assert found["changed"]["examples"] == [{"first": "one.jsonl:1", "second": "two.jsonl:2"}]
    assert found["dropped"]["duplicate"] == {"before": 1, "after": 0}
    shadowft("data", "diff", tmp_path / "absent", tmp_path).refused(3, "absent: no such file or folder")


def test_a_reply_that_is_only_added_is_no_changed_one(tmp_path: Path, shadowft: Shadowft) -> None:
    (tmp_path / "one.jsonl").write_bytes(lines([talk("a", "1"), talk("b", "1"), talk("b", "2"), talk("c", "1")]))
    (tmp_path / "two.jsonl").write_bytes(lines([talk("a", "1"), talk("a", "2"), talk("b", "1"), talk("c", "2")]))
    changed = compared(shadowft, tmp_path / "one.jsonl", tmp_path / "two.jsonl")["changed"]
    assert changed == {"questions": 1, "examples": [{"first": "one.jsonl:4", "second": "two.jsonl:4"}]}


def test_replay_rows_are_compared_too(stage: Stage, tmp_path: Path, shadowft: Shadowft) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}") for n in range(40)]))
    (tmp_path / "general.jsonl").write_bytes(lines([talk(f"general {n}") for n in range(40)]))
    stage.run()
    first = stage.out.rename(tmp_path / "first")
    stage.run(pinned(Prepare(data="-", valid=0, replay=Replay(data=str(tmp_path / "general.jsonl"), share=0.2))))
    found = compared(shadowft, first, stage.out)
    assert found["splits"]["replay"] == {"before": 0, "after": 10, "added": 10, "removed": 0, "kept": 0}


def test_data_files_are_read_with_their_columns_and_images(tmp_path: Path, shadowft: Shadowft) -> None:
    """A row about another image is another row."""
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert "prepare:\n" in text
    text = text.replace("prepare:\n", "prepare:\n  columns: {Frage: question}\n")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
        row = {"Frage": "What?", "answer": "A cat", "image": f"{number}.png"}
        (tmp_path / f"{number}.jsonl").write_bytes(lines([row]))
    done = shadowft(
        "data", "diff", tmp_path / "0.jsonl", tmp_path / "1.jsonl", "--params", tmp_path / "params.yaml", "--json"
    )
    assert json.loads(done.out)["splits"] == {"rows": {"before": 1, "after": 1, "added": 1, "removed": 1, "kept": 0}}


def test_prepared_data_and_data_files_are_not_compared(stage: Stage, shadowft: Shadowft) -> None:
    rows = stage.data / "rows.jsonl"
    rows.write_bytes(lines([talk("a"), talk("b")]))
    stage.run()
    for pair in ((stage.out, rows), (rows, stage.out)):
        shadowft("data", "diff", *pair).refused(3, "rows.jsonl: expected a folder made by `shadowft prepare`, as ")


def test_a_line_number_is_printed_as_it_is(tmp_path: Path, shadowft: Shadowft) -> None:
    """Of `rows.jsonl:100: train` a console makes an emoji, unless told otherwise."""
    splits = {name: Prepare(data="-", valid=0, test=test) for name, test in (("one", 0.0), ("two", 0.5))}
    (tmp_path / "rows.jsonl").write_bytes(b"\n" * 99 + lines([talk(str(n)) for n in range(20)]))
    for name, params in splits.items():
        prepare(tmp_path / "rows.jsonl", None, params, tmp_path / name)
    text = shadowft("data", "diff", tmp_path / "one", tmp_path / "two").out
    moved = [line for line in text.splitlines() if line.startswith("  rows.jsonl")]
    assert moved
    assert all(re.fullmatch(r"  rows\.jsonl:1[01][0-9]: train to test", line) for line in moved)
