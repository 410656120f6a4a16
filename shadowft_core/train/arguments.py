"""The settings of `train` as arguments of TRL, every one explicit, so that no default of a library decides."""

from pathlib import Path

import torch
from trl import SFTConfig

from shadowft_core.params import Train


def sft_config(params: Train, scratch: Path) -> SFTConfig:
    """TRL's arguments for supervised fine-tuning. `scratch` is a folder for TRL's files."""
    cuda = torch.cuda.is_available()
    return SFTConfig(
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
