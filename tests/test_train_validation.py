"""The loss on validation rows: a mean over tokens, whatever the batches, the processes or a signal."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import StoppedError
from shadowft_core.params import Checkpoint, Train, Validation
from shadowft_core.train import train
from tests.fixtures.launched import started, train_command
from tests.fixtures.training import SETTINGS, run, tree, write_place

EARLY = SETTINGS.model_copy(
    update={
        "validation": Validation(steps=2, patience=2, keep="best"),
        **{"method": "full", "learning_rate": 0.08, "epochs": 12, "batch_size": 27, "accumulation": 2},
    }
)
"""Training on past the lowest validation loss"""


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A folder like `place` whose replies have 3 to 11 tokens."""
    return write_place(
        tmp_path / "uneven",
        lambda a, b: {
            "prompt": f"{a} plus {b}",
            "completion": " ".join([f"is {a + b}", *["kind"] * ((3 * a + 5 * b) % 9)]),
        },
    )


@pytest.mark.parametrize("packing", [False, True])
def test_the_validation_loss_does_not_depend_on_the_micro_batches(uneven: Path, tmp_path: Path, packing: bool) -> None:
    """A rate that changes no weight: the loss is that of the Base, a mean over the learned tokens of all rows."""
    found = []
    for size in (1, 5, 100):
        settings = SETTINGS.model_copy(
            update={"batch_size": size, "max_steps": 1, "learning_rate": 1e-30, "packing": packing}
        )
        found.append(run(uneven, tmp_path / str(size), settings)["valid_loss"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_a_signal_in_the_step_that_stops_early_does_not_train_on(place: Path, tmp_path: Path) -> None:
    expected = run(place, tmp_path / "expected", EARLY)
    assert expected["stopped_early"]
    sent = []

    @contextlib.contextmanager
    def follow(_: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, float]], None]]:
        def line(values: Mapping[str, float]) -> None:
            if values["step"] == expected["steps"] - 1 and "loss" in values:
                sent.append(values)
                os.kill(os.getpid(), signal.SIGTERM)

        yield line

    settings = EARLY.model_copy(update={"batch_size": 54, "accumulation": 1})  # the signal waits for the last step
    run(place, tmp_path / "whole", settings)
    checkpoint = Checkpoint(folder=str(tmp_path / "kept"), minutes=60)
    words = place / "base", place / "instruct", place / "data", settings, tmp_path / "out"
    with pytest.raises(StoppedError, match=f"after step {expected['steps']} of"):
        train(*words, checkpoint=checkpoint, follow=follow)
    assert len(sent) == 1
    train(*words, checkpoint=checkpoint)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_keep_the_best_weights(place: Path, tmp_path: Path, strategy: str) -> None:
    from safetensors.numpy import load_file

    one = run(place, tmp_path / "one", EARLY)
    settings = Train.model_validate(EARLY.model_dump() | {"launch": {"processes": 2, "strategy": strategy}})
    with started(train_command(place, tmp_path / "two", settings, checkpoint_steps=1)) as command:
        said, _ = command.communicate(timeout=120)
    assert command.returncode == 0, said
    two = json.loads((tmp_path / "two/train.json").read_text())
    assert [two[name] for name in ("steps", "best_step", "stopped_early")] == [one["steps"], one["best_step"], True]
    assert two["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-4)
    best = json.loads((tmp_path / "two/metrics.jsonl").read_text().splitlines()[two["best_step"] - 1])
    assert two["valid_loss"] == pytest.approx(best["valid_loss"], rel=1e-6)
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("two", "one"))
    # One step at this rate moves each weight by 0.08; where a gradient is near 0, the order of sums may turn its sign.
    assert all(abs(ours[name] - theirs[name]).mean() < 0.01 for name in theirs)
