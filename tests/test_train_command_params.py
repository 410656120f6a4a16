"""What params.yaml, dvc.yaml and the other verbs say of `train.command`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import ParamsError, TrainError
from shadowft_core.params import Render, Train, load_params
from shadowft_core.pipeline.steps import preflight as run_preflight
from shadowft_core.pipeline.steps import require_memory
from shadowft_core.seeds import _require_different
from shadowft_core.train import require_runnable, require_watched
from shadowft_core.train.preflight import preflight
from shadowft_core.train.watched import named_files

WRITTEN = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8"))
ROUTE: dict[str, Any] = {"model": "instruct", "graft": "--onto-base"}


def write(folder: Path, train: dict[str, Any], **routes: Any) -> Path:
    tree = WRITTEN | {"train": WRITTEN["train"] | train, "routes": WRITTEN["routes"] | routes}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "params.yaml"


def test_a_route_has_a_command_of_its_own_or_none(tmp_path: Path) -> None:
    own = {**ROUTE, "train": {"command": "python 'my train.py' --epochs 2"}}
    params = load_params(write(tmp_path, {}, direct_own=own))
    assert params.train_for("shadow").words == []
    assert params.train_for("direct_own").words == ["python", "my train.py", "--epochs", "2"]
    trl = {**ROUTE, "train": {"command": None}}
    params = load_params(write(tmp_path, {"command": "my-trainer"}, direct_trl=trl))
    assert [params.train_for(name).words for name in ("shadow", "direct", "direct_trl")] == [["my-trainer"]] * 2 + [[]]
    assert set(params.train_for("direct").unused()) == {
        "epochs", "learning_rate", "lora", "max_length"
    }  # fmt: skip
    assert params.train_for("direct_trl").unused() == []


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"command": "python 'my_train.py"}, "No closing quotation"),
        ({"command": "  "}, "command has no words"),
        ({"command": ""}, r"train\.command: .*at least 1"),
        ({"command": ["python"]}, r"train\.command: .*valid string"),
        ({"command": "python t.py", "start": "champion"}, "start is champion, but command starts from the model"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused(tmp_path: Path, train: dict[str, Any], problem: str) -> None:
    with pytest.raises(ParamsError, match=problem):
        load_params(write(tmp_path, train))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("my_train.py", "conf/settings.yaml", "tools/run.py", "pkg/__main__.py", ".venv/pyvenv.cfg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path(".venv/bin").mkdir()
    Path(".venv/bin/torchrun").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("python my_train.py --epochs 2", ["my_train.py"]),
        ("python ./conf/../my_train.py --config=conf/settings.yaml", ["my_train.py", "conf/settings.yaml"]),
        (".venv/bin/torchrun --nproc-per-node 2 tools/run.py", ["tools/run.py"]),
        ("python -m pkg", ["pkg/__main__.py"]),
        ("python -m tools.run /etc/hosts conf", ["tools/run.py"]),
        ("trl sft --output_dir $SHADOWFT_OUT", []),
        (f"python my_train.py --text '' ab --text {'long ' * 2000}--text={'x' * 9000}", ["my_train.py"]),
    ],
)
def test_files_of_the_workspace_that_a_command_names(workspace: Path, command: str, named: list[str]) -> None:
    assert named_files(Train(command=command).words) == named
    absolute = command.replace("tools/run.py", str(workspace / "tools/run.py"))
    assert named_files(Train(command=absolute).words) == named


def stages(train: list[Any], seeds: list[Any]) -> None:
    tree = {name: {"foreach": "${routes}", "do": {"deps": deps}} for name, deps in (("train", train), ("seeds", seeds))}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": tree}), encoding="utf-8")


@pytest.mark.usefixtures("workspace")
def test_files_that_dvc_does_not_watch_are_refused_with_the_lines_to_add() -> None:
    words = Train(command="python my_train.py --config=conf/settings.yaml").words
    stages(["work/pair/${item.model}", "my_train.py"], [])
    with pytest.raises(ParamsError) as raised:
        require_watched(words, "shadow", "base")
    message = str(raised.value)
    assert "train: `- conf/settings.yaml`; seeds: `- my_train.py`, `- conf/settings.yaml`" in message
    stages(["./my_train.py", "conf"], ["${own.script}", {"conf/settings.yaml": {"desc": "mine"}}])
    Path("params.yaml").write_text("own: {script: my_train.py}\n")
    require_watched(words, "shadow", "base")
    Path("shadow").mkdir()
    Path("my_train.py").rename("shadow/base.py")
    own = {"cmd": "train", "deps": ["shadow/base.py"]}  # a stage without foreach
    tree = {"train": {"foreach": "${routes}", "do": {"deps": ["${key}/${item.model}.py"]}}, "seeds": own}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": tree}), encoding="utf-8")
    require_watched(["python", "shadow/base.py"], "shadow", "base")
    require_watched(Train(command="trl sft").words, "shadow", "base")


def test_the_flow_refuses_before_the_first_stage(workspace: Path) -> None:
    (workspace / "rows.jsonl").write_text("{}")
    (workspace / "tasks").mkdir()
    stages(["my_train.py"], [])
    own = {**ROUTE, "train": {"command": "python my_train.py"}}
    file = write(workspace, {}, direct_own=own)
    tree = yaml.safe_load(file.read_text())
    tree["prepare"] |= {"data": "rows.jsonl", "replay": None}
    tree["evaluate"] |= {"tasks": "tasks"}
    tree["routes"].pop("direct_replay")
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ParamsError, match="seeds: `- my_train"):
        run_preflight(file, None)
    tree["routes"]["direct_own"]["train"]["command"] = "python your_train.py"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(TrainError, match=r"your_train\.py does not exist"):
        run_preflight(file, None)


@pytest.mark.usefixtures("workspace")
def test_a_program_or_script_that_does_not_exist_is_refused_before_the_run() -> None:
    require_runnable(["python", "my_train.py"])
    require_runnable(["python", "-m", "anything"])
    require_runnable(["python", "$SHADOWFT_DATA/train.py"])
    for interpreter in ("python", "python3", "bash", "sh"):
        with pytest.raises(TrainError, match=r"my_trian\.py does not exist"):
            require_runnable([interpreter, "my_trian.py"])
    with pytest.raises(TrainError, match="no program my-trainer on the PATH"):
        require_runnable(["my-trainer"])


def test_memory_of_a_command_is_not_planned_and_this_is_said(tmp_path: Path, place: Path) -> None:
    params = load_params(write(tmp_path, {"command": "my-trainer"}))
    pair = tmp_path / "pair"
    pair.mkdir()
    for side in ("base", "instruct"):
        (pair / side).symlink_to(place / side)
    (pair / "pair.json").write_text("{}")
    shown: list[str] = []
    require_memory(params, pair, place / "data", shown.append)
    assert shown == [
        "memory of direct, direct_replay, shadow was not planned: train.command trains, and its needs are not known"
    ]
    preflight(pair, place / "data", params.train, tmp_path / "preflight.json", Render())
    told = json.loads((tmp_path / "preflight.json").read_text())
    assert told["not_measured"] == "train.command trains; the rows of its first step are not known"
    assert "loss" not in told


def test_a_command_that_ignores_its_seed_gives_no_claim_about_seeds(tmp_path: Path) -> None:
    for seed, digest in ((1, "sha256:a"), (2, "sha256:b")):
        place = tmp_path / str(seed) / "shadow_scaled"
        place.mkdir(parents=True)
        (place / "scores.json").write_text(json.dumps({"model_digest": digest}))
    _require_different(tmp_path, "shadow", 0, "sha256:c")
    for first, others in (("sha256:a", "0 and 1"), ("sha256:b", "0 and 2")):
        with pytest.raises(TrainError, match=f"seeds {others} gave the same weights"):
            _require_different(tmp_path, "shadow", 0, first)


def test_the_verb_plan_says_what_it_cannot_know(
    tmp_path: Path, place: Path, shadowft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {**ROUTE, "train": {"command": "my-trainer"}}
    write(tmp_path, {}, direct_own=own)
    os.makedirs("work/pair")
    for side in ("base", "instruct"):
        Path("work/pair", side).symlink_to(place / side)
    Path("work/pair/pair.json").write_text("{}")
    Path("work/data").symlink_to(place / "data")
    ended = shadowft("plan", "--json")
    assert set(json.loads(ended.out)["routes"]) == {"shadow", "direct", "direct_replay"}
    assert "direct_own: train.command trains, so its memory, steps, time and price are not known" in ended.err
