"""One training on a GPU in a process of its own: `python -m benchmarks.gpu_arm SHAPE ARM [--dry-run]`.

ARM is `trl`, or switches joined by `+`: `wide` (frozen weights in float32), `frozen` (in bfloat16), `pack`, `gc`,
`liger`, `bN` (N rows or packs a batch), `det` (deterministic algorithms), `compile`. Prints one
line of JSON: tokens a second (real and padded), peak GB, MFU, first and last loss; or the error, such as out of memory.

Weights are random, in the real shape. MFU = real tokens/s * 4 * weights of the linear layers / peak FLOP/s: forward 2,
backward 2 more for the inputs, none for frozen weights.
"""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed

from shadowft_core.params import Lora, Train
from shadowft_core.train.device import set_up
from shadowft_core.train.encode import Encoded
from shadowft_core.train.frozen import keep_narrow
from shadowft_core.train.methods import with_method
from shadowft_core.train.trainer import make_trainer

PEAK = 989e12  # dense bfloat16 FLOP/s of an H100 or H200
LENGTH, SKIPPED = 1024, 3
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
}


class Clock(TrainerCallback):
    """The end of each step, in seconds, and the losses."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.losses += [float(logs["loss"])] if "loss" in logs else []


def rows(number: int, length: int, vocabulary: int) -> Encoded:
    """Log-normal lengths (median 300, cut at `length`), the first third not learned."""
    draw, found = np.random.default_rng(0), Encoded()
    for size in np.clip(np.exp(draw.normal(5.7, 0.7, number)), 8, length).astype(int):
        ids = draw.integers(6, vocabulary, size).astype(np.int32)
        found.input_ids.append(ids)
        found.labels.append(np.where(np.arange(size) < size // 3, -100, ids).astype(np.int32))
    return found


def measure(shape: str, arm: str, dry: bool) -> dict[str, Any]:
    """Train and return the figures."""
    switches = arm.split("+")
    batch = next((int(each[1:]) for each in switches if each[1:].isdigit() and each[0] == "b"), 16)
    steps, length = (4, 96) if dry else (10, LENGTH)
    settings = Train(
        lora=Lora(rank=8 if dry else 128),
        batch_size=2 if dry else batch,
        max_steps=steps,
        max_length=length,
        packing="pack" in switches,
        gradient_checkpointing="gc" in switches,
        liger="liger" in switches,
        compile="compile" in switches,
        deterministic="det" in switches,
    )
    set_up(settings)
    torch.manual_seed(0)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(place):
        network = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=8192))
    torch.set_default_dtype(torch.float32)
    network.float() if "wide" in switches else keep_narrow(network)
    network.config.use_cache = False
    linear = sum(m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear))
    found = rows(64 * settings.batch_size * steps, length, SHAPES[shape]["vocab_size"])
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        if "trl" in switches:
            trainer, network = bare(network, found, settings, Path(scratch))
        else:
            network = with_method(network, settings)
            trainer = make_trainer(network, _tokenizer(), found, settings, Path(scratch))
        counts = counted(trainer)
        trainer.add_callback(clock)
        trainer.train()
    first = 1 if dry else SKIPPED
    real, padded = _sums(counts[: len(clock.ends)], first)
    seconds = clock.ends[-1] - clock.ends[first - 1]
    return {
        "tokens_s": round(real / seconds, 1),
        "padded_tokens_s": round(padded / seconds, 1),
        "peak_GB": round(torch.cuda.max_memory_allocated() / 1e9, 2) if place == "cuda" else None,
        "MFU": round(real / seconds * 4 * linear / PEAK, 4) if place == "cuda" else None,
        "losses": [clock.losses[0], clock.losses[-1]],
    }


def _sums(counts: list[tuple[int, int]], first: int) -> tuple[int, int]:
    return sum(real for real, _ in counts[first:]), sum(padded for _, padded in counts[first:])


def counted(trainer: Any) -> list[tuple[int, int]]:
    """Gets a pair for each batch that the trainer makes: its tokens, and its size with padding."""
    found: list[tuple[int, int]] = []
    collate = trainer.data_collator

    def count(examples: Any) -> Any:
        batch = collate(examples)
        found.append((sum(len(each["input_ids"]) for each in examples), batch["input_ids"].numel()))
        return batch

    trainer.data_collator = count
    return found


def bare(network: Any, found: Encoded, settings: Train, scratch: Path) -> Any:
    """A plain TRL script: LoRA on a bfloat16 model, its own collator, the same rows and settings."""
    import datasets
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    cuda = torch.cuda.is_available()
    network = type(network)(network.config).to(network.device, torch.bfloat16 if cuda else torch.float32)
    set_seed(0)
    rank = settings.lora.rank
    model = get_peft_model(
        network, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    )
    config = SFTConfig(
        output_dir=str(scratch),
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=cuda,
        use_cpu=not cuda,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    columns = {"input_ids": [row.tolist() for row in found.input_ids], "labels": [row.tolist() for row in found.labels]}
    trainer = SFTTrainer(
        model=model,
        args=config,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=1),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=_tokenizer(),
    )
    return trainer, model


def _tokenizer() -> Any:
    from tokenizers import Tokenizer as Raw
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    raw = Raw(models.WordLevel({"<unk>": 0, "<pad>": 1, "<eos>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")


def main(shape: str, arm: str, *rest: str) -> None:
    """Print the line. An error is part of it: an arm that runs out of memory is a result."""
    warnings.simplefilter("ignore")
    line: dict[str, Any] = {"shape": shape, "arm": arm}
    try:
        line |= measure(shape, arm, "--dry-run" in rest)
    except torch.OutOfMemoryError as error:
        line["error"] = "out of memory: " + " ".join(str(error).split())[:120]
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
