"""A training on preferences that is killed goes on, and gives the bytes of an undisturbed one."""

import signal
from pathlib import Path

import pytest

from shadowft_core.params import Lora
from tests.fixtures.training import run, tree
from tests.test_train_preference import DPO, place  # noqa: F401 a fixture
from tests.test_train_resume import Runs

LONG = DPO.model_copy(update={"epochs": 3, "batch_size": 4, "accumulation": 2})
METHODS = {
    "lora": LONG.model_copy(update={"lora": Lora(rank=8, alpha=16, dropout=0.1)}),  # draws random numbers in each step
    "full": LONG.model_copy(update={"method": "full"}),  # computes its reference again, from the starting model
}


@pytest.mark.parametrize("method", METHODS)
def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    place: Path,  # noqa: F811
    tmp_path: Path,
    method: str,
) -> None:
    run(place, tmp_path / "undisturbed", METHODS[method])
    runs = Runs(place, tmp_path, METHODS[method], steps=2)
    for step in (3, 10):
        assert runs.killed_at(step).ended() == -signal.SIGKILL
    last = runs.start()
    assert last.ended() == 0
    assert "train: resumed at step " in last.said
    assert tree(runs.out) == tree(tmp_path / "undisturbed")
