"""Preferences in two processes of real torchrun: the same training as in one."""

from pathlib import Path

import pytest

from shadowft_core.params import Train
from tests.fixtures.launched import started, train_command
from tests.fixtures.training import run
from tests.test_train_launch import lines_of, weights
from tests.test_train_preference import DPO, place  # noqa: F401 a fixture

# 54 pairs: the last of 11 micro-batches has 4, and a process has none to its last step; so too with 12 to validate.
SHARED = {"batch_size": 5, "accumulation": 4, "epochs": 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_train_on_pairs_as_one(place: Path, tmp_path: Path, method: str) -> None:  # noqa: F811
    """The bounds are those of tests/test_train_launch.py; the reference of `full` is computed by both processes."""
    one = Train.model_validate(DPO.model_dump() | SHARED | {"method": method})
    facts = run(place, tmp_path / "one", one)
    two = Train.model_validate(one.model_dump() | {"launch": {"processes": 2}})
    with started(train_command(place, tmp_path / "two", two)) as command:
        said, _ = command.communicate(timeout=120)
    assert command.returncode == 0, said
    for ours, theirs in zip(lines_of(tmp_path / "two"), lines_of(tmp_path / "one"), strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert abs(ours[name] - array).max() < 1e-5 * max(1, abs(array).max()), name
    assert f"{facts['preferences']['pairs']} pairs; in the last step" in said
