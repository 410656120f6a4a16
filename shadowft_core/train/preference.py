"""TRL's trainer for preferences (DPO, arXiv 2305.18290) on encoded pairs.

The reference is the model before training. With plain LoRA it is the model without its adapter, at each step. Otherwise
its log-probabilities are computed once, before the first step, so that no second model is held.
"""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from shadowft_core.errors import TrainError
from shadowft_core.params import Train
from shadowft_core.train.arguments import dpo_config
from shadowft_core.train.encode import Encoded, ids_column
from shadowft_core.train.progress import REWARDS
from shadowft_core.train.saving import Resumable
from shadowft_core.train.sources import NamesRows, sources_column


class PreferenceTrainer(NamesRows, Resumable, DPOTrainer):  # type: ignore[misc]  # TRL is not typed
    """DPOTrainer for data sets of ids: columns prompt_ids, chosen_ids and rejected_ids."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """The data set with the log-probabilities (float32, in nats) of both replies under the starting model.

        TRL's own method keeps them in a cache of the data sets library, which outlives the run.
        """
        if "ref_chosen_logps" in dataset.column_names:
            return dataset
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator)
        shared = self.accelerator.prepare(loader)  # among the processes
        training = self.model.training
        self.model.eval()
        found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for batch in shared:
            both = self.accelerator.gather_for_metrics(self.compute_ref_log_probs(self.model, batch))
            for logps, of_all in zip(both, found, strict=True):
                of_all.append(logps.float().cpu())
        self.model.train(training)
        columns = zip(("ref_chosen_logps", "ref_rejected_logps"), map(torch.cat, found), strict=True)
        table = dataset.data.table
        for column, values in columns:
            table = table.append_column(column, pa.array(values.numpy()))
        return datasets.Dataset(table)

    def get_batch_samples(self: Any, *arguments: Any) -> Any:
        """The micro-batches of the next step, and the weight of each: its share of the pairs of all processes.

        The Trainer takes the mean over micro-batches, in which the pairs of a smaller last one would count for more.
        """
        batches, items = super().get_batch_samples(*arguments)
        real = self.real_batches(len(batches))
        pairs = [len(batch["input_ids"]) // 2 if one else 0 for batch, one in zip(batches, real, strict=True)]
        everywhere = self.accelerator.reduce(torch.tensor(pairs, device=self.accelerator.device), "sum").tolist()
        self._shares = [number / sum(everywhere) for number in everywhere]
        self._weights = [number * len(batches) * self.accelerator.num_processes / sum(everywhere) for number in pairs]
        return batches, items

    def log(self: Any, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """TRL's, with means over the pairs of the step, not over its micro-batches."""
        of_step = self._metrics["train"] if self.model.training else {}
        for name, values in of_step.items():
            if name in REWARDS:
                of_step[name] = [sum(value * share for value, share in zip(values, self._shares, strict=True))]
        super().log(logs, *arguments, **options)

    def real_batches(self, count: int) -> list[bool]:
        """For each micro-batch of a step, whether it has rows; with several processes some have none (ranks.py)."""
        return [True] * count

    def compute_loss(self: Any, *arguments: Any, **options: Any) -> Any:
        """TRL's loss, times the weight of the micro-batch."""
        loss = super().compute_loss(*arguments, **options)
        return loss * self._weights.pop(0) if self.model.training else loss

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """TRL's loss. Its metrics are gathered from processes with unequal numbers of pairs, of which one may be blank
        (ranks.py); TRL expects equal numbers."""
        if self.accelerator.num_processes == 1:
            return super()._compute_loss(model, inputs, return_outputs)
        gather, blank = self.accelerator.gather, self.model.training and self._weights[0] == 0

        def of_all(values: Any) -> Any:
            if not isinstance(values, torch.Tensor) or values.ndim == 0:
                return gather(values)
            given = torch.full_like(values, torch.nan) if blank else values
            found = gather(self.accelerator.pad_across_processes(given, pad_index=torch.nan))
            return found[~found.isnan()]

        self.accelerator.gather = of_all
        try:
            return super()._compute_loss(model, inputs, return_outputs)
        finally:
            del self.accelerator.gather


def preference_trainer(
    network: Any, tokenizer: Any, rows: Encoded, valid: Encoded | None, params: Train, scratch: Path, pad: int
) -> PreferenceTrainer:
    """TRL's trainer for pairs of replies. `network` is the model to train, with its adapter if there is one.

    Computes the reference for all rows, unless it is the model without its adapter (`_adapter_is_the_change`).
    Raises TrainError if the head has an adapter, which TRL does not train, or if the reference cannot be computed.
    """
    if isinstance(network.get_output_embeddings(), BaseTunerLayer):
        raise TrainError("train.lora.targets: an adapter of the head is not trained on preferences; leave the head out")
    precompute = not _adapter_is_the_change(network)
    if precompute and params.launch.strategy == "fsdp":
        raise TrainError(
            "train.launch.strategy fsdp shards the model, but the reference of these preferences needs a whole one: "
            "set it to ddp, or train a new adapter alone: train.start scratch, render.template_tokens from_instruct"
        )
    if precompute and getattr(network, "is_loaded_in_4bit", False):
        raise TrainError(
            "train.method qlora trains a new adapter alone on preferences: set render.template_tokens to from_instruct "
            "and train.start to scratch, or train.method to lora"
        )
    _disable_dropout(network)
    model = network.get_base_model() if precompute and hasattr(network, "get_base_model") else network
    pads = [(held, held.pad_token_id) for held in (model.config.get_text_config(), model.generation_config)]
    trainer = PreferenceTrainer(
        model=model,
        args=dpo_config(params, scratch, precompute=precompute),
        data_collator=DataCollatorForPreference(pad_token_id=pad, max_length=None),
        train_dataset=_pairs(rows),
        eval_dataset=_pairs(valid) if valid and valid.input_ids else None,
        processing_class=tokenizer,
    )
    for held, token in pads:  # TRL sets the tokenizer's, which would be saved
        held.pad_token_id = token
    if precompute:
        trainer.model = trainer.model_wrapped = network
    else:
        network.delete_adapter("ref")  # TRL's copy of the adapter; without it, TRL disables the adapter instead
    return trainer


def _adapter_is_the_change(network: Any) -> bool:
    """Whether the network without its adapter is the model before training.

    Not so if the adapter changes the frozen weights (OSF), if PEFT holds other trained weights in copies, or if the
    adapter is not zero, as that of an earlier training.
    """
    config = getattr(network, "peft_config", {}).get("default")
    if config is None or str(config.peft_type.value) != "LORA":
        return False
    if config.modules_to_save or config.trainable_token_indices:
        return False
    return not any(bool(weight.any()) for name, weight in network.named_parameters() if ".lora_B." in name)


def _disable_dropout(network: Any) -> None:
    """Set the model's own dropout to zero, as the paper's reference has none; that of the adapter stays."""
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _pairs(rows: Encoded) -> datasets.Dataset:
    firsts = [rows.prompt(at) for at in range(len(rows.input_ids))]
    columns = {
        "prompt_ids": [ids[:first] for ids, first in zip(rows.input_ids, firsts, strict=True)],
        "chosen_ids": [ids[first:] for ids, first in zip(rows.input_ids, firsts, strict=True)],
        "rejected_ids": rows.rejected,
    }
    table = {name: ids_column(values) for name, values in columns.items()} | sources_column(rows.origins)
    return datasets.Dataset(pa.table(table))
