"""Every class of the table: tiny Base, tuned model and Instruct, extracted, grafted and loaded by transformers."""

import subprocess
import sys
from pathlib import Path

import pytest

from shadowft_core.delta import extract
from shadowft_core.grafting import Options, graft
from shadowft_core.weights.families.table import table
from tests.families.oracle import differing, linear_parameters, load, save_three

pytestmark = pytest.mark.families
UNMADE = {"nemo_speechlm"}  # transformers cannot load the tiny model that it saves
BY_COMMAND = ("gemma3", "gpt2", "mixtral")


@pytest.mark.parametrize("model_type", sorted(table()["types"].keys() - UNMADE))
def test_a_graft_loads_as_the_sum_rounded_once(model_type: str, tmp_path: Path) -> None:
    """Bit for bit in every tensor of the loaded model, with no key left over; in scope `linear`, linear layers only."""
    save_three(tmp_path, model_type)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    graft(tmp_path / "instruct", [(tmp_path / "delta", 1.0)], tmp_path / "grafted")
    assert not differing(tmp_path)
    graft(tmp_path / "instruct", [(tmp_path / "delta", 1.0)], tmp_path / "grafted", Options("linear"))
    linear = linear_parameters(load(tmp_path / "instruct"))
    assert not differing(tmp_path, linear.__contains__), "in scope linear"


@pytest.mark.parametrize("model_type", BY_COMMAND)
def test_the_command_line_does_the_same(model_type: str, tmp_path: Path) -> None:
    save_three(tmp_path, model_type)

    def shadowft(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "shadowft_core.cli", *words], cwd=tmp_path, check=True)

    shadowft("extract", "--base", "base", "--tuned", "tuned", "--out", "delta")
    shadowft("graft", "--instruct", "instruct", "--delta", "delta", "--scale", "1", "--out", "grafted")
    assert not differing(tmp_path)
