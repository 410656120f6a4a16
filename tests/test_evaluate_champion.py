"""The champion as an arm: scored on the same items, from a real store and ledger, if it is a graft on this Instruct."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core import promotion
from shadowft_core.evaluate import evaluate
from shadowft_core.params import Evaluate, load_params
from shadowft_core.verdict.scores import read_arms
from tests.fixtures.answering import note_batches
from tests.fixtures.cli import Shadowft
from tests.fixtures.models import WORDS
from tests.fixtures.runs import ROOT, Released
from tests.fixtures.training import tree
from tests.fixtures.workspace import make_workspace

CHOICE = f"""
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: words.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: a
doc_to_choice: {WORDS[:7]}
"""


@pytest.fixture
def asked() -> Iterator[list[int]]:
    batches: list[int] = []
    undo = note_batches(lambda ids: batches.append(len(ids)))
    yield batches
    undo()


@pytest.fixture
def place(finished_work: Path, released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace: params.yaml, tasks, work/pair and work/grafted of a finished run, its model registered."""
    folder = tmp_path / "place"
    (folder / "tasks").mkdir(parents=True)
    (folder / "data").mkdir()
    shutil.copytree(finished_work / "pair", folder / "work/pair")
    shutil.copytree(finished_work / "grafted", folder / "work/grafted")
    (folder / "tasks/words.yaml").write_text(CHOICE)
    (folder / "tasks/words.jsonl").write_text("".join(f'{{"q": "{word}", "a": "{word}"}}\n' for word in WORDS[:7]))
    params = load_params(ROOT / "params.yaml").model_copy(
        update={
            "evaluate": Evaluate(tasks="tasks", domain=("words",)),
            "store": released.store,
            "registry": released.registry,
        }
    )
    (folder / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    monkeypatch.chdir(folder)
    return folder


WORDS_OF = ["evaluate", "--champion", "--instruct", "work/pair/instruct", "--data", "data"]
CHAMPION = [*WORDS_OF, "--out", "work/scores/champion"]


def score_other_arms(place: Path, finished_work: Path) -> None:
    params, pair = load_params(place / "params.yaml").evaluate, place / "work/pair/instruct"
    delta, grafted = finished_work / "delta/shadow", place / "work/grafted/shadow"
    evaluate(pair, place / "data", None, None, "shadow", params, place / "work/scores/instruct")
    evaluate(pair, place / "data", delta, grafted, "shadow", params, place / "work/scores/shadow")


def facts_of(place: Path) -> Any:
    return json.loads((place / "work/scores/champion/champion/scores.json").read_text())


def test_the_champion_gets_the_items_of_the_other_arms(
    place: Path, finished_work: Path, released: Released, shadowft: Shadowft, asked: list[int]
) -> None:
    score_other_arms(place, finished_work)
    others, before = tree(place / "work/scores"), len(asked)
    arms = read_arms(place / "work/scores", ["shadow"])
    promotion.promote(released.registry, released.store, "2")
    assert shadowft(*CHAMPION).code == 0
    facts, twin = facts_of(place), json.loads(others["shadow/shadow_scaled/scores.json"])
    assert facts == twin | {"arm": "champion", "version": 2, "label": facts["label"]}
    assert facts["model_digest"] == json.loads((place / "work/grafted/shadow/recipe.json").read_text())["digest"]
    written = tree(place / "work/scores")
    assert written["champion/champion/items.jsonl"] == others["shadow/shadow_scaled/items.jsonl"]
    assert len(asked) == before, "the same model was scored a moment ago: the journal has its answers"
    assert {name: raw for name, raw in written.items() if not name.startswith("champion/")} == others
    assert read_arms(place / "work/scores", ["shadow"]) == arms, "the verdict does not trip over the further folder"


def test_without_a_champion_it_says_so_and_writes_nothing(place: Path, released: Released, shadowft: Shadowft) -> None:
    done = shadowft(*CHAMPION)
    assert done.code == 0
    assert f"ledger of {released.name}" in done.err
    assert "nothing was ever promoted; no champion is scored" in done.err
    assert not (place / "work/scores").exists()
    assert shadowft(*CHAMPION, "--name", released.name).code == 0, "the model of the params file may be new"


def test_an_unknown_model_is_refused_and_earlier_scores_stay(
    place: Path, released: Released, shadowft: Shadowft
) -> None:
    promotion.promote(released.registry, released.store, "1")
    assert shadowft(*CHAMPION).code == 0
    before = tree(place / "work/scores")
    shadowft(*CHAMPION, "--name", "another").refused(9, "another: the registry at", "correct the name")
    assert tree(place / "work/scores") == before
    assert shadowft(*CHAMPION, "--name", released.name).code == 0


def test_a_champion_on_another_instruct_is_not_scored_and_an_earlier_one_goes(
    place: Path, released: Released, shadowft: Shadowft, finished_work: Path
) -> None:
    promotion.promote(released.registry, released.store, "1")
    assert shadowft(*CHAMPION).code == 0
    assert facts_of(place)["version"] == 1
    shutil.rmtree(place / "work/pair/instruct")
    shutil.copytree(finished_work / "grafted/shadow", place / "work/pair/instruct")
    done = shadowft(*CHAMPION)
    assert done.code == 0
    assert "version 1: is a graft on the Instruct sha256:" in done.err
    assert "work/scores/champion: removed, because its scores are those of an earlier champion" in done.err
    assert not (place / "work/scores/champion").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [*CHAMPION, "--delta", "work/delta"],
            "--champion: scores only the champion; leave out --delta and --grafted",
        ),
        ([*CHAMPION, "--grafted", "work/delta"], "leave out --delta and --grafted"),
        ([word for word in CHAMPION if word != "--champion"] + ["--name", "x"], "--name x: chooses the champion"),
    ],
)
def test_options_that_contradict_are_refused(place: Path, shadowft: Shadowft, words: list[str], said: str) -> None:
    shadowft(*words).refused(3, said)


def test_damage_in_the_store_is_refused_and_nothing_written(
    place: Path, released: Released, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)  # else the folder that the recipe names is read
    entry = promotion.promote(released.registry, released.store, "1").entry
    root = Path(released.store.uri)
    chunk = max((root / "objects").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    good = chunk.read_bytes()
    chunk.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = shadowft(*CHAMPION)
    assert (done.code, (place / "work/scores").exists()) == (8, False), done
    chunk.write_bytes(good)
    next(root.rglob(f"records/*{entry.recipe.removeprefix('sha256:')}*")).unlink()
    shadowft(*CHAMPION).refused(9, f"version 1: its recipe {entry.recipe} is not in store")
    assert not (place / "work/scores").exists()


@pytest.mark.slow
def test_the_step_of_the_flow_runs_the_verb(place: Path, released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    from shadowft_core.pipeline.steps import champion

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said: list[str] = []
    words = released.name, "work/pair/instruct", "data", "work/scores/champion", said.append
    state = champion.fn(*words)
    assert state.is_completed()
    assert state.message is not None
    assert "nothing was ever promoted" in state.message
    promotion.promote(released.registry, released.store, "1")
    assert champion.fn(*words).message == "champion: work/scores/champion"
    assert facts_of(place)["version"] == 1
    assert any("champion words 7/7" in line for line in said)
    (place / "tasks/words.jsonl").write_text("")
    failed = champion.fn(*words)
    assert failed.is_failed()
    assert "words.jsonl: has no rows" in (failed.message or "")


@pytest.mark.slow
def test_a_run_scores_the_champion_before_it_judges(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last run has another champion; a task that writes its scores stands for the evaluation. The stage `look` runs
    each time, and those after it only if it wrote other bytes."""
    from prefect import task

    from flows.retrain import retrain
    from shadowft_core.pipeline import steps

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = make_workspace(tmp_path / "flow")
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())
    for name, out in (("prepare", "work/data"), ("evaluate-instruct", "work/scores/instruct")):
        stages["stages"][name] = {
            "cmd": [f"echo {name} >> order.txt", f"mkdir -p {out}", f"touch {out}/file"],
            "deps": ["work/pair/instruct"],
            "outs": [out],
        }
    stages["stages"]["look"] = {
        "cmd": ["echo look >> order.txt", "find work/scores -type f | sort > work/run.json"],
        "deps": ["work/scores"],
        "outs": ["work/run.json"],
    }
    stages["stages"]["verdict"]["deps"].append("work/run.json")
    (folder / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))

    def run() -> list[str]:
        (folder / "order.txt").unlink(missing_ok=True)
        state = retrain(str(folder), return_state=True)
        assert state.is_completed(), state.message
        return (folder / "order.txt").read_text().split() if (folder / "order.txt").exists() else []

    everything = run()
    assert {"evaluate-instruct", "look", "verdict"} < set(everything)
    assert "nothing was ever promoted; no champion is scored" in capsys.readouterr().out
    assert run() == ["look"]
    kept = (folder / "var/costs.json").read_bytes()
    assert {row["stage"] for row in json.loads(kept)["costs"]} >= {"fetch", "evaluate-instruct", "extract@shadow"}
    assert not {"look", "verdict", "report"} & {row["stage"] for row in json.loads(kept)["costs"]}

    @task
    def other(name: str, instruct: str, data: str, out: str, show: object) -> None:
        assert (name, instruct, data) == ("shadowft-pico", "work/pair/instruct", "work/data")
        Path(out, "champion").mkdir(parents=True)
        Path(out, "champion/scores.json").write_text('{"arm": "champion"}')

    monkeypatch.setattr(steps, "champion", other)
    assert run() == ["look", "verdict"], "and the report, if the verdict had changed"
    assert (folder / "var/costs.json").read_bytes() == kept
    assert (folder / "work/scores/champion/champion/scores.json").exists()
