"""The stage look: run.json from real score folders, a real store and ledger, and the verdict that follows."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from shadowft_core import promotion
from shadowft_core.files import write_json_atomically
from shadowft_core.params import Registry, Store, load_params
from shadowft_core.promotion.costs import costs_of, record_cost
from shadowft_core.promotion.looks import Looks
from shadowft_core.registry.rebuild import parse_recipe
from shadowft_core.store import record
from tests.fixtures.arms import CLEAR, arena, arm, five
from tests.fixtures.checkouts import two_routes
from tests.fixtures.cli import Shadowft
from tests.fixtures.runs import ROOT, Released
from tests.test_verdict_files import edit, write_arm

INSTRUCT = "sha256:" + "1" * 64
LOOK = ["look", "--scores", "work/scores", "--candidate", "work/candidate.json", "--out", "work/run.json"]
VERDICT = ["verdict", *LOOK[1:5], "--run", "work/run.json", "--out", "work/verdict.json"]


def model(number: int) -> str:
    return f"sha256:{number:064x}"


def choose(work: Path, name: str | None, digest: str = "") -> None:
    """Make this arm the candidate, and its model this one."""
    found = {"format": 1, "arm": name, "route": None, "scale": None, "reason": "Nothing beats scale 0."}
    if name:
        found |= {"route": name.removesuffix("_scaled"), "scale": 1.0}
    write_json_atomically(work / "candidate.json", found)
    if name:
        edit(work / "scores" / name.split("_")[0] / name / "scores.json", model_digest=digest)


@pytest.fixture
def place(folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with scores of five arms; `direct_scaled`, model 2, is the candidate."""
    params = load_params(ROOT / "params.yaml").model_copy(
        update={"store": folder_store, "registry": Registry(name="m", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")}
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    two_routes(tmp_path)
    for number, (name, one) in enumerate(arena(five(CLEAR)).items(), start=10):
        digest = INSTRUCT if name == "instruct" else model(number)
        write_arm(tmp_path / "work/scores" / name.split("_")[0] / name, one, digest)
    choose(tmp_path / "work", "direct_scaled", model(2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "work/run.json").read_text())
    return found


def test_run_json_tells_the_look_and_is_the_same_each_time(
    place: Path, folder_store: Store, shadowft: Shadowft
) -> None:
    assert shadowft(*LOOK).code == 0
    first, raw = told(place), (place / "work/run.json").read_bytes()
    [entry] = Looks(folder_store, INSTRUCT).chain().entries
    assert first == {
        "format": 1, "candidate": model(2), "items": entry.items, "look": 1, "earlier": [], "champion": None,
        "best_champion": None, "skipped": [], "commit": None, "date": None, "dirty": None, "costs": [],
    }  # fmt: skip
    assert entry.means == {model(2): CLEAR["direct_scaled"] / 400}
    assert shadowft(*LOOK).code == 0
    assert (place / "work/run.json").read_bytes() == raw
    choose(place / "work", "shadow_scaled", model(3))
    assert shadowft(*LOOK).code == 0
    second = told(place)
    assert (second["look"], second["items"]) == (2, first["items"])
    assert second["earlier"] == [
        {"number": 1, "candidate": model(2), "model_name": "m", "commit": None, "overlap": 400}
    ]
    assert shadowft(*VERDICT).code == 0
    judged = json.loads((place / "work/verdict.json").read_text())
    assert (judged["look"]["number"], judged["look"]["alpha"], judged["look"]["left"]) == pytest.approx(
        (2, 0.005, 0.005)
    )
    choose(place / "work", "direct_scaled", model(2))
    assert shadowft(*LOOK).code == 0
    assert (place / "work/run.json").read_bytes() == raw, "judged again: whatever came later"


def test_without_a_candidate_no_look_is_spent(place: Path, folder_store: Store, shadowft: Shadowft) -> None:
    choose(place / "work", None)
    assert shadowft(*LOOK).code == 0
    assert (told(place)["look"], told(place)["candidate"], told(place)["earlier"]) == (0, None, [])
    assert Looks(folder_store, INSTRUCT).chain().entries == []
    assert shadowft(*VERDICT).code == 0
    assert json.loads((place / "work/verdict.json").read_text())["decision"] == "hold"


def test_a_store_that_does_not_answer_is_no_free_look(
    place: Path, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["store"] |= {"uri": "s3://bucket/deltas", "endpoint": "http://127.0.0.1:9"}
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    shadowft(*LOOK).refused(8, "127.0.0.1:9")
    assert not (place / "work/run.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template_digest": "another"}, "template_digest is another and template"),
        ({"arm": "direct"}, "arm is 'direct', expected 'direct_scaled'"),
    ],
)
def test_scores_that_no_verdict_could_use_spend_no_look(
    place: Path, folder_store: Store, shadowft: Shadowft, change: dict[str, str], said: str
) -> None:
    edit(place / "work/scores/direct/direct_scaled/scores.json", **change)
    shadowft(*LOOK).refused(7, said)
    assert Looks(folder_store, INSTRUCT).chain().entries == []


def test_commit_and_costs_are_those_of_the_first_time(place: Path, shadowft: Shadowft) -> None:
    """So a run that changes nothing changes no file, although dvc.lock was committed after it."""
    lock = {"schema": "2.0", "stages": {"train@shadow": {"cmd": "t"}, "prepare": {"cmd": "p"}}}
    (place / "dvc.lock").write_text(yaml.safe_dump(lock))
    for stage, seconds in (("prepare", 1.234), ("train@shadow", 61.5), ("of nothing", 5.0)):
        record_cost(stage, seconds)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert shadowft(*LOOK).code == 0
    first = told(place)
    assert (first["commit"], first["dirty"]) == (head, False)
    made = subprocess.run(
        [*git, "log", "-1", "--format=%cI"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert first["date"] == made
    assert first["costs"] == [{"stage": "prepare", "seconds": 1.23}, {"stage": "train@shadow", "seconds": 61.5}]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "two"], check=True)
    record_cost("train@shadow", 5.0)
    assert shadowft(*LOOK).code == 0
    assert told(place) == first
    choose(place / "work", "direct_scaled", model(4))
    (place / "params.yaml").write_text((place / "params.yaml").read_text() + "\n")
    assert shadowft(*LOOK).code == 0
    assert told(place)["commit"] != head
    assert told(place)["dirty"] is True


def test_a_time_is_that_of_the_present_outputs(tmp_path: Path) -> None:
    file, lock = tmp_path / "costs.json", tmp_path / "dvc.lock"
    lock.write_text(yaml.safe_dump({"stages": {"train": {"cmd": "t"}}}))
    record_cost("train", 9.0, file, lock)
    record_cost("train", 2.0, file, lock)
    assert costs_of(file, lock) == [{"stage": "train", "seconds": 9.0}], "run again for the same outputs"
    lock.write_text(yaml.safe_dump({"stages": {"train": {"cmd": "t", "params": {"epochs": 2}}}}))
    assert costs_of(file, lock) == [], "not timed for these"
    record_cost("train", 3.0, file, lock)
    assert costs_of(file, lock) == [{"stage": "train", "seconds": 3.0}]
    for damaged in ("{", "[]", '{"costs": [{"stage": 1}]}'):
        file.write_text(damaged)
        assert costs_of(file, lock) == []
    assert costs_of(file, tmp_path / "none") == []


def serve_champion(place: Path, released: Released) -> str:
    """Promote version 1, and make the Instruct of its recipe that of the scores; returns the digest of its model."""
    entry = promotion.promote(released.registry, released.store, "1").entry
    raw = record(entry.recipe, released.store)
    assert raw is not None
    recipe = parse_recipe(raw, "here")
    edit(place / "work/scores/instruct/instruct/scores.json", model_digest=recipe["instruct"]["digest"])
    params = yaml.safe_load((place / "params.yaml").read_text())
    params |= {"store": released.store.model_dump(), "registry": released.registry.model_dump()}
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    return entry.model


def score_champion(place: Path, digest: str, name: str = "champion", version: int = 1, right: int = 200) -> None:
    domain = (np.arange(400) < right).astype(float)
    folder = place / "work/scores/champion" / name
    shutil.rmtree(folder, ignore_errors=True)
    write_arm(folder, arm(name, {"skill": ("domain", domain), "general": ("guard", np.ones(400))}), digest)
    edit(folder / "scores.json", version=version)


def test_the_champion_of_the_ledger_must_have_been_scored(place: Path, released: Released, shadowft: Shadowft) -> None:
    digest = serve_champion(place, released)
    shadowft(*LOOK).refused(
        7, f"work/scores/champion: the champion of {released.name} is version 1, {digest}, its scores are of none",
        f"run `shadowft evaluate --champion --name {released.name}",
    )  # fmt: skip
    score_champion(place, model(5), version=7)
    shadowft(*LOOK).refused(7, f"its scores are of version 7, {model(5)}")
    score_champion(place, digest)
    score_champion(place, model(6), "best_champion", version=3)
    considered = [{"version": 3, "digest": model(6), "mean": 0.5}]
    lost = [{"version": 2, "digest": model(7), "reason": "store lacks delta"}]
    facts = {"format": 1, "considered": considered, "skipped": lost}
    write_json_atomically(place / "work/scores/champion/champions.json", facts)
    assert shadowft(*LOOK).code == 0
    found = told(place)
    assert found["champion"] == {"version": 1, "digest": digest}
    assert found["best_champion"] == {"version": 3, "digest": model(6)}
    assert found["skipped"] == lost
    instruct = json.loads((place / "work/scores/instruct/instruct/scores.json").read_text())["model_digest"]
    [entry] = Looks(released.store, instruct).chain().entries
    assert entry.means == {model(2): 0.55, model(6): 0.5}


def test_champions_that_answered_other_items_are_refused(place: Path, released: Released, shadowft: Shadowft) -> None:
    digest = serve_champion(place, released)
    score_champion(place, digest)
    path = place / "work/scores/champion/champion/items.jsonl"
    path.write_text(path.read_text("utf-8").replace('"000007"', '"ffffff"', 1), "utf-8")
    shadowft(*LOOK).refused(7, "'champion' and arm 'instruct' did not answer the same items")


@pytest.mark.parametrize(
    ("right", "outcome", "decision"),
    [(300, "worse", "hold"), (235, "too few items", "undecided"), (222, "passed", "promote")],
)
def test_a_challenger_that_is_worse_than_the_champion_by_more_than_the_margin_does_not_ship(
    place: Path, released: Released, shadowft: Shadowft, right: int, outcome: str, decision: str
) -> None:
    """The candidate has 220 of 400 right, and the margin is 12."""
    digest = serve_champion(place, released)
    score_champion(place, digest, right=right)
    for words in (LOOK, VERDICT):
        assert shadowft(*words).code == 0
    judged = json.loads((place / "work/verdict.json").read_text())
    [claim] = [c for c in judged["claims"] if c["against"] == "champion"]
    assert (claim["outcome"], claim["gate"], judged["decision"]) == (outcome, True, decision)
    assert judged["arm"] == ("direct_scaled" if decision == "promote" else "champion")
