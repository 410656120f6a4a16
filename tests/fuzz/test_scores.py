"""Damaged scores, sweeps and candidates, as select, look and verdict read them."""

import shutil
from pathlib import Path

from shadowft_core.selection import read_candidate, select
from shadowft_core.verdict import verdict
from shadowft_core.verdict.scores import read_arm, with_further
from tests.fixtures.arms import CLEAR, PARAMS, arena, five
from tests.fuzz.damage import json_damage, lines_damage
from tests.fuzz.harness import Target, fuzzed
from tests.test_selection import write_sweep
from tests.test_verdict_files import write_arm

ARMS = ("instruct", "shadow", "shadow_scaled")


def make_scores(folder: Path) -> None:
    for name, arm in arena(five(CLEAR, 20)).items():
        if name in ARMS:
            write_arm(folder / "scores" / name.split("_")[0] / name, arm, name)
    shutil.copytree(folder / "scores/shadow/shadow", folder / "seeds/shadow/1/shadow")
    (folder / "seeds/shadow/seeds.json").write_text('{"format":1,"first":0,"further":[{"seed":1}]}')
    (folder / "recipe.json").write_text('{"format":1,"digest":"shadow_scaled"}')


def read_scores(folder: Path) -> None:
    params = PARAMS.model_copy(update={"resamples": 199})
    with_further({"shadow": read_arm(folder / "scores/shadow/shadow")}, folder / "seeds")
    verdict(folder / "scores", [folder / "recipe.json"], ["shadow"], params, folder.parent / "out" / "verdict.json")


def make_sweeps(folder: Path) -> None:
    for route in ("shadow", "direct"):
        write_sweep(folder, route, [(0.5, 0.4, 0.9), (1.0, 0.8, 0.9)])
    select(folder, ["shadow", "direct"], 0.02, folder / "candidate.json")


def read_sweeps(folder: Path) -> None:
    read_candidate(folder / "candidate.json")
    select(folder, ["shadow", "direct"], 0.02, folder.parent / "out" / "candidate.json")
    read_candidate(folder.parent / "out" / "candidate.json")


test_hostile_scores = fuzzed(
    Target(
        "scores",
        make_scores,
        read_scores,
        {"scores/*/*/scores.json": json_damage, "scores/*/*/items.jsonl": lines_damage, "**/s*s.json": json_damage}
        | {"recipe.json": json_damage},
    ),
    Target("sweeps", make_sweeps, read_sweeps, {"*.json": json_damage}),
)
