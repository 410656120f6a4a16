"""Runs the steps of a training, from the start or from its newest checkpoint."""

import signal
from collections.abc import Callable
from typing import Any

import torch.distributed
from pydantic import Field
from transformers import TrainerState
from transformers.trainer_utils import align_special_tokens

from shadowft_core.errors import StoppedError, TrainError, say
from shadowft_core.files.record import Fields, Record, check_record
from shadowft_core.limits import COUNT
from shadowft_core.train.checkpoints import RUN, Checkpoints, Saved
from shadowft_core.train.interrupts import Interrupt
from shadowft_core.train.progress import Progress
from shadowft_core.train.saving import Saver
from shadowft_core.train.validation import Measured


class _Line(Fields):
    """A line of metrics.jsonl."""

    step: int = Field(ge=1, le=COUNT)
    loss: float
    tokens: float = Field(ge=0, le=COUNT)


class _Validation(Record):
    """The state of the validation (`Measured.as_json`)."""

    best_loss: float | None
    best_step: int | None
    worse: int
    stopped_early: bool


class RunFile(Record):
    """run.json of a checkpoint: the lines so far, the tokens, and whether the training is over."""

    lines: list[_Line]
    tokens: float = Field(ge=0, le=COUNT)
    validation: _Validation
    over: bool


def run_steps(trainer: Any, checkpoints: Checkpoints, progress: Progress, measured: Measured) -> None:
    """Train from the newest checkpoint, or from the start, to the last step.

    Raises StoppedError if a signal stopped it.
    """
    interrupt = Interrupt()

    def run() -> dict[str, Any]:
        return {"lines": progress.lines, "validation": measured.as_json()}

    saver = Saver(trainer, checkpoints, interrupt, run)
    progress.rows_of_step, progress.last_good = trainer.rows_of_step, lambda: checkpoints.last_good
    saved = _from_rank_0(trainer.args, checkpoints.newest)
    for callback in (progress, measured, saver):
        trainer.add_callback(callback)
    if saved:
        check_record(saved.run, RunFile, saved.folder / RUN, "remove the checkpoint", error=TrainError)
        progress.go_on(saved.run["lines"])
        trainer._total_train_tokens = saved.run["tokens"]  # TRL does not restore it
        measured.go_on(saved.run["validation"], saved.folder)
    if saved and saved.run["over"]:
        if trainer.is_fsdp_enabled:  # cuts the weights first
            trainer._prepare_for_training(saved.step, trainer.get_train_dataloader(), str(saved.folder))
        else:
            trainer._load_from_checkpoint(str(saved.folder))
        align_special_tokens(trainer.model, trainer.processing_class)  # as `train` does; the config is saved
        trainer.state = TrainerState.load_from_json(str(saved.folder / "trainer_state.json"))
        say(f"train: all {saved.step} steps were done before")
        return
    with interrupt.listening(alone=trainer.args.world_size == 1):
        try:
            trainer.train(resume_from_checkpoint=str(saved.folder) if saved else None)
        finally:
            progress.close()
    if saver.stopped:
        number, kept = interrupt.number or signal.SIGTERM, checkpoints.newest_step
        raise StoppedError(
            f"stopped by {signal.Signals(number).name} after step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}; "
            + (f"run the same command again to go on from step {kept}" if kept else "no step was saved"),
            number,
        )


def _from_rank_0(args: Any, find: Callable[[], Saved | None]) -> Saved | None:
    """What `find` returns in the process with rank 0, in all processes."""
    found = [find() if args.process_index == 0 else None]
    if args.world_size > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]
