"""Saves the state of a training during its steps, and goes on from it.

transformers' Trainer writes optimizer, scheduler, random numbers and its own state. The weights that are trained are
written in their own dtype by name, so whatever the method, the same bits come back.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from shadowft_core.errors import TrainError
from shadowft_core.train.checkpoints import PREFIX, Checkpoints
from shadowft_core.train.interrupts import Interrupt
from shadowft_core.train.launch import Place

Run = Callable[[], dict[str, Any]]
WEIGHTS = "trained.safetensors"
UNWRITTEN = ("inline_container", "iostream", "PytorchStreamWriter")  # in the RuntimeError of torch.save


class Resumable:
    """Mixed into a trainer of TRL, before it: what a checkpoint holds of weights and optimizer, and no other files.

    Without it the Trainer would pickle its arguments into each checkpoint, and PEFT might ask a hub for the base model.
    Under FSDP each process writes its shards and reads them again, so they must be as many (the key has their number).
    """

    def save_model(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights."""
        if self.args.should_save or self.is_fsdp_enabled:
            require_finite(self.model, f"after step {self.state.global_step}")
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            weights = {name: local(weight).contiguous() for name, weight in trained(self.model)}
            save_file(weights, folder / self.own_file(WEIGHTS))

    def _save_checkpoint(self: Any, *given: Any, **named: Any) -> None:
        with writing(Path(self.args.output_dir, f"{PREFIX}{self.state.global_step}")):
            super()._save_checkpoint(*given, **named)  # type: ignore[misc]

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model if model is None else model, Path(resume_from_checkpoint) / self.own_file(WEIGHTS))

    def _save_optimizer_and_scheduler(self: Any, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        state = self.optimizer.state_dict()
        state["state"] = {at: {name: local(v) for name, v in of.items()} for at, of in state["state"].items()}
        torch.save(state, Path(output_dir, self.own_file("optimizer.pt")))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        state = torch.load(Path(checkpoint, self.own_file("optimizer.pt")), map_location="cpu", weights_only=True)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for at, of in state["state"].items():
            state["state"][at] = {name: _like(value, weights[at]) for name, value in of.items()}
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, "scheduler.pt"), weights_only=True))

    def own_file(self: Any, name: str) -> str:
        """The file of this process; all have the same one if they have the same weights."""
        stem, _, end = name.rpartition(".")
        return f"{stem}-{self.args.process_index}.{end}" if self.is_fsdp_enabled else name

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: it names paths."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn a failure to write `place`, of whatever library, into a TrainError, and remove what was written of it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not any(word in text for word in UNWRITTEN):
            raise
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
        free = shutil.disk_usage(next(folder for folder in place.absolute().parents if folder.is_dir())).free
        raise TrainError(
            f"{place}: cannot be written ({text:.200}); {free / 1e9:.1f} GB are free there; make room and run the same "
            "command again"
        ) from None


def local(value: Any) -> Any:
    """The part of a tensor that this process holds, without a gradient; other values as they are."""
    value = value.detach() if isinstance(value, torch.Tensor) else value
    return value.to_local() if isinstance(value, DTensor) else value


def _like(value: Any, weight: torch.Tensor) -> Any:
    """A part of a tensor as that of `weight` if both have the same shape: moments do, the count of steps does not."""
    if not isinstance(weight, DTensor) or not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    local = value.to(weight.to_local().device)
    mesh, placements = weight.device_mesh, weight.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=weight.shape, stride=weight.stride())


def trained(network: Any) -> list[tuple[str, Any]]:
    """The weights that are trained, by name; tied ones once."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves the outermost unit whole, apart from the shards
    return [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]


def require_finite(network: Any, when: str) -> None:
    """Raises TrainError if a trained weight is not finite."""
    for name, weight in trained(network):
        if not bool(torch.isfinite(local(weight)).all()):
            raise TrainError(f"{name}: not finite {when}; lower train.learning_rate")


def load_trained(network: Any, file: Path) -> None:
    """Set the trained weights to those in the file. Raises TrainError if names differ."""
    saved, weights = load_file(file), dict(trained(network))
    if differing := sorted(saved.keys() ^ weights.keys()):
        raise TrainError(
            f"{file}: {differing[0]} is in only one of checkpoint and model ({len(differing)} in all); remove it"
        )
    with torch.no_grad():
        for name, value in saved.items():
            local(weights[name]).copy_(value)


class Saver(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Has the trainer save when `checkpoint.steps` or `minutes` are over, or when a signal asks the training to stop.

    A signal stops it after the current micro-batch. What is saved then is the state after the last whole step, random
    numbers included: a micro-batch of the next step has drawn some, which the run that goes on will draw again.
    """

    def __init__(self, trainer: Any, checkpoints: Checkpoints, interrupt: Interrupt, run: Run) -> None:
        """`run` returns the state of the other callbacks as JSON."""
        self._trainer, self._checkpoints, self._interrupt, self._run = trainer, checkpoints, interrupt, run
        self._last = time.monotonic()
        self._random = _random_state()
        self._tokens = self._saved_at = 0
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count from here; the step that the trainer goes on from needs no saving."""
        self._last, self._saved_at = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the trainer to save if it is time or a signal came."""
        self._random, self._tokens = _random_state(), self._trainer._total_train_tokens
        settings = self._checkpoints.settings
        late = bool(settings and settings.minutes and time.monotonic() - self._last >= 60 * settings.minutes)
        late, stop = _in_any_process(args, late, self._interrupt.number is not None)
        due = late or bool(settings and settings.steps and state.global_step % settings.steps == 0)
        if settings and (stop or (due and state.global_step < state.max_steps)):
            control.should_save = True
        if stop:
            control.should_training_stop = self.stopped = True

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop between two micro-batches if a signal came."""
        (stop,) = _in_any_process(args, self._interrupt.number is not None)
        if stop:
            control.should_training_stop = self.stopped = True
            if self._checkpoints.settings and state.global_step > self._saved_at:
                _set_random_state(self._random)
                control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation after a step draws random numbers too."""
        self._random = _random_state()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finish what the trainer wrote."""
        if args.world_size > 1:
            torch.distributed.barrier()  # each process writes its random numbers, and under FSDP its shards
        if state.is_world_process_zero:
            run = self._run()
            over = state.global_step >= state.max_steps or run["validation"]["stopped_early"]
            with writing(Path(args.output_dir, f"{PREFIX}{state.global_step}")):
                self._checkpoints.complete(state.global_step, {"over": over, "tokens": self._tokens, **run})
        self._last, self._saved_at = time.monotonic(), state.global_step


def devices(place: Place) -> list[str]:
    """The type of device of each process."""
    return ["cuda" if torch.cuda.is_available() else "cpu"] * place.world


def _in_any_process(args: Any, *flags: bool) -> list[bool]:
    """Each flag: whether it is set in any process, so that all act alike."""
    if args.world_size == 1:
        return list(flags)
    found = torch.tensor(flags, dtype=torch.int32, device=args.device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Any, ...]) -> None:
    own, numpy, cpu, cuda = state
    random.setstate(own)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
