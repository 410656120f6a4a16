"""The arena runs through the stages of the product, resumes, and its pages are made from its results."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.arena import EVIDENCE, app
from benchmarks.arena_cell import DEV_GUARDS, DOMAIN, GUARDS, Regime, write_data
from benchmarks.arena_page import TABLES, fill_in, outcome, page
from shadowft_core.demo.pico.world import World
from shadowft_core.errors import InputError

RESULTS = Path(__file__).parent.parent / "benchmarks/results"
MARKS = "\n".join(f"<!-- arena:{name} -->\n<!-- /arena:{name} -->" for name in TABLES)


def test_every_number_of_the_pages_is_made_from_the_results() -> None:
    facts = json.loads((RESULTS / "arena.json").read_text())
    assert (RESULTS / "arena.md").read_text() == page(facts)
    text = EVIDENCE.read_text()
    assert fill_in(text, facts) == text
    changed = json.loads(json.dumps(facts))
    changed["cells"][0]["compared"]["shadow - direct"]["domain"]["difference"] += 0.3
    assert fill_in(text, changed) != text


def test_a_page_with_other_marks_is_refused() -> None:
    facts = json.loads((RESULTS / "arena.json").read_text())
    with pytest.raises(InputError, match="marks"):
        fill_in(MARKS.replace("arena:osf", "arena:off"), facts)
    with pytest.raises(InputError, match="arena:osf has no end"):
        fill_in(MARKS.replace("<!-- /arena:osf -->", ""), facts)


def test_a_cell_is_won_or_lost_only_if_the_interval_excludes_zero() -> None:
    intervals = [[0.01, 0.3], [-0.3, -0.01], [-0.1, 0.3], [0.0, 0.1], [-0.1, 0.0]]
    assert list(map(outcome, intervals)) == ["win", "lose", "tie", "tie", "tie"]


def test_regimes_differ_only_in_style_and_dev_items_are_no_test_items(tmp_path: Path) -> None:
    for regime in (Regime.other, Regime.own):
        write_data(tmp_path / regime, World(1), regime, 40)

    def rows(regime: Regime, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((tmp_path / regime / "data" / f"{name}.json").read_text())
        return found

    for other, own in zip(rows(Regime.other, "alpaca"), rows(Regime.own, "alpaca"), strict=True):
        assert own == other | {"output": f"the answer is {other['output']} ."}
    for other, own in zip(rows(Regime.other, "sharegpt"), rows(Regime.own, "sharegpt"), strict=True):
        assert own["conversations"][0] == other["conversations"][0]
        assert own["conversations"][1]["value"] == f"the answer is {other['conversations'][1]['value']} ."
    for test, dev in zip((DOMAIN, *GUARDS[:3]), (f"{DOMAIN}_dev", *DEV_GUARDS), strict=True):
        asked = [set((tmp_path / "other/tasks" / f"{task}.jsonl").read_text().splitlines()) for task in (test, dev)]
        assert asked[0]
        assert asked[1]
        assert not asked[0] & asked[1]
        assert f"task: {dev}\n" in (tmp_path / "other/tasks" / f"{dev}.yaml").read_text()


@pytest.mark.slow
def test_a_tiny_cell_goes_through_the_stages_and_a_rerun_skips_it(tmp_path: Path) -> None:
    page_file, cells = tmp_path / "evidence.md", tmp_path / "cells.jsonl"
    page_file.write_text(MARKS)
    small = ["--seeds", "0", "--regimes", "replay", "--methods", "full", "--pretrain", "10", "--posttrain", "4"]
    small += ["--rows", "64", "--items", "8", "--cells", str(cells), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*small, "--evidence", str(page_file)])
    assert done.exit_code == 0, done.output
    [line] = filter(None, cells.read_text().splitlines())
    found = json.loads(line)
    assert list(found["arms"]) == [
        "instruct",
        "direct",
        "direct_scaled",
        "osf",
        "osf_scaled",
        "shadow",
        "shadow_scaled",
    ]
    assert found["rows"]["replay"]["rows"] == 27  # three tenths of all training rows
    assert 0.5 < found["before"]["cosine"] <= 1  # four steps apart
    assert found["before"]["instruct"] == pytest.approx(found["losses"]["direct"][0], rel=0.05)
    assert found["decision"] == "hold"  # a pair that knows nothing learns nothing
    assert "| with replay, full |" in page_file.read_text()
    facts = json.loads((tmp_path / "arena.json").read_text())
    assert facts["settings"] == found["settings"]
    assert [(cell["seed"], cell["regime"], cell["arms"].keys()) for cell in facts["cells"]] == [
        (0, "replay", found["arms"].keys())
    ]

    cells.write_text(f'{cells.read_text()}\n{{"seed": 0, "regime": "ow')
    again = CliRunner().invoke(app, [*small, "--evidence", str(page_file)])
    assert again.exit_code == 0, again.output
    assert "arena: 1 of 1 cells are finished" in again.output
    assert "cells.jsonl:4: unfinished" in again.output
    other = CliRunner().invoke(app, [*small, "--items", "7", "--help"])
    assert "Example: python -m benchmarks.arena" in other.output
