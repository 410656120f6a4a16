"""Several training seeds in the report, and what a single one cannot tell."""

import json
from pathlib import Path

from shadowft_core.report.record import by_seed, not_tested
from shadowft_core.verdict import judge
from tests.fixtures.arms import CANDIDATE, CLEAR, PARAMS, arena, five
from tests.fixtures.report import dump, page, write_work
from tests.test_verdict_seeds import LUCKY, seeded


def test_the_table_by_seed_has_arms_and_differences(tmp_path: Path) -> None:
    found = judge(seeded(LUCKY), PARAMS, candidate=CANDIDATE)
    rows = {row["name"]: row["values"] for row in by_seed(found)}
    assert rows["shadow_scaled"] == [(7, 0.8), (8, 0.5375), (9, 0.525)]
    assert rows["shadow_scaled minus direct_scaled"] == [("7", 0.25), ("8", -0.025), ("9", -0.0125)]
    assert "instruct" not in rows
    write_work(tmp_path)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    verdict["arms"]["shadow_scaled"]["seeds"] = found["arms"]["shadow_scaled"]["seeds"]
    [claim] = [c for c in verdict["claims"] if (c["gate"], c["against"]) == (False, "direct_scaled")]
    claim["by_seed"] = {"7": 0.25, "8": -0.025}
    dump(tmp_path / "verdict.json", verdict)
    shown = page(tmp_path).text
    table = shown[shown.index("Seed by seed") :]
    assert table.index("0.800seed 7") < table.index("0.537seed 8") < table.index("0.525seed 9")
    assert table.index("+0.250seed 7") < table.index("−0.025seed 8") < table.index("–seed –")
    assert "shadow_scaled scores higher than direct_scaled on the domain, over 2 training seeds" in shown


def test_a_run_of_one_seed_has_no_table_but_says_so(tmp_path: Path) -> None:
    found = judge(arena(five(CLEAR)), PARAMS, candidate=CANDIDATE)
    assert by_seed(found) == []
    write_work(tmp_path)
    shown = page(tmp_path).text
    assert "Seed by seed" not in shown
    assert (
        shown.count("cannot tell how much of a difference between two ways of tuning is due to chance in training") == 1
    )


def test_what_further_seeds_do_not_tell_is_said() -> None:
    found = judge(seeded(LUCKY), PARAMS, candidate=CANDIDATE)
    said = not_tested(found, ["shadow", "direct"], {}, None, {})
    assert any(one.startswith("What would ship was trained once; further seeds count only for claims") for one in said)
    assert not any("One training run per route" in one for one in said)
