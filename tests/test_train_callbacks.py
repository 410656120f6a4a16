"""What decides during the steps, without a training: signals, when to save, validation, lines.

The trainer is a stand-in with the few attributes that are read; state, control and weights are real.
"""

import math
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from shadowft_core.errors import TrainError
from shadowft_core.params import Checkpoint, Validation
from shadowft_core.train import saving
from shadowft_core.train.checkpoints import Checkpoints
from shadowft_core.train.interrupts import Interrupt
from shadowft_core.train.progress import Progress
from shadowft_core.train.saving import Resumable, Saver, load_trained
from shadowft_core.train.validation import Measured

ARGS = SimpleNamespace(world_size=1, should_save=True, learning_rate=0.1, process_index=0, output_dir="unused")


class StandIn(Resumable):
    """A trainer of one linear layer."""

    def __init__(self) -> None:
        self.args, self.is_fsdp_enabled, self.model = ARGS, False, torch.nn.Linear(2, 2)
        self.state, self._total_train_tokens = TrainerState(max_steps=20, global_step=1), 0


def test_a_signal_does_what_it_did_before_when_the_block_is_over() -> None:
    got: list[int] = []
    former = {number: signal.signal(number, lambda n, _: got.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        interrupt = Interrupt()
        with interrupt.listening():
            assert interrupt.number is None
        for number in former:
            os.kill(os.getpid(), number)
        assert (interrupt.number, got) == (None, [signal.SIGTERM, signal.SIGINT])
        with interrupt.listening(alone=False):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        assert (interrupt.number, len(got)) == (signal.SIGTERM, 2), "one of several processes ends after the first"
        alone = Interrupt()
        with alone.listening():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert (alone.number, got[2:]) == (signal.SIGINT, [signal.SIGTERM])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_a_thread_does_not_listen() -> None:
    done: list[Any] = []

    def listen() -> None:
        with Interrupt().listening():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        (Checkpoint(steps=3, minutes=None), [3, 6, 9]),
        (Checkpoint(steps=None, minutes=1.5), [2, 4, 6, 8, 10]),  # a step takes 50 s
        (Checkpoint(steps=4, minutes=2), [3, 4, 7, 8, 11]),
        (None, []),
    ],
)
def test_it_is_saved_after_steps_or_minutes_since_the_last_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Checkpoint | None, saved: list[int]
) -> None:
    seconds = [1000.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: seconds[0])
    checkpoints = Checkpoints(tmp_path, tmp_path / "saving", "key", settings)
    state, control = TrainerState(max_steps=12, global_step=0), TrainerControl()
    saver = Saver(StandIn(), checkpoints, Interrupt(), lambda: {"validation": {"stopped_early": False}})
    seconds[0] += 1000  # before the first step
    saver.on_train_begin(ARGS, state, control)
    found = []
    for step in range(1, 13):
        seconds[0] += 50
        state.global_step, control.should_save = step, False
        saver.on_step_end(ARGS, state, control)
        if control.should_save:
            found.append(step)
            (checkpoints.saving / f"checkpoint-{step}").mkdir(parents=True)
            saver.on_save(ARGS, state, control)
    assert found == saved
    assert not control.should_training_stop


def test_a_stop_between_micro_batches_saves_only_a_step_that_is_not_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, tmp_path / "saving", "key", Checkpoint())
    for at, expected in ((5, False), (6, True)):
        interrupt, control = Interrupt(), TrainerControl()
        saver = Saver(StandIn(), checkpoints, interrupt, lambda: {})
        state = TrainerState(max_steps=12, global_step=5)
        saver.on_train_begin(ARGS, state, control)
        if at > 5:
            state.global_step = at
            saver.on_step_end(ARGS, state, control)
        saver.on_substep_end(ARGS, state, control)
        assert not (control.should_save)
        assert not (control.should_training_stop)
        drawn = torch.rand(3)
        interrupt.number = signal.SIGTERM
        saver.on_substep_end(ARGS, state, control)
        assert (control.should_save, control.should_training_stop, saver.stopped) == (expected, True, True)
        assert torch.equal(torch.rand(3), drawn) == expected, "the numbers of the next step are drawn again"


def measured(folder: Path, **settings: Any) -> Measured:
    progress = Progress()
    progress.lines = [{"step": 0, "loss": 1.0}]
    found = Measured(StandIn(), Validation(steps=1, **settings), progress, folder)
    found.on_train_begin()
    return found


def told(to: Measured, losses: list[float], first: int = 1, last: int = 20) -> int | None:
    """The step at which it stops."""
    state = TrainerState(max_steps=last)
    for step, loss in enumerate(losses, first):
        control = TrainerControl()
        state.global_step = to._trainer.state.global_step = step
        to.on_evaluate(ARGS, state, control, {"eval_loss": loss})
        if control.should_training_stop:
            return step
    return None


def test_patience_counts_measurements_in_a_row(tmp_path: Path) -> None:
    losses = [5.0, 6.0, 4.0, 6.0, 4.0, 3.0, 3.0]
    one = measured(tmp_path, patience=2)
    assert told(one, losses) == 5
    assert one.as_json() == {"best_loss": 4.0, "best_step": 3, "worse": 2, "stopped_early": True}
    three = measured(tmp_path, patience=3)
    assert told(three, losses) is None
    assert three.as_json() == {"best_loss": 3.0, "best_step": 6, "worse": 1, "stopped_early": False}
    ends = measured(tmp_path, patience=1)
    assert told(ends, [1.0, 2.0], last=2) is None, "the last step is no early stop"
    assert told(measured(tmp_path), [1.0, 2.0, 3.0, 4.0]) is None
    one.on_train_end()
    one.on_evaluate(ARGS, TrainerState(global_step=6), TrainerControl(), {"eval_loss": 0.5})
    assert one.best_step == 3, "the evaluation of the weights that are kept is none during the steps"


def test_a_run_that_goes_on_counts_from_its_checkpoint(tmp_path: Path) -> None:
    for patience, expected in ((2, 4), (3, 5)):
        first = measured(tmp_path / "none", patience=patience)
        assert told(first, [1.0, 2.0, 2.0][:patience]) is None
        later = measured(tmp_path / "none", patience=patience)
        later.go_on(first.as_json(), tmp_path)
        assert later.as_json() == first.as_json()
        assert told(later, [2.0, 2.0, 2.0], patience + 1) == patience + 1, expected
    over = measured(tmp_path, patience=1)
    over.go_on({"best_loss": 1.0, "best_step": 1, "worse": 1, "stopped_early": True}, tmp_path)
    assert over.stopped_early


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_refused(tmp_path: Path, loss: float) -> None:
    with pytest.raises(TrainError, match=f"step 2: validation loss is {loss}; lower train.learning_rate"):
        told(measured(tmp_path), [1.0, loss])


def test_the_best_weights_in_a_checkpoint_stay_those_of_its_time(tmp_path: Path) -> None:
    """A checkpoint holds a link to the file; a later, better step writes another file."""
    best = measured(tmp_path / "saving", keep="best")
    network = best._trainer.model
    weights = []
    for step, loss in ((1, 3.0), (2, 2.0)):
        with torch.no_grad():
            network.weight.fill_(step)
        told(best, [loss], step)
        folder = tmp_path / f"saving/checkpoint-{step}"
        folder.mkdir()
        best.on_save(ARGS, TrainerState(global_step=step), TrainerControl())
        weights.append(folder / "best.safetensors")
    for step, file in enumerate(weights, 1):
        load_trained(network, file)
        assert float(network.weight.detach().mean()) == step
    told(best, [4.0], 3)
    best.load_best()
    assert float(network.weight.detach().mean()) == 2
    other = measured(tmp_path / "other", keep="best")
    (tmp_path / "other").mkdir()
    other.go_on({"best_loss": 3.0, "best_step": 1, "worse": 0, "stopped_early": False}, weights[0].parent)
    told(other, [4.0], 4)
    other.load_best()
    assert float(other._trainer.model.weight.detach().mean()) == 1
    last = measured(tmp_path / "saving")
    told(last, [3.0, 4.0])
    with torch.no_grad():
        last._trainer.model.weight.fill_(7)
    last.load_best()
    assert float(last._trainer.model.weight.detach().mean()) == 7


def test_weights_that_are_not_finite_or_of_another_model_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    trainer = StandIn()
    trainer.save_model(str(tmp_path))
    load_trained(trainer.model, tmp_path / "trained.safetensors")
    with pytest.raises(
        TrainError, match=r"trained.safetensors: bias is in only one of checkpoint and model \(1 in all\)"
    ):
        load_trained(torch.nn.Linear(2, 2, bias=False), tmp_path / "trained.safetensors")
    with torch.no_grad():
        trainer.model.bias[1] = math.nan
    with pytest.raises(TrainError, match=r"bias: not finite after step 1; lower train\.learning_rate"):
        trainer.save_model(str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


LOGS = {"loss": 2.0, "grad_norm": 1.0, "epoch": 0.5, "learning_rate": 0.1, "num_tokens": 30.0}


@pytest.mark.parametrize(("field", "name"), [("loss", "loss"), ("grad_norm", "gradient norm")])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_run(field: str, name: str) -> None:
    progress, state = Progress(), TrainerState(max_steps=3, global_step=2, is_world_process_zero=True)
    with pytest.raises(TrainError, match=f"step 2: {name} is inf; rows: .*; last good checkpoint: none"):
        progress.on_log(ARGS, state, TrainerControl(), LOGS | {field: math.inf})
    assert progress.lines == []


def test_the_lines_of_a_step(tmp_path: Path) -> None:
    import json

    lines: list[Any] = []
    progress = Progress(tmp_path / "live", lines.append)
    state = TrainerState(max_steps=3, global_step=1, is_world_process_zero=True)
    rewards = {"chosen": 4.0, "rejected": 3.0, "accuracies": 0.75, "margins": 1.0}
    progress.on_train_begin(ARGS, TrainerState(max_steps=3, is_world_process_zero=True), TrainerControl())
    progress.on_log(ARGS, state, TrainerControl(), LOGS | {f"rewards/{name}": x for name, x in rewards.items()})
    progress.on_log(ARGS, state, TrainerControl(), {"eval_loss": 1.0})
    progress.measured(1, 1.5)
    named = {"reward_chosen": 4.0, "reward_rejected": 3.0, "accuracy": 0.75, "margin": 1.0}
    plain = {"step": 1, "epoch": 0.5, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 30}
    assert progress.lines == [plain | named | {"valid_loss": 1.5}]
    assert [line.keys() - plain.keys() - named.keys() for line in lines] == [
        {"tokens_per_second", "seconds"}, {"valid_loss", "seconds"}
    ]  # fmt: skip
    assert [json.loads(line) for line in (tmp_path / "live").read_text().splitlines()] == lines
