"""The demo decides something, and life goes on after it: runs of the whole flow on the embedded pair.

Which arm wins is left open: it may differ from processor to processor.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.demo import GAIN, Facts, demo, facts, table, workspace
from shadowft_core.demo.pico.generate import files
from shadowft_core.demo.pico.world import World
from tests.fixtures.checkouts import edit_params, run

NAME = "shadowft-pico"


def shadowft(place: Path, *words: str, code: int = 0) -> Any:
    """The answer of a verb."""
    return json.loads(run(place, "shadowft", *words, "--json", code=code).splitlines()[-1])


@dataclass(frozen=True)
class Walk:
    """A run at half the scale, promoted; the demo as it is, promoted; and at half the scale again."""

    place: Path
    verdicts: list[dict[str, Any]]
    facts: Facts
    """of the demo as it is"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, pico_pair: Path) -> Walk:
    place = workspace(0, tmp_path_factory.mktemp("demo"))
    verdicts, found = [], {}
    for version, scale in enumerate((0.5, "sweep", 0.5), start=1):
        edit_params(place, graft={"scale": scale})
        demo(place)
        verdicts.append(json.loads((place / "work/verdict.json").read_text(encoding="utf-8")))
        if scale == "sweep":
            found = facts(place)
            print("\n".join(table({0: found})))
        shadowft(place, "promote", NAME, str(version), code=0 if version < 3 else 10)
    return Walk(place, verdicts, found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("check", ["learns", "harms", "half", "promoted"])
def test_the_demo_shows_what_it_is_meant_to_show(walk: Walk, check: str) -> None:
    assert GAIN == 0.3
    assert walk.facts["checks"].keys() == {"learns", "harms", "half", "promoted"}
    assert walk.facts["checks"][check], walk.facts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_better_run_is_promoted_and_a_worse_one_is_held(walk: Walk) -> None:
    assert [verdict["decision"] for verdict in walk.verdicts] == ["promote", "promote", "hold"]
    first, second, third = ({claim["against"]: claim for claim in verdict["claims"]} for verdict in walk.verdicts)
    assert "champion" not in first
    assert second["champion"]["outcome"] == "passed"
    assert third["champion"]["outcome"] == "worse"
    assert walk.verdicts[2]["arm"] == "champion", "which stays"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_history_has_both_promotions_and_a_rollback_returns_to_the_first(walk: Walk) -> None:
    said = shadowft(walk.place, "history", NAME)
    assert [(entry["action"], entry["version"], entry["decision"]) for entry in said["entries"]] == [
        ("promote", 1, "promote"),
        ("promote", 2, "promote"),
    ]
    assert len(shadowft(walk.place, "history", NAME, "--looks")["looks"]) == 2, "the third run judged the first model"
    shadowft(walk.place, "rollback", NAME, "--reason", "a test")
    last = shadowft(walk.place, "history", NAME)["entries"][-1]
    assert (last["action"], last["version"], last["reason"]) == ("rollback", 1, "a test")


def test_a_seed_gives_the_same_rows_and_items_every_time_and_another_seed_others() -> None:
    assert files(World(3)) == files(World(3))
    for path, content in files(World(3)).items():
        assert content != files(World(4))[path], path
