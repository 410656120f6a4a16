"""One training run. Everything heavy is imported here, and this module only when a run begins."""

import importlib.metadata
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS once; deterministic products need it

import datasets
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.core_model_loading import revert_weight_conversion
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from shadowft_core import loading
from shadowft_core.errors import CheckpointError, DataError, TrainError
from shadowft_core.files import (
    bytes_digest,
    canonical_json,
    new_folder,
    read_json_object,
    write_atomically,
    write_json_atomically,
)
from shadowft_core.params import Train
from shadowft_core.train import Accept
from shadowft_core.train.labels import Encoded, Encoder
from shadowft_core.weights import open_checkpoint

VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers")


def run(model: Path, instruct: Path, data: Path, params: Train, out: Path, accept: Accept) -> None:
    """See `shadowft_core.train.train`."""
    began = time.monotonic()
    _settle(params)
    tokenizer = load_tokenizer(instruct)
    encoder = Encoder(tokenizer, stop_ids(tokenizer, instruct))
    rows = encoder.encode_file(data / "train.parquet", params.max_length)
    valid = encoder.encode_file(data / "valid.parquet", params.max_length)
    _say_rows(rows, valid, params)
    if not rows.input_ids:
        raise TrainError(
            f"{data / 'train.parquet'}: no row is left: {rows.too_long} are longer than max_length "
            f"{params.max_length}, {rows.control_tokens} spell control tokens; raise train.max_length"
        )
    starting = open_checkpoint(model)
    network = load_model(model, tokenizer)
    if params.method == "lora":
        network = _with_adapter(network, params)
    with tempfile.TemporaryDirectory() as scratch:
        accept(model, _planned(network, params, Path(scratch)))
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        progress = Progress()
        trainer = make_trainer(network, tokenizer, rows, params, Path(scratch))
        trainer.add_callback(progress)
        try:
            trainer.train()
            _check_finite(network)
            valid_loss = _valid_loss(trainer, valid)
        except torch.OutOfMemoryError as error:
            raise TrainError(
                f"{model}: out of memory with train.batch_size {params.batch_size}; halve it and double "
                f"train.accumulation ({' '.join(str(error).split())[:120]})"
            ) from None
        _save(network, params, folder)
        lines = (canonical_json(line) + b"\n" for line in progress.lines)
        write_atomically(folder / "metrics.jsonl", b"".join(lines))
        facts = {
            "format": 1,
            "method": params.method,
            "settings": params.model_dump(mode="json"),
            "seed": params.seed,
            "model_digest": starting.digest(),
            "tokenizer_digest": open_checkpoint(instruct).tokenizer_digest(),
            "template_digest": bytes_digest(tokenizer.chat_template.encode()),
            "data_digest": _data_digest(data),
            "rows": {"train": rows.counts(), "valid": valid.counts()},
            "steps": trainer.state.global_step,
            "tokens": progress.lines[-1]["tokens"],
            "first_loss": progress.lines[0]["loss"],
            "last_loss": progress.lines[-1]["loss"],
            "valid_loss": valid_loss,
            "device": trainer.args.device.type,
            "autocast": "bfloat16" if trainer.args.bf16 else None,
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        }
        write_json_atomically(folder / "train.json", facts)
    print(
        f"train: {facts['steps']} steps, loss {facts['first_loss']:.3f} -> {facts['last_loss']:.3f}, "
        f"{time.monotonic() - began:.0f} s",
        file=sys.stderr,
    )


def load_tokenizer(instruct: Path) -> Any:
    """The Instruct's tokenizer. Raises CheckpointError when it cannot be read, TrainError without a chat template."""
    tokenizer = loading.load(AutoTokenizer, instruct)
    if not isinstance(tokenizer.chat_template, str):
        raise TrainError(
            f"{instruct}: its tokenizer has no chat template; an Instruct model has one, check fetch.instruct"
        )
    return tokenizer


def stop_ids(tokenizer: Any, instruct: Path) -> set[int]:
    """The ids that end a reply: the tokenizer's eos and every eos of generation_config.json."""
    found = {tokenizer.eos_token_id}
    if (instruct / "generation_config.json").exists():
        listed = read_json_object(instruct / "generation_config.json").get("eos_token_id")
        found |= set(listed) if isinstance(listed, list) else {listed}
    return found - {None}


def load_model(model: Path, tokenizer: Any) -> Any:
    """The model in float32, complete, with a row of its embedding for every id of the tokenizer.

    Raises CheckpointError when weights are missing or misshapen, TrainError when the vocabulary does not fit.
    """
    network, info = loading.load_model(AutoModelForCausalLM, model, dtype=torch.float32)
    if lost := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
        raise CheckpointError(f"{model}: tensor {lost[0]} is missing or misshapen ({len(lost)} in all); fetch it again")
    highest, size = max(tokenizer.get_vocab().values()), network.get_input_embeddings().num_embeddings
    if highest >= size:
        raise TrainError(
            f"{model}: embeds ids below {size}, the Instruct's tokenizer gives ids up to {highest}; "
            "this Base and this Instruct do not belong together"
        )
    network.config.use_cache = False
    return network


def make_trainer(network: Any, tokenizer: Any, rows: Encoded, params: Train, scratch: Path) -> SFTTrainer:
    """TRL's trainer over rows that are encoded already; every setting that TRL or transformers default is explicit."""
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
        max_length=None,  # lengths are settled before, nothing is truncated
        packing=False,
        loss_type="nll",
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would report a mean in place of a loss that is not finite
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trainer = SFTTrainer(
        model=network,
        args=config,
        # Padding is masked and never learned, so any id will do; given here, the model's config is left as it is.
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0 if pad is None else pad),
        train_dataset=_dataset(rows),
        processing_class=tokenizer,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Keeps the line of every step, shows about one a second, and ends a run whose loss is not finite."""

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


def _settle(params: Train) -> None:
    """Threads, determinism, silence."""
    torch.set_num_threads(params.threads)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def _with_adapter(network: Any, params: Train) -> Any:
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=params.lora.rank,
        lora_alpha=params.lora.alpha,
        use_rslora=params.lora.rslora,
        lora_dropout=0.0,
        bias="none",
        target_modules="all-linear",
    )
    transformers.set_seed(params.seed)  # right before A is drawn: both routes start from the same adapter
    return get_peft_model(network, config)


def _dataset(rows: Encoded) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": rows.input_ids, "labels": rows.labels})


def _valid_loss(trainer: SFTTrainer, valid: Encoded) -> float | None:
    """Mean loss on the validation rows after training; None without any."""
    if not valid.input_ids:
        return None
    loss = float(trainer.evaluate(_dataset(valid))["eval_loss"])
    if not math.isfinite(loss):
        raise TrainError(f"validation loss is {loss} after training; lower train.learning_rate")
    return loss


def _check_finite(network: Any) -> None:
    for name, weight in network.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise TrainError(f"{name}: not finite after the last step; lower train.learning_rate")


def _planned(network: Any, params: Train, scratch: Path) -> Path | dict[str, tuple[int, ...]]:
    """What `_save` will write: the adapter as it begins, or the names and shapes of a full checkpoint."""
    if params.method == "lora":
        _save(network, params, scratch)
        return scratch / "adapter"
    unsaved = network._keys_to_ignore_on_save or ()
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items() if name not in unsaved}
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(network, shapes).items()}


def _save(network: Any, params: Train, folder: Path) -> None:
    if params.method == "full":
        network.save_pretrained(folder / "model")
        return
    adapter = folder / "adapter"
    network.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)  # a model card that names paths
    config = read_json_object(adapter / "adapter_config.json")
    # The digest in train.json names the model; a path would make the bytes depend on the machine. PEFT writes the
    # targets in the order of a set, which differs from process to process.
    config |= {"base_model_name_or_path": "", "target_modules": sorted(config["target_modules"])}
    write_json_atomically(adapter / "adapter_config.json", config)


def _data_digest(data: Path) -> str:
    try:
        return str(read_json_object(data / "data-report.json")["digest"])
    except (CheckpointError, KeyError):
        raise DataError(f"{data / 'data-report.json'}: missing or without a digest; run `shadowft prepare`") from None


def _say_rows(rows: Encoded, valid: Encoded, params: Train) -> None:
    left_out = rows.too_long + valid.too_long
    control = rows.control_tokens + valid.control_tokens
    print(
        f"train: {len(rows.input_ids)} rows, {len(valid.input_ids)} to validate; left out: {left_out} longer than "
        f"{params.max_length} tokens, {control} with control tokens in their text",
        file=sys.stderr,
    )
