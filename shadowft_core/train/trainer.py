"""TRL's trainer with every setting explicit, and the checks on loss and weights around it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import transformers
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from shadowft_core.errors import TrainError
from shadowft_core.params import Train, Validation
from shadowft_core.rendering import Processor
from shadowft_core.train.arguments import sft_config
from shadowft_core.train.checkpoints import Checkpoints
from shadowft_core.train.encode import Encoded, ids_column
from shadowft_core.train.images import ImageCollator
from shadowft_core.train.launch import Place
from shadowft_core.train.packing import PackedTokens, PackingCollator, packed, require_packable
from shadowft_core.train.preference import PreferenceTrainer, preference_trainer
from shadowft_core.train.progress import Progress
from shadowft_core.train.ranks import share_out
from shadowft_core.train.saving import Resumable, require_finite
from shadowft_core.train.sources import NamesRows, SourcedCollator, sources_column
from shadowft_core.train.steps import run_steps
from shadowft_core.train.validation import MeanOverTokens, Measured

ALONE = Place()


class SupervisedTrainer(MeanOverTokens, NamesRows, Resumable, SFTTrainer):  # type: ignore[misc]  # trl is not typed
    """TRL's trainer of replies."""


class PackedTrainer(PackedTokens, SupervisedTrainer):
    """TRL's trainer of replies in packs."""


def make_trainer(
    network: Any,
    tokenizer: Any,
    rows: Encoded,
    params: Train,
    scratch: Path,
    processor: Processor | None = None,
    valid: Encoded | None = None,
    place: Place = ALONE,
) -> transformers.Trainer:
    """TRL's trainer of `params.objective` for encoded rows, with every setting explicit.

    `scratch` is a folder for TRL's files. `trainer.evaluate()` measures the loss on `valid`. With `processor`, that of
    a model that takes images, `ImageCollator` makes the batches; with train.packing, the rows
    are packed. With the objective dpo, making the trainer may take a
    pass over the rows (`preference_trainer`).
    """
    pad = padding_id(tokenizer)
    trained = [(weight, weight.data) for weight in network.parameters() if weight.requires_grad]
    if params.objective == "dpo":
        trainer: transformers.Trainer = preference_trainer(network, tokenizer, rows, valid, params, scratch, pad)
    else:
        trainer = _reply_trainer(network, tokenizer, rows, params, scratch, processor, valid)
    for weight, data in trained:
        weight.data = data  # TRL makes the adapter of a 4-bit model bfloat16, which loses small steps
    trainer.data_collator = SourcedCollator(trainer.data_collator)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.create_scheduler = _without_warmup_of_one_step(trainer)
    if place.world > 1:
        share_out(trainer)
    return trainer


def _reply_trainer(
    network: Any,
    tokenizer: Any,
    rows: Encoded,
    params: Train,
    scratch: Path,
    processor: Processor | None,
    valid: Encoded | None,
) -> SupervisedTrainer:
    pad, dataset, kind = padding_id(tokenizer), _dataset(rows), SupervisedTrainer
    # Without a collator, TRL would change the model's config.
    collator: Any = DataCollatorForLanguageModeling(pad_token_id=pad)
    if processor:
        collator = ImageCollator(processor, pad)
    elif params.packing:
        require_packable(network, dataset, pad)
        dataset, kind = packed(dataset, params.max_length), PackedTrainer
        collator = PackingCollator(pad, flat=params.attention == "flash_attention_2")
    return kind(
        model=network,
        args=sft_config(params, scratch),
        data_collator=collator,
        train_dataset=dataset,
        eval_dataset=_dataset(valid) if valid and valid.input_ids else None,
        processing_class=tokenizer,
    )


def _without_warmup_of_one_step(trainer: transformers.Trainer) -> Callable[..., Any]:
    """`trainer.create_scheduler`, but a training of one step has no warm-up: rounded up to a step, it would leave the
    only learning rate at 0."""
    create = trainer.create_scheduler

    def created(num_training_steps: int, *arguments: Any, **options: Any) -> Any:
        if num_training_steps == 1:
            trainer.args.warmup_steps = 0
        return create(num_training_steps, *arguments, **options)

    return created


def padding_id(tokenizer: Any) -> int:
    """The id that pads batches. Padding is masked and not learned, so any id works."""
    given = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(number for number in given if number is not None))


def fit(
    trainer: transformers.Trainer, network: Any, progress: Progress, checkpoints: Checkpoints, validation: Validation
) -> dict[str, Any]:
    """Train, and return the facts about validation for train.json.

    `valid_loss` is the loss on the validation rows of the weights that are kept, in nats, as a mean over all learned
    tokens (dpo: over all pairs); null without such rows. `best_step` and `stopped_early` come from the measurements
    during the steps.

    Goes on from the newest of `checkpoints`. Raises StoppedError if a signal stopped it, TrainError if a loss, a
    gradient or a trained weight is not finite, or if the loss rises to that of a guess.
    """
    measured = Measured(trainer, validation, progress, checkpoints.saving)
    run_steps(trainer, checkpoints, progress, measured)
    measured.load_best()
    require_finite(network, "after the last step")
    if isinstance(trainer, PreferenceTrainer):
        progress.require_learning(2, trainer.args.learning_rate, "replies")
    else:
        vocabulary = int(network.get_input_embeddings().weight.shape[0])
        progress.require_learning(vocabulary, trainer.args.learning_rate)
    return {
        "valid_loss": progress.validated(trainer.state.global_step, _valid_loss(trainer)),
        "best_step": measured.best_step,
        "stopped_early": measured.stopped_early,
    }


def _valid_loss(trainer: transformers.Trainer) -> float | None:
    if trainer.eval_dataset is None:
        return None
    loss = float(trainer.evaluate()["eval_loss"])
    if not math.isfinite(loss):
        raise TrainError(f"validation loss is {loss} after training; lower train.learning_rate")
    return loss


def _dataset(rows: Encoded) -> datasets.Dataset:
    columns = {"input_ids": ids_column(rows.input_ids), "labels": ids_column(rows.labels)}
    columns |= sources_column(rows.origins)
    if rows.texts:
        columns |= {"text": pa.array(rows.texts), "files": pa.array(rows.files, pa.list_(pa.string()))}
    return datasets.Dataset(pa.table(columns))
