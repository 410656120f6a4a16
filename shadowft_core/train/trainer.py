"""TRL's trainer with every setting explicit, and the checks on loss and weights around it."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once; deterministic products need it

import datasets
import numpy as np
import pyarrow as pa
import torch
import transformers
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from shadowft_core.errors import TrainError
from shadowft_core.params import Train
from shadowft_core.rendering import Processor
from shadowft_core.train.encode import Encoded
from shadowft_core.train.images import ImageCollator


def make_deterministic(params: Train) -> None:
    """Set the CPU threads and deterministic algorithms of torch, and silence the libraries."""
    torch.set_num_threads(params.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # no operation reads it; filling costs a pass each
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def make_trainer(
    network: Any, tokenizer: Any, rows: Encoded, params: Train, scratch: Path, processor: Processor | None = None
) -> SFTTrainer:
    """TRL's trainer for encoded rows, with every setting explicit. `scratch` is a folder for TRL's files.

    With `processor`, that of a model that takes images, `ImageCollator` makes the batches.
    """
    cuda = torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=params.epochs,
        max_steps=params.max_steps or -1,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        gradient_accumulation_steps=params.accumulation,
        learning_rate=params.learning_rate,
        lr_scheduler_type="constant_with_warmup" if params.schedule == "constant" else params.schedule,
        warmup_steps=params.warmup,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=params.seed,
        data_seed=params.seed,
        use_cpu=not cuda,
        bf16=cuda,
        fp16=False,
        tf32=False if cuda else None,
        gradient_checkpointing=False,
        max_length=None,  # longer rows were left out, nothing is truncated
        packing=False,
        loss_type="nll",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would replace a loss that is not finite by a mean
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    pad = padding_id(tokenizer)
    trainer = SFTTrainer(
        model=network,
        args=config,
        # Without a collator, TRL would change the model's config.
        data_collator=ImageCollator(processor, pad) if processor else DataCollatorForLanguageModeling(pad_token_id=pad),
        train_dataset=_dataset(rows),
        processing_class=tokenizer,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def padding_id(tokenizer: Any) -> int:
    """The id that pads batches. Padding is masked and not learned, so any id works."""
    given = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(number for number in given if number is not None))


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Collects a line per step, prints about one per second, and raises TrainError if a loss is not finite."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self._began = self._shown = time.monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        step, loss, norm = state.global_step, float(logs["loss"]), float(logs["grad_norm"])
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise TrainError(f"step {step}: {name} is {value}; lower train.learning_rate ({args.learning_rate:g})")
        self.lines.append(
            {
                "step": step,
                "epoch": logs["epoch"],
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": logs["learning_rate"],
                "tokens": int(logs["num_tokens"]),
            }
        )
        now = time.monotonic()
        if now - self._shown >= 1 or step in {1, state.max_steps}:
            self._shown = now
            left = (now - self._began) / step * (state.max_steps - step)
            print(f"step {step}/{state.max_steps} loss {loss:.3f} eta {left:.0f}s", file=sys.stderr, flush=True)

    def require_learning(self, vocabulary: int, rate: float) -> None:
        """Raises TrainError if the training destroyed the model.

        That is so if the mean loss of the last tenth of the steps is at least that of a uniform guess, ln(vocabulary)
        nats, less 1 %, and the first loss was lower by a tenth of it. A model with random weights starts near a guess.
        """
        losses, chance = [line["loss"] for line in self.lines], math.log(vocabulary)
        last = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        if last >= 0.99 * chance and last > losses[0] + 0.1 * chance:
            raise TrainError(
                f"the loss rose from {losses[0]:.3f} to {last:.3f}, as high as that of a uniform guess among "
                f"{vocabulary} tokens ({chance:.3f}): the model is destroyed; lower train.learning_rate ({rate:g})"
            )


def fit(trainer: SFTTrainer, network: Any, valid: Encoded, progress: Progress) -> float | None:
    """Train, and return the mean loss on the validation rows; None without such rows.

    Raises TrainError if a loss, a gradient or a trained weight is not finite, or if the loss rises to that of a guess.
    """
    trainer.add_callback(progress)
    trainer.train()
    _check_finite(network)
    vocabulary = int(network.get_input_embeddings().weight.shape[0])
    progress.require_learning(vocabulary, trainer.args.learning_rate)
    return _valid_loss(trainer, valid)


def require_one_device() -> None:
    """Raises TrainError if the training would run in several processes or on several devices.

    With two visible devices, transformers wraps the model in DataParallel, which doubles the batch.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise TrainError(f"started as one of {processes} processes (WORLD_SIZE), expected one; run it without torchrun")
    if (devices := torch.cuda.device_count()) > 1:
        raise TrainError(f"{devices} CUDA devices are visible, expected one; set CUDA_VISIBLE_DEVICES to its number")


@contextmanager
def memory_checked(params: Train, model: Path) -> Iterator[None]:
    """Turn running out of memory in the block into a TrainError with the remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"{model}: out of memory with train.batch_size {params.batch_size}; halve it and double "
            f"train.accumulation ({' '.join(str(error).split())[:120]})"
        ) from None


def _check_finite(network: Any) -> None:
    for name, weight in network.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise TrainError(f"{name}: not finite after the last step; lower train.learning_rate")


def _valid_loss(trainer: SFTTrainer, valid: Encoded) -> float | None:
    if not valid.input_ids:
        return None
    loss = float(trainer.evaluate(_dataset(valid))["eval_loss"])
    if not math.isfinite(loss):
        raise TrainError(f"validation loss is {loss} after training; lower train.learning_rate")
    return loss


def _dataset(rows: Encoded) -> datasets.Dataset:
    def column(values: list[np.ndarray]) -> pa.Array:
        ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
        return pa.LargeListArray.from_arrays(ends, np.concatenate(values) if values else np.empty(0, np.int32))

    columns = {"input_ids": column(rows.input_ids), "labels": column(rows.labels)}
    if rows.texts:
        columns |= {"text": pa.array(rows.texts), "files": pa.array(rows.files, pa.list_(pa.string()))}
    return datasets.Dataset(pa.table(columns))
