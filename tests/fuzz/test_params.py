"""Damaged files of parameters."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

from shadowft_core.params import load_params, located, refuse_password
from shadowft_core.pipeline.command import _refuse_undecodable
from tests.fuzz.damage import json_damage, yaml_damage
from tests.fuzz.harness import Target, fuzzed

PARAMS = Path(__file__).parents[2] / "params.yaml"

OPTIONS = {"workspace": "mine", "store": "var/store", "endpoint": "http://127.0.0.1:8333", "name": "model"}


def make_options(folder: Path) -> None:
    shutil.copy(PARAMS, folder / "params.yaml")
    (folder / "options.json").write_text(json.dumps(OPTIONS))


def read_options(folder: Path) -> None:
    """The parameters of a scheduled run are text from outside: what the command and the flow do with them first."""
    try:
        found = json.loads((folder / "options.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in OPTIONS):
        return  # the command line and Prefect pass text alone
    for name in ("store", "endpoint"):
        refuse_password(f"--{name}", found[name])
    _refuse_undecodable({f"--{name}": found[name] for name in OPTIONS})
    params = load_params(folder / "params.yaml")
    params.registry.named(found["name"])
    if not any("\0" in found[name] for name in ("store", "endpoint")):  # no variable can hold it
        with patch.dict(os.environ, SHADOWFT_STORE_URI=found["store"], SHADOWFT_STORE_ENDPOINT=found["endpoint"]):
            located(params.store)


test_hostile_params = fuzzed(
    Target(
        "params.yaml",
        lambda folder: shutil.copy(PARAMS, folder / "params.yaml"),
        lambda folder: load_params(folder / "params.yaml"),
        {"params.yaml": yaml_damage},
        known=(
            "pipe",
            "endless",
            "laughs",
            "OSError shadowft_core.files.yamlfile",
            "IsADirectoryError shadowft_core.files.yamlfile",
        ),
    ),
    Target(
        "options of a run",
        make_options,
        read_options,
        {"options.json": json_damage},
        known=("endless", "pipe"),
        share=0.5,
    ),
)
