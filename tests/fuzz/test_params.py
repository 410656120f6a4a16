"""Damaged files of parameters."""

import shutil
from pathlib import Path

from shadowft_core.params import load_params
from tests.fuzz.damage import yaml_damage
from tests.fuzz.harness import Target, fuzzed

PARAMS = Path(__file__).parents[2] / "params.yaml"

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
)
