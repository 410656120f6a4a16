"""Damaged folders of trainings: of this and of other trainers, the start from a champion, reports of the data."""

import json
import shutil
from pathlib import Path
from typing import Any

from shadowft_core.delta import losses, read_tuned, sentence
from shadowft_core.params import Train
from shadowft_core.plan import read_lengths
from shadowft_core.train.rows import data_digest
from shadowft_core.train.start import read_start
from shadowft_core.weights import open_checkpoint
from tests.fuzz.damage import bytes_damage, json_damage, yaml_damage
from tests.fuzz.harness import Target, fuzzed
from tests.test_delta_format import adapter, make, models

DIGEST = "sha256:" + "a" * 64
CARD = """---
base_model: owner/base
datasets: [owner/data]
tags: [axolotl, generated_from_trainer]
---
axolotl version: `0.9.0`
```yaml
base_model: owner/base
datasets: []
seed: 7
learning_rate: 1e-4
```
- seed: 7
- learning_rate: 0.0001
- num_epochs: 3.0
- Transformers 4.50.0
"""
SETTINGS = "model_name_or_path: owner/base\nfinetuning_type: lora\nstage: sft\nseed: 7\nlearning_rate: 1e-4\n"


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def make_tuned(folder: Path) -> None:
    shutil.rmtree(models(folder / "pair")[1])
    (folder / "pair/base").rename(folder / "pair/instruct")
    shutil.copytree(folder / "pair/instruct", folder / "pair/base")
    refs = {role: {"ref": f"hf:owner/{role}@main", "digest": DIGEST} for role in ("base", "instruct")}
    dump(folder / "pair/pair.json", {"format": 1, **refs})
    tuned = adapter(folder / "tuned")
    log = [{"step": step, "loss": 1 / step, "learning_rate": 1e-4, "num_tokens": 9 * step} for step in (1, 2, 3)]
    dump(
        tuned / "trainer_state.json",
        {"global_step": 3, "epoch": 1.0, "log_history": [*log, {"step": 3, "eval_loss": 2}]},
    )
    dump(tuned / "all_results.json", {"train_loss": 0.5, "epoch": 1.0})
    dump(tuned / "config.json", {"transformers_version": "4.50.0"})
    dump(tuned / "train.json", {"data_digest": DIGEST, "seed": 0, "steps": 3, "first_loss": 1.0, "last_loss": 0.5})
    (tuned / "README.md").write_text(CARD)
    (tuned / "settings.yaml").write_text(SETTINGS)


def read_training(folder: Path) -> None:
    found = read_tuned(folder / "tuned")
    base = open_checkpoint(folder / "pair/base")
    found.require_named(base)
    found.require_start(base)
    losses(folder / "tuned")
    if found.trainer is not None:
        sentence(found.trainer)


def make_start(folder: Path) -> None:
    delta = make(folder.parent / "made", "float32")
    shutil.copytree(delta, folder / "delta")
    from shadowft_core.files import file_digest

    facts = {"format": 1, "start": "champion", "name": "m", "version": 1, "delta": file_digest(delta / "delta.json")}
    dump(folder / "start.json", facts | {"recipe": DIGEST, "base": DIGEST})


def make_report(folder: Path) -> None:
    parts = {role: {"min": 1, "median": 5, "p95": 9, "max": 20} for role in ("prompt", "reply")}
    splits = {"train": 10, "valid": 1, "dev": 0, "test": 0}
    report = {
        "format": 2,
        "splits": splits,
        "characters": {"train": parts},
        "digest": DIGEST,
        "replay": {"rows_used": 3},
    }
    dump(folder / "data-report.json", report)


def read_report(folder: Path) -> None:
    data_digest(folder)
    lengths = read_lengths(folder).within(512)
    _ = lengths.without_replay(), lengths.mean()


test_hostile_trainings = fuzzed(
    Target(
        "training",
        make_tuned,
        read_training,
        {
            "tuned/*.json": json_damage,
            "tuned/*.yaml": yaml_damage,
            "tuned/README.md": bytes_damage,
            "pair/*.json": json_damage,
        },
    ),
    Target(
        "start",
        make_start,
        lambda folder: read_start(Train(start="champion", method="full"), folder),
        {"start.json": json_damage},
    ),
    Target(
        "data report",
        make_report,
        read_report,
        {"data-report.json": json_damage},
    ),
)
