"""What evaluate refuses: folders that differ from their recipe, tasks that cannot run or would score wrongly."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError, GraftError
from shadowft_core.evaluate import evaluate
from shadowft_core.files import canonical_json
from tests.fixtures.evaluation import World, rows, score_instruct, write_task


@pytest.mark.parametrize("damage", ["weights", "delta", "instruct", "recipe"])
def test_a_folder_unlike_its_recipe_is_refused(world: World, half: Path, tmp_path: Path, damage: str) -> None:
    grafted = shutil.copytree(half, tmp_path / "grafted")
    recipe = json.loads((grafted / "recipe.json").read_bytes())
    if damage == "weights":
        shutil.copy(world.instruct / "model.safetensors", grafted / "model.safetensors")
    elif damage == "delta":
        recipe["deltas"][0]["digest"] = f"sha256:{0:064}"
    elif damage == "instruct":
        recipe["instruct"]["digest"] = f"sha256:{0:064}"
    else:
        recipe["deltas"] *= 2
    (grafted / "recipe.json").write_bytes(canonical_json(recipe))
    with pytest.raises(EvaluationError, match=r"run `shadowft graft` again"):
        evaluate(world.instruct, world.data, world.delta, grafted, "shadow", world.params(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_grafted_in_one_pass_has_no_delta_to_evaluate(world: World, half: Path, tmp_path: Path) -> None:
    grafted = shutil.copytree(half, tmp_path / "grafted")
    recipe = json.loads((grafted / "recipe.json").read_bytes())
    recipe["deltas"] = [{"base": f"sha256:{1:064}", "tuned": f"sha256:{2:064}", "scale": 0.5}]
    (grafted / "recipe.json").write_bytes(canonical_json(recipe))
    with pytest.raises(GraftError, match=r"recipe\.json: adds sha256:0+2 - sha256:0+1 without a stored delta"):
        evaluate(world.instruct, world.data, world.delta, grafted, "shadow", world.params(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"domain": ("nixt",)}, "task nixt: unknown; .* have choice, heldout, heldout_dev, next, next_dev, say"),
        ({"domain": ("heldout_dev",)}, r"task heldout_dev: .*/dev\.parquet: has no rows, .*prepare\.dev"),
        ({"domain": ("say",)}, "task say: is named both as domain and as guard"),
        ({"tasks": "no/such/folder"}, "no/such/folder: no such task folder"),
    ],
)
def test_a_task_that_cannot_run_is_named(world: World, tmp_path: Path, tasks: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        score_instruct(world, tmp_path / "out", **tasks)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_data_that_is_not_there_is_refused_even_if_no_task_reads_it(world: World, tmp_path: Path) -> None:
    params = world.params(domain=("say",), guards=())
    with pytest.raises(EvaluationError, match=r"nope: no such folder; name the one that `shadowft prepare` wrote"):
        evaluate(world.instruct, tmp_path / "nope", None, None, "shadow", params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "items", "message"),
    [
        ({"file": "gone.jsonl"}, rows("say"), r"task odd: .*/gone\.jsonl: no such data file; .*shadowft prepare"),
        ({}, [], r"task odd: .*/odd\.jsonl: has no rows"),
        ({"sample": "true"}, rows("say"), "task odd: samples"),
        ({"better": "false"}, rows("say"), "task odd: lower exact_match is better"),
        (
            {"tokens": 99},
            rows("say"),
            r"task odd: 26 of 26 rows .*longer than the context.*32 tokens less the 99 .*max_gen",
        ),
        ({}, [("say a " * 20, "a")], "task odd: 1 of 1 rows are left out .*such as document 0; .*shorten the rows"),
        ({"name": "heldout"}, rows("say"), r"odd\.yaml: task heldout is also defined in .*; rename"),
        ({"name": "[odd"}, rows("say"), r"odd\.yaml: not readable as YAML"),
    ],
)
def test_a_task_that_would_score_wrongly_is_refused(
    world: World, tmp_path: Path, changes: dict[str, Any], items: list[tuple[str, str]], message: str
) -> None:
    tmp_path.joinpath("tasks").mkdir()
    write_task(tmp_path / "tasks", "odd", items, **changes)
    with pytest.raises(EvaluationError, match=message) as caught:
        score_instruct(world, tmp_path / "out", tasks=str(tmp_path / "tasks"), domain=("odd",), guards=())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_instruct_without_template_or_tensor_is_refused(world: World, tmp_path: Path) -> None:
    mute = shutil.copytree(world.instruct, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(EvaluationError, match="no chat template"):
        evaluate(mute, world.data, None, None, "shadow", world.params(), tmp_path / "out")
    deep = shutil.copytree(world.instruct, tmp_path / "deep")
    config = json.loads((deep / "config.json").read_text())
    layers = {"num_hidden_layers": 3, "layer_types": None, "max_window_layers": 3}
    (deep / "config.json").write_text(json.dumps(config | layers))
    with pytest.raises(EvaluationError, match=r"missing_keys.*model\.layers\.2"):
        evaluate(deep, world.data, None, None, "shadow", world.params(), tmp_path / "out")
