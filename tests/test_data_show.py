"""`shadowft data show`: prepared data as a person sees it."""

import json
from typing import Any

from tests.fixtures.cli import Shadowft
from tests.fixtures.data import Stage, lines, talk


def shown(shadowft: Shadowft, *words: object) -> dict[str, Any]:
    """The answer of `data show`, as JSON."""
    done = shadowft("data", "show", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_ten_rows_and_the_size_of_each_split_are_shown(stage: Stage, shadowft: Shadowft) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}", "word " * n + "end") for n in range(30)]))
    report = stage.run()
    found = shown(shadowft, stage.out)
    assert {name: one["rows"] for name, one in found["splits"].items()} == report["splits"]
    assert found["splits"]["train"]["characters"] == report["characters"]["train"]
    smallest = sorted(row["id"] for row in stage.split())[:10]
    expected = [row["messages"] for row in stage.split() if row["id"] in smallest]
    assert [sample["messages"] for sample in found["samples"]] == expected
    assert len(expected) == 10
    text = shadowft("data", "show", stage.out).out
    assert f"user: {expected[0][0]['content']}\nassistant: {expected[0][1]['content']}\n" in text


def test_a_folder_of_something_else_is_refused(stage: Stage, shadowft: Shadowft) -> None:
    shadowft("data", "show", stage.data).refused(3, "data: expected a folder made by `shadowft prepare`")
