"""Damaged files of parameters, of numbers of stages, and options of a run."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

from dvc.utils.serialize import parse_yaml

from shadowft_core.files.jsonfile import read_json_object
from shadowft_core.files.yamlfile import read_yaml
from shadowft_core.params import load_params, located
from shadowft_core.pipeline.inputs import require_options
from shadowft_core.workspace import STAGES, planned, require_same_stage
from shadowft_core.workspace.stages import write_stages
from tests.fuzz.damage import json_damage, yaml_damage
from tests.fuzz.harness import Target, fuzzed

PARAMS = Path(__file__).parents[2] / "params.yaml"


def read_as_dvc(folder: Path) -> None:
    """What is accepted has the values that DVC reads."""
    file = folder / "params.yaml"
    ours = read_yaml(file)
    theirs = parse_yaml(file.read_text(encoding="utf-8-sig"), str(file))
    assert repr(ours or {}) == repr(theirs), f"{ours!r:.300} is {theirs!r:.300} to DVC"


def read_stages(folder: Path) -> None:
    planned(folder)
    require_same_stage("train@shadow", folder)


def copy(folder: Path) -> None:
    shutil.copy(PARAMS, folder / "params.yaml")


OPTIONS = {"workspace": "mine", "store": "var/store", "endpoint": "http://127.0.0.1:8333", "name": "model"}


def make_options(folder: Path) -> None:
    copy(folder)
    (folder / "options.json").write_text(json.dumps(OPTIONS))


def read_options(folder: Path) -> None:
    """The parameters of a scheduled run are text from outside: what the command and the flow do with them first."""
    found = read_json_object(folder / "options.json")
    if not all(isinstance(found.get(name), str) for name in OPTIONS):
        return  # the command line and Prefect pass text alone
    require_options({f"--{name}": found[name] for name in OPTIONS})
    params = load_params(folder / "params.yaml")
    params.registry.named(found["name"])
    if not any("\0" in found[name] for name in ("store", "endpoint")):  # no variable can hold it
        with patch.dict(os.environ, SHADOWFT_STORE_URI=found["store"], SHADOWFT_STORE_ENDPOINT=found["endpoint"]):
            located(params.store)


test_hostile_params = fuzzed(
    Target("params.yaml", copy, lambda folder: load_params(folder / "params.yaml"), {"params.yaml": yaml_damage}),
    Target("params.yaml as DVC reads it", copy, read_as_dvc, {"params.yaml": yaml_damage}),
    Target(STAGES, write_stages, read_stages, {STAGES: yaml_damage}),
    Target("options of a run", make_options, read_options, {"options.json": json_damage}, share=0.5),
)
