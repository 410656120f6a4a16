"""`train.seeds` in params.yaml, and the stage that trains and scores a route again with each further seed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core import delta, evaluate
from shadowft_core.errors import EvaluationError, ParamsError
from shadowft_core.files import file_digest
from shadowft_core.grafting import UNRELATED, Options, graft
from shadowft_core.params import Params, Train, load_params
from shadowft_core.promotion.start import write_scratch
from shadowft_core.seeds import WAITING, further_seeds
from shadowft_core.train import run_alone, train
from tests.fixtures.training import SETTINGS, tree

RANDOM = Options(waivers=(UNRELATED,))  # the two models of the pair have random weights
WRITTEN = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")


def write_params(folder: Path, train: dict[str, Any], drop: str = "", **routes: Any) -> Path:
    raw = yaml.safe_load(WRITTEN)
    raw["train"] |= train
    raw["train"].pop(drop, None)
    raw["routes"] |= routes
    (folder / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder / "params.yaml"


def test_one_seed_or_several(tmp_path: Path) -> None:
    several = load_params(write_params(tmp_path, {"seeds": [4, 0]}, drop="seed")).train
    assert (several.seed, several.seeds) == (4, (4, 0))
    assert load_params(write_params(tmp_path, {"seed": 4, "seeds": [4, 0]})).train == several
    one = load_params(write_params(tmp_path, {"seed": 4})).train
    assert (one.seed, one.seeds) == (4, (4,))
    assert one == load_params(write_params(tmp_path, {"seeds": [4]}, drop="seed")).train
    neither = load_params(write_params(tmp_path, {}, drop="seed")).train
    assert neither.seeds == Train().seeds == (0,)


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"seed": 4, "seeds": [0, 4]}, "train: seed is 4, but seeds begins with 0; remove seed"),
        ({"seeds": []}, r"train.seeds: .*at least 1"),
        ({"seeds": [0, 2, 0]}, r"train: seeds is \[0, 2, 0\], which has a seed twice"),
        ({"seeds": 3}, r"train.seeds: .*a list \(found 3\)"),
        ({"seeds": [0, -1]}, r"train.seeds.1: .*\(found -1\)"),
    ],
)
def test_seeds_that_cannot_be_are_refused(tmp_path: Path, train: dict[str, Any], problem: str) -> None:
    with pytest.raises(ParamsError, match=problem):
        load_params(write_params(tmp_path, train))


def test_a_route_has_as_many_seeds_as_the_others(tmp_path: Path) -> None:
    file = write_params(tmp_path, {"seeds": [0, 1]}, far={"model": "base", "train": {"seeds": [5, 6]}})
    params = load_params(file)
    assert (params.train_for("far").seeds, params.train_for("shadow").seeds) == ((5, 6), (0, 1))
    file = write_params(tmp_path, {"seeds": [0]}, far={"model": "base", "train": {"seed": 5}})
    assert load_params(file).train_for("far").seeds == (5,)
    file = write_params(tmp_path, {"seeds": [0, 1]}, far={"model": "base", "train": {"seed": 5}})
    with pytest.raises(ParamsError, match=r"routes.far.train: seeds is \[5\], but train.seeds is \[0, 1\]; .*as many"):
        load_params(file)


def test_with_one_seed_nothing_is_read_and_nothing_trained(tmp_path: Path) -> None:
    params = load_params(write_params(tmp_path, {"seed": 3}))
    gone = tmp_path / "gone"
    further_seeds(gone, gone, gone, gone, gone, "direct", params, tmp_path / "seeds" / "direct")
    found = tree(tmp_path / "seeds" / "direct")
    assert {name: json.loads(text) for name, text in found.items()} == {
        "seeds.json": {"format": 1, "route": "direct", "first": 3, "further": []}
    }


def test_further_seeds_do_not_change_the_training_of_the_first(place: Path, tmp_path: Path) -> None:
    for name, seeds in (("one", (2,)), ("three", (2, 0, 1))):
        settings = SETTINGS.model_copy(update={"max_steps": 2, "seed": 2, "seeds": seeds})
        train(place / "base", place / "instruct", place / "data", settings, tmp_path / name)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")
    assert "seeds" not in json.loads((tmp_path / "one" / "train.json").read_text())["settings"]


def make_run(place: Path, folder: Path, seeds: list[int]) -> Params:
    """The outputs of all stages up to graft in `folder`, which is the current one: a tiny pair, the first seed."""
    raw = yaml.safe_load(WRITTEN)
    raw["train"] = {"lora": {"rank": 4, "alpha": 8}, "batch_size": 8, "learning_rate": 0.01, "max_length": 40}
    raw["train"] |= {"max_steps": 3, "seeds": seeds}
    (folder / "tasks").mkdir(exist_ok=True)
    raw["prepare"] = {"data": str(place / "rows.jsonl"), "valid": 0.1, "test": 0.2}
    raw["evaluate"] = {"tasks": "tasks", "domain": ["heldout"], "guards": [], "batch_size": 8}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    params = load_params(folder / "params.yaml")
    if not Path("data").exists():
        from shadowft_core.prepare import prepare

        prepare(place / "rows.jsonl", Path("tasks"), params.prepare, Path("data"))
        write_scratch(Path("start"))
        first = params.train_for("shadow")
        train(place / "base", place / "instruct", Path("data"), first, Path("tuned"), start=Path("start"))
        delta.extract(place / "base", Path("tuned"), Path("delta"))
        graft(place / "instruct", [(Path("delta"), 0.5)], Path("grafted"), RANDOM)
    return params


def run_stage(place: Path, params: Params, out: str = "seeds/shadow") -> dict[str, Any]:
    where = [place / "base", place / "instruct", Path("data"), Path("start"), Path("grafted")]
    further_seeds(*where, "shadow", params, Path(out))
    found: dict[str, Any] = json.loads((Path(out) / "seeds.json").read_text())
    return found


@pytest.mark.slow
def test_a_further_seed_is_trained_and_scored_like_the_first(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = make_run(place, tmp_path, [0, 5])
    told = run_stage(place, params)
    # the same training and scores as of a run whose only seed it is
    alone = params.train_for("shadow").with_seed(5)
    train(place / "base", place / "instruct", Path("data"), alone, Path("alone/tuned"), start=Path("start"))
    delta.extract(place / "base", Path("alone/tuned"), Path("alone/delta"))
    graft(place / "instruct", [(Path("alone/delta"), 0.5)], Path("alone/grafted"), RANDOM)
    own = (place / "instruct", Path("data"), Path("alone/delta"), Path("alone/grafted"))
    evaluate.evaluate(*own, "shadow", params.evaluate, Path("alone/scores"))
    assert [(one["seed"], one["delta"]) for one in told["further"]] == [
        (5, file_digest(Path("alone/delta/delta.json")))
    ]
    assert told["further"][0]["delta"] != file_digest(Path("delta/delta.json"))
    assert told["further"][0]["last_loss"] == json.loads(Path("alone/tuned/train.json").read_text())["last_loss"]
    for arm in ("shadow", "shadow_scaled"):
        here, there = (Path(folder, arm) for folder in ("seeds/shadow/5", "alone/scores"))
        assert (here / "items.jsonl").read_bytes() == (there / "items.jsonl").read_bytes()
        heads = [json.loads((one / "scores.json").read_text()) for one in (here, there)]
        assert (heads[0]["scale"], heads[0]["model_digest"]) == (heads[1]["scale"], heads[1]["model_digest"])
    assert not (WAITING / "shadow").exists()


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_from_the_seeds_that_are_trained(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    params = make_run(place, tmp_path, [0, 5])
    missing = params.evaluate.model_copy(update={"domain": ("no_such_task",)})
    with pytest.raises(EvaluationError, match="no_such_task"):
        run_stage(place, params.model_copy(update={"evaluate": missing}))
    assert not Path("seeds/shadow").exists()
    assert (WAITING / "shadow" / "5" / "delta" / "delta.json").is_file()
    assert "train: 3 steps" in capfd.readouterr().err
    shutil.copytree(WAITING, "kept")
    told = run_stage(place, params)
    assert "train: 3 steps" not in capfd.readouterr().err, "trained again"
    shutil.copytree("kept", WAITING, dirs_exist_ok=True)
    more = make_run(place, tmp_path, [0, 5])
    rate = more.train.model_copy(update={"learning_rate": 0.02})
    (tmp_path / "params.yaml").write_text(
        (tmp_path / "params.yaml").read_text().replace("learning_rate: 0.01", "learning_rate: 0.02")
    )
    again = run_stage(place, more.model_copy(update={"train": rate}))
    assert "train: 3 steps" in capfd.readouterr().err, "a delta of other settings was used"
    assert (
        again["further"][0]["delta"]
        != told["further"][0]["delta"]
        == file_digest(Path("kept/shadow/5/delta/delta.json"))
    )


@pytest.mark.slow
def test_a_training_that_fails_ends_the_stage_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from shadowft_core.errors import TrainError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainError, match=r"shadowft train ended with exit code \d+; its own error is above") as failed:
        run_alone(["train", "--model", "a", "--instruct", "b", "--data", "c", "--out", "d", "--seed", "3"])
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert str(failed.value.exit_code) in str(failed.value)
