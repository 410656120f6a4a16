"""Damaged task files, as they are found, listed and counted."""

import json
from importlib.metadata import distribution
from pathlib import Path

from shadowft_core.files import bytes_digest, cache_folder, write_json_atomically
from shadowft_core.suites import TaskFiles
from shadowft_core.suites.items import few_shot_files, item_files, rows_of
from tests.fixtures.evaluation import CHOICE, rows, write_task
from tests.fuzz.child import in_child
from tests.fuzz.damage import lines_damage, yaml_damage
from tests.fuzz.harness import WORKERS, Target, fuzzed

NAMES = ("choice", "both")


def make_tasks(folder: Path) -> None:
    """The tasks, and a short list of those of the harness: making the whole one takes seconds in every child."""
    for name in ("say", "next"):
        write_task(folder, name, rows(name)[:5])
    (folder / "choice.yaml").write_text(CHOICE.replace("!function helper.letters", "[a, b]"))
    (folder / "both.yaml").write_text("group: both\ntask: [say, next]\n")
    record = bytes_digest((distribution("lm_eval").read_text("RECORD") or "").encode()).removeprefix("sha256:")
    write_json_atomically(cache_folder() / "harness" / f"{record}.json", {"gsm8k": ["TASK", "gsm8k/gsm8k.yaml", []]})
    (folder / "benchmark.json").write_text(json.dumps({"files": []}))


def read_tasks(folder: Path) -> None:
    found = TaskFiles(folder)
    for name in found.resolve(NAMES):
        found.ends_at_delimiter(name)
        found.is_heldout(name)
    item_files(folder, NAMES, (".jsonl", ".json"))
    rows_of(folder, folder, NAMES, 3)
    few_shot_files(folder)


test_hostile_tasks = fuzzed(
    Target(
        "tasks",
        make_tasks,
        in_child(read_tasks),
        {"*.yaml": yaml_damage, "*.jsonl": lines_damage},
        allowed=WORKERS,
        share=0.5,
    ),
)
