"""`train.validation`: the loss on validation rows every few steps, an early stop, and the weights of the best step."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import save_file
from transformers import TrainerCallback

from shadowft_core.errors import TrainError
from shadowft_core.params import Validation
from shadowft_core.rendering import IGNORED
from shadowft_core.train.checkpoints import PREFIX
from shadowft_core.train.progress import Progress
from shadowft_core.train.saving import load_trained, local, trained, writing


class MeanOverTokens:
    """Mixed into a trainer of replies, before it: `eval_loss` is the mean over all learned tokens, in nats.

    The Trainer takes the mean of each batch's mean, which depends on the size of the batches.
    """

    def prediction_step(self: Any, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        """The Trainer's; remembers the sum of the losses and the number of learned tokens."""
        learned = (inputs["labels"][..., 1:] != IGNORED).sum()
        loss, *outputs = super().prediction_step(model, inputs, *given, **named)  # type: ignore[misc]
        self._sums.append(torch.stack([loss.double() * learned.to(loss.device), learned.to(loss.device)]))
        return (loss, *outputs)

    def evaluation_loop(self: Any, *given: Any, **named: Any) -> Any:
        """The Trainer's, with this mean."""
        self._sums: list[torch.Tensor] = []
        output = super().evaluation_loop(*given, **named)  # type: ignore[misc]
        loss, learned = self.accelerator.reduce(torch.stack(self._sums).sum(0), "sum").tolist()
        output.metrics["eval_loss"] = loss / learned
        return output


class Measured(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Measures during the steps. The weights of the best step are in `folder`, and linked into each checkpoint."""

    def __init__(self, trainer: Any, settings: Validation, progress: Progress, folder: Path) -> None:
        self._trainer, self._settings, self._progress, self._folder = trainer, settings, progress, folder
        self._best_loss, self._worse, self._running = math.inf, 0, False
        self.best_step: int | None = None
        self.stopped_early = False

    def as_json(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        loss = None if self.best_step is None else self._best_loss
        return {
            "best_loss": loss,
            "best_step": self.best_step,
            "worse": self._worse,
            "stopped_early": self.stopped_early,
        }

    def go_on(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Go on from the state in a checkpoint."""
        self.best_step, self._worse = state["best_step"], state["worse"]
        self.stopped_early = state["stopped_early"]
        if self.best_step is not None:
            self._best_loss = state["best_loss"]
        if self._writes and (checkpoint / self._file.name).exists():
            self._link(checkpoint / self._file.name, self._file)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The evaluation after the last step is not one of these."""
        self._running = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """What is measured from now on is not one of the measurements during the steps."""
        self._running = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the trainer to evaluate."""
        if self._settings.steps and state.global_step % self._settings.steps == 0:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Compare the loss with the lowest one."""
        if not self._running:
            return
        step, loss = state.global_step, float(metrics["eval_loss"])
        if not math.isfinite(loss):
            raise TrainError(f"step {step}: validation loss is {loss}; lower train.learning_rate")
        self._progress.measured(step, loss)
        if loss < self._best_loss:
            self._best_loss, self.best_step, self._worse = loss, step, 0
            if self._settings.keep == "best" and self._writes:
                self._save()
            return
        self._worse += 1
        if self._settings.patience and self._worse >= self._settings.patience and step < state.max_steps:
            control.should_training_stop = self.stopped_early = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the checkpoint the best weights."""
        if self._writes and self._file.exists():
            self._link(self._file, self._folder / f"{PREFIX}{state.global_step}" / self._file.name)

    def load_best(self) -> None:
        """With `keep: best`, set the weights to those of the best step."""
        if self._settings.keep == "best" and self.best_step not in (None, self._trainer.state.global_step):
            if self._trainer.args.world_size > 1:
                torch.distributed.barrier()
            load_trained(self._trainer.model, self._file)

    @property
    def _writes(self) -> bool:
        """Whether this process has a file of its own: one writes for all, under FSDP each writes its shards."""
        return bool(self._trainer.args.should_save or self._trainer.is_fsdp_enabled)

    @property
    def _file(self) -> Path:
        return self._folder / str(self._trainer.own_file("best.safetensors"))

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        with writing(partial):
            save_file({name: local(weight).contiguous() for name, weight in trained(self._trainer.model)}, partial)
        os.replace(partial, self._file)  # a checkpoint may hold the former file

    def _link(self, old: Path, new: Path) -> None:
        new.unlink(missing_ok=True)
        try:
            os.link(old, new)
        except OSError:  # a file system without hard links
            with writing(new):
                shutil.copyfile(old, new)
