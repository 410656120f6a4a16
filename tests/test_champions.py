"""The best earlier champion as an arm: real versions of a tiny model, in a real ledger and store."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from shadowft_core import promotion
from shadowft_core.delta import extract
from shadowft_core.files import file_digest
from shadowft_core.grafting import graft
from shadowft_core.params import Evaluate
from shadowft_core.promotion.looks import ItemSet, Looks
from shadowft_core.store import publish
from shadowft_core.verdict import verdict
from shadowft_core.verdict.scores import read_arm
from tests.fixtures.arms import arm
from tests.fixtures.cli import Ended, Shadowft
from tests.fixtures.models import WORDS
from tests.fixtures.runs import Run, write_verdict
from tests.test_verdict_files import PARAMS, write_arm

SCORE = [
    "evaluate",
    "--champion",
    "--instruct",
    "work/pair/instruct",
    "--data",
    "data",
    "--out",
    "work/scores/champion",
]


class Line:
    """A model with a version for each scale at which it was promoted. The larger the scale, the worse it is."""

    def __init__(self, run: Run, shadowft: Shadowft) -> None:
        self.run, self.shadowft = run, shadowft
        self.params = run.params.model_copy(
            update={"evaluate": Evaluate(tasks="tasks", domain=("heldout",), kl_answers=0)}
        )
        self.write_params()

    def write_params(self) -> None:
        Path("params.yaml").write_text(yaml.safe_dump(self.params.model_dump(mode="json")))

    def promote(self, scale: float, delta: Path) -> int:
        """Register the graft at a scale, and make it champion."""
        run = self.run
        publish(delta, run.params.store)
        shutil.rmtree(run.work / "delta/shadow")
        shutil.copytree(delta, run.work / "delta/shadow")
        recipe = graft(run.work / "pair/instruct", [(delta, scale)], run.work / "grafted/shadow")
        write_verdict(run.work, "promote", recipe["digest"], note=str(scale))
        run.lock.write_text(f"schema: '2.0'\nscale: {scale}\n")
        version = run.register().number
        return promotion.promote(run.params.registry, run.params.store, str(version)).number

    def score(self) -> Ended:
        done: Ended = self.shadowft(*SCORE)
        assert done.code == 0, done.err
        return done

    def arms(self) -> dict[str, int]:
        """The version of each arm that was written."""
        found = Path("work/scores/champion").glob("*/scores.json")
        return {path.parent.name: json.loads(path.read_text())["version"] for path in found}

    def listed(self) -> Any:
        return json.loads(Path("work/scores/champion/champions.json").read_text())


@pytest.fixture
def line(run: Run, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch) -> Line:
    folder = run.work.parent
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SHADOWFT_STORE_URI", run.params.store.uri)
    (folder / "tasks").mkdir()
    (folder / "data").mkdir()
    shutil.rmtree(run.work / "scores/shadow")
    rows = [
        {"messages": [{"role": "user", "content": WORDS[at]}, {"role": "assistant", "content": WORDS[-at - 1]}]}
        | {"source": f"rows.jsonl:{at}"}
        for at in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/test.parquet")
    return Line(run, shadowft)


def test_the_best_earlier_champion_is_an_arm_if_it_is_better(line: Line, finished_work: Path, tmp_path: Path) -> None:
    delta, other = finished_work / "delta/shadow", tmp_path / "other"
    extract(line.run.work / "pair/base", finished_work.parent / "tuned", other, storage="float32")
    assert file_digest(other / "delta.json") != file_digest(delta / "delta.json")
    assert line.promote(60, delta) == 1
    line.score()
    assert line.arms() == {"champion": 1}
    assert not Path("work/scores/champion/champions.json").exists(), "there is no earlier one"
    assert [line.promote(1, other), line.promote(30, delta)] == [2, 3]
    done = line.score()
    assert line.arms() == {"champion": 3, "best_champion": 2}
    assert "version 2: was better on these items" in done.err
    first = line.listed()
    means = {one["version"]: one["mean"] for one in first["considered"]}
    assert means[2] > means[3] > means[1]
    best = read_arm(Path("work/scores/champion/best_champion"), "best_champion")
    assert np.mean(list(best.scores["heldout"].values())) == pytest.approx(means[2])
    line.score()
    assert line.listed() == first

    # What a look recorded on the same items is not measured again: without the means, version 1 would have to be.
    items = ItemSet.of_arm(best)
    instruct = json.loads((line.run.work / "pair/pair.json").read_text())["instruct"]["digest"]
    recorded = {one["digest"]: one["mean"] for one in first["considered"]}
    facts: dict[str, Any] = {"model_name": "m", "commit": None, "dirty": None, "costs": []}
    Looks(line.run.params.store, instruct).take(items, "sha256:" + "9" * 64, means=recorded, **facts)
    done = line.score()
    assert (line.arms(), line.listed()) == ({"champion": 3, "best_champion": 2}, first)
    assert "version 1 heldout" not in done.err
    assert "best_champion heldout" in done.err

    # The delta of the best is gone, then the recipe of the other: both are named, neither is an error.
    store = Path(line.run.params.store.uri)
    (store / "deltas" / file_digest(other / "delta.json").removeprefix("sha256:")).unlink()
    done = line.score()
    assert "earlier champion, version 2: skipped: store" in done.err
    assert line.arms() == {"champion": 3}
    [gone] = line.listed()["skipped"]
    assert (gone["version"], gone["digest"]) == (
        2,
        next(one["digest"] for one in first["considered"] if one["version"] == 2),
    )
    assert f"lacks delta {file_digest(other / 'delta.json')}" in gone["reason"]
    [entry] = [e for e in promotion.history(line.run.params.registry, line.run.params.store).entries if e.version == 1]
    (store / "records" / entry.recipe.removeprefix("sha256:")).unlink()
    line.score()
    assert [one["version"] for one in line.listed()["skipped"]] == [2, 1]
    assert [one["version"] for one in line.listed()["considered"]] == [3]


def test_the_journal_answers_when_earlier_champions_are_scored_again(line: Line, finished_work: Path) -> None:
    delta = finished_work / "delta/shadow"
    for scale in (30, 60, 1):
        line.promote(scale, delta)
    done = line.score()
    assert line.arms() == {"champion": 3}, "the last one is the best"
    assert "answers from" not in done.err
    assert [one["version"] for one in line.listed()["considered"]] == [3, 2, 1]
    done = line.score()
    assert done.err.count("12 of 12 answers from an earlier run") == 3


def test_an_earlier_champion_that_this_program_cannot_rebuild_is_skipped(
    line: Line, finished_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of the arithmetic. For the champion itself it is an error."""
    from shadowft_core.promotion import recorded

    real = recorded.parse_recipe
    delta = finished_work / "delta/shadow"
    for scale in (1, 30):
        line.promote(scale, delta)
    wrong = {1.0}

    def parsed(raw: bytes, where: str) -> dict[str, Any]:
        recipe = real(raw, where)
        return recipe | ({"digest": "sha256:" + "0" * 64} if recipe["deltas"][0]["scale"] in wrong else {})

    monkeypatch.setattr(recorded, "parse_recipe", parsed)
    assert "skipped: version 1: its recipe gives the model" in line.score().err
    assert line.arms() == {"champion": 2}
    wrong = {30.0}
    line.shadowft(*SCORE).refused(7, "version 2: its recipe gives the model")


def test_on_an_instruct_of_before_only_earlier_champions_are_arms(
    line: Line, finished_work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion is a graft on another Instruct, so nothing is claimed about it; `look` agrees."""
    from shadowft_core.promotion import recorded

    real = recorded.parse_recipe
    for scale in (60, 1, 30):
        line.promote(scale, finished_work / "delta/shadow")

    def parsed(raw: bytes, where: str) -> dict[str, Any]:
        recipe = real(raw, where)
        return recipe | ({"instruct": {"digest": "sha256:" + "0" * 64}} if recipe["deltas"][0]["scale"] == 30 else {})

    monkeypatch.setattr(recorded, "parse_recipe", parsed)
    done = line.score()
    assert "version 3: is a graft on the Instruct sha256:0" in done.err
    assert line.arms() == {"best_champion": 2}
    assert [one["version"] for one in line.listed()["considered"]] == [2, 1]


def decline(weeks: int, loss: int, with_best: bool, folder: Path) -> list[str]:
    """The decisions of weekly challengers, each `loss` of 4000 items worse than the champion of the week before."""
    n, serving, best, decisions = 4000, 3600, 3600, []
    for week in range(weeks):
        scores, right = folder / str(week), serving - loss
        shares = {"instruct": 2000, "champion": serving, "shadow": right, "shadow_scaled": right}
        if with_best and best > serving:
            shares["best_champion"] = best
        for name, share in shares.items():
            group = "champion" if "champion" in name else name.split("_")[0]
            made = arm(name, {"skill": ("domain", (np.arange(n) < share).astype(float))}, digest=f"{name} {share}")
            write_arm(scores / group / name, made, made.model_digest)
        (scores / "candidate.json").write_text(
            json.dumps({"format": 1, "arm": "shadow_scaled", "route": "shadow", "scale": 1.0, "reason": ""})
        )
        verdict(scores, [], ["shadow"], PARAMS, scores / "v.json", candidate=scores / "candidate.json")
        decisions.append(json.loads((scores / "v.json").read_text())["decision"])
        if decisions[-1] == "promote":
            serving = right
    return decisions


def test_a_slow_decline_is_stopped_by_the_best_champion(tmp_path: Path) -> None:
    """Each challenger is 2 points worse than the champion, within the margin of 3. The second is 4 below the best."""
    assert decline(6, 80, False, tmp_path / "without") == ["promote"] * 6, "12 points are lost"
    assert decline(6, 80, True, tmp_path / "with") == ["promote", *["hold"] * 5]
