"""One training in a process of its own: `python -m benchmarks.training_arm ARM PLACE REPORT STEPS THREADS`.

PLACE has model/, data/ and rows.json, made by `benchmarks.training`. The arm `ours` is `shadowft_core.train.train`, of
whatever commit is on the path. The arm `trl` is a plain script with TRL. REPORT gets the end of each step in seconds,
the losses, and the peak of resident memory when the training ends.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

BATCH, LENGTH, RANK = 4, 256, 128
RATE, SEED = 2e-4, 0


class Clock(TrainerCallback):
    """Notes when steps end, and the losses."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.peak = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.losses += [float(logs["loss"])] if "loss" in logs else []

    def on_train_end(self, *_: Any, **__: Any) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        self.peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def ours(place: Path, steps: int, threads: int) -> None:
    from shadowft_core.params import Lora, Train
    from shadowft_core.train import train

    settings = Train(
        lora=Lora(rank=RANK, alpha=2 * RANK),
        batch_size=BATCH,
        max_steps=steps,
        learning_rate=RATE,
        max_length=LENGTH,
        seed=SEED,
        threads=threads,
    )
    train(place / "model", place / "model", place / "data", settings, place / "out" / "tuned")


def trl(place: Path, steps: int, threads: int) -> None:
    """What TRL's documentation shows for LoRA, in float32, with the same rows, labels, settings and seed."""
    import datasets
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    model = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32)
    transformers.set_seed(SEED)
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    )
    config = SFTConfig(
        output_dir=str(place / "out" / "scratch"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=SEED,
        data_seed=SEED,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    SFTTrainer(
        model=model,
        args=config,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id),
        train_dataset=datasets.Dataset.from_dict(json.loads((place / "rows.json").read_text())),
        processing_class=tokenizer,
    ).train()


def main(arm: str, place: str, report: str, steps: str, threads: str) -> None:
    """Run the arm and write REPORT."""
    clock = Clock()
    transformers.trainer.DEFAULT_CALLBACKS.append(clock)
    {"ours": ours, "trl": trl}[arm](Path(place), int(steps), int(threads))
    facts = {"seconds": [end - clock.ends[0] for end in clock.ends], "losses": clock.losses, "peak": clock.peak}
    Path(report).write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
