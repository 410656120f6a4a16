"""The settings of `train` as arguments of TRL, every one explicit, so that no default of a library decides."""

from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig, SFTConfig

from shadowft_core.params import Train
from shadowft_core.train.ranks import fsdp_config

DDP_TIMEOUT = 1800  # seconds that a process waits for the others, for example while rank 0 counts stops


def sft_config(params: Train, scratch: Path) -> SFTConfig:
    """TRL's arguments for supervised fine-tuning. `scratch` is a folder for TRL's files."""
    return SFTConfig(
        **_shared(params, scratch), packing=False, loss_type="nll", dataset_kwargs={"skip_prepare_dataset": True}
    )


def dpo_config(params: Train, scratch: Path, *, precompute: bool) -> DPOConfig:
    """TRL's arguments for preferences. With `precompute`, the reference is computed once, before the first step."""
    return DPOConfig(
        **_shared(params, scratch),
        beta=params.dpo.beta,
        loss_type=["sigmoid"],
        loss_weights=None,
        label_smoothing=0.0,
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        use_weighting=False,
        sync_ref_model=False,
        router_aux_loss_coef=0.0,  # the paper's loss has no such term
        disable_dropout=False,  # it would disable train.lora.dropout too
        padding_free=False,
        pad_to_multiple_of=None,
        precompute_ref_log_probs=precompute,
    )


def _shared(params: Train, scratch: Path) -> dict[str, Any]:
    """The arguments that do not depend on the objective."""
    cuda = torch.cuda.is_available()
    return dict(  # noqa: C408 the names are those of arguments
        output_dir=str(scratch),
        num_train_epochs=params.epochs,
        max_steps=params.max_steps or -1,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        gradient_accumulation_steps=params.accumulation // (params.launch.processes * params.launch.nodes),
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=True,  # experts without a token in a micro-batch
        ddp_broadcast_buffers=False,
        ddp_timeout=DDP_TIMEOUT,
        fsdp=True if params.launch.strategy == "fsdp" and params.launch.processes * params.launch.nodes > 1 else None,
        fsdp_config=fsdp_config(),
        learning_rate=params.learning_rate,
        lr_scheduler_type="constant_with_warmup" if params.schedule == "constant" else params.schedule,
        warmup_steps=params.warmup,
        optim="adamw_torch" if params.optimizer == "adamw" else "adamw_bnb_8bit",
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
        gradient_checkpointing=params.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if params.gradient_checkpointing else None,
        use_liger_kernel=params.liger,
        torch_compile=params.compile,
        max_length=None,  # longer rows were left out, nothing is truncated
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
