"""The template of a workspace: the repository's own files, with numbers in place of code; params.yaml of a preset."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.files.yamlfile import read_yaml
from shadowft_core.params import load_params
from shadowft_core.presets import preset, presets
from shadowft_core.workspace import stages, template
from shadowft_core.workspace.settings import settings
from tests.fixtures import templates


def stages_of(text: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["stages"]
    return {name: stage.get("do", stage) for name, stage in found.items()}


@pytest.mark.parametrize("name", sorted(templates.expected()))
def test_the_template_is_the_repositorys_own(name: str) -> None:
    """`python -m tests.fixtures.templates` writes the files."""
    assert (templates.FOLDER / name).read_text(encoding="utf-8") == templates.expected()[name]


def test_in_a_workspace_a_stage_depends_on_its_number_in_place_of_code() -> None:
    own, there = (stages_of(text) for text in (templates.read("dvc.yaml"), templates.expected()["dvc.yaml.txt"]))
    assert list(own) == list(there) == list(stages.numbers())
    for name, stage in own.items():
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("shadowft_core/")]
        stage["params"] = [*stage.get("params", []), {"stages.yaml": [name]}]
        if not stage["deps"]:
            del stage["deps"]
    assert there == own


def test_every_file_of_the_template_has_a_place() -> None:
    used = {*template.FILES.values(), *template.OWN.values(), *template.DEMO.values()}
    assert {file.name for file in template.FOLDER.iterdir()} == used
    assert set(templates.expected()) < used
    assert used - set(templates.expected()) == {"README.md.txt", "params.yaml.txt", "tasks-README.md.txt"}


@pytest.mark.parametrize("name", [found.name for found in presets()])
def test_a_preset_with_models_of_ones_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(settings("my-model", "/a b/base", "hf:a/b@c", "data/it's.jsonl", name))
    params = load_params(tmp_path / "params.yaml")
    assert (params.fetch.base, params.fetch.instruct) == ("/a b/base", "hf:a/b@c")
    assert (params.prepare.data, params.evaluate.tasks) == ("data/it's.jsonl", "tasks")
    assert (params.train, params.registry.name) == (preset(name).train, "my-model")


@pytest.mark.parametrize("preset", [None, presets()[0].name])
@pytest.mark.parametrize("value", ["true", "Null", "a: b", "# x", "'x", "data/😀.jsonl"])
def test_any_name_is_read_back_as_it_was_given(value: str, preset: str | None, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(settings(value, f"/{value}", value, value, preset), encoding="utf-8")
    found = read_yaml(tmp_path / "params.yaml")
    assert (found["registry"]["name"], found["fetch"]["base"]) == (value, f"/{value}")
    assert (found["fetch"]["instruct"], found["prepare"]["data"]) == (value, value)
