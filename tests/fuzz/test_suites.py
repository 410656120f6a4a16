"""Damaged data of benchmarks, records of suites, and data files of tasks, as `suite fetch` and `evaluate` read them."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError

from shadowft_core.suites import TaskFiles
from shadowft_core.suites.fetch import _kept
from shadowft_core.suites.items import RECORD, few_shot_files, rows_of
from shadowft_core.suites.sources import Source
from tests.fixtures.evaluation import rows, write_task
from tests.fuzz.child import in_child
from tests.fuzz.damage import bytes_damage, json_damage, lines_damage, yaml_damage
from tests.fuzz.harness import WORKERS, Target, fuzzed

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: test, path: main/*.parquet}
- config_name: other
  data_files: [{split: test, path: [a.jsonl, "b/*.jsonl"]}]
---
# A data set
"""
SPLITS = (  # data set, configuration, split
    ("openai/gsm8k", "main", "test"),
    ("openai/gsm8k", None, "test"),
    ("cais/mmlu", "anatomy", "test"),
    ("SaylorTwift/bbh", "snarks", "test"),
    ("truthfulqa/truthful_qa", "multiple_choice", "validation"),
    ("allenai/ai2_arc", "ARC-Easy", "test"),
    ("ChilleD/SVAMP", None, "test"),
)


def make_source(folder: Path) -> None:
    """A benchmark in each shape, and a hub's folder with a card."""
    asked = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)]
    for name in ("hub/main", "gsm8k", "bbh", "truthful", "ARC-Easy", "svamp"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    pq.write_table(pa.Table.from_pylist(asked), folder / "hub/main/test.parquet")
    (folder / "gsm8k/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (folder / "anatomy_test.csv").write_text('"Which, of?",a,b,c,d,B\nAnd?,1,2,3,4,A\n')
    (folder / "bbh/snarks.json").write_text(json.dumps({"examples": [{"input": "a", "target": "b"}] * 3}))
    heads = "Question,Best Answer,Correct Answers,Incorrect Answers\n"
    (folder / "truthful/TruthfulQA.csv").write_text(heads + "Is it?,No,No; 0,Yes; Often\n")
    query = {"query": "Question: Is it?\nAnswer:", "choices": ["a", "b"], "gold": 1}
    (folder / "ARC-Easy/rows.jsonl").write_text(json.dumps(query) + "\n")
    (folder / "svamp/rows.json").write_text(json.dumps([{"Body": "a", "Question": "b", "Answer": 1}]))


def read_source(folder: Path) -> None:
    source = Source(folder)
    used: set[Path] = set()
    for dataset, name, split in SPLITS:
        found = source.rows(dataset, name, split)
        used |= set(found[1] if found else ())
    source.others(used)


def make_fetched(folder: Path) -> None:
    write_task(folder, "say", rows("say")[:5])
    files = {path.name: {"digest": "sha256:" + "0" * 64, "rows": 5, "items": True} for path in folder.glob("*.jsonl")}
    record = {
        "format": 1,
        "suite": "say",
        "tasks": ["say"],
        "files": files,
        "notes": ["one"],
        "revisions": {"a/b": "c"},
    }
    (folder / RECORD).write_text(json.dumps(record))


def read_fetched(folder: Path) -> None:
    few_shot_files(folder)
    rows_of(folder, folder, ["say"])
    _kept(folder)


def make_task(folder: Path) -> None:
    write_task(folder, "say", rows("say")[:5])
    write_task(folder, "next", rows("next")[:5])
    read_task(folder)  # the harness is imported, and lists its tasks


def read_task(folder: Path) -> None:
    out = folder.parent / "out"
    try:
        for name in ("say", "next"):
            task = TaskFiles(folder).build(name, folder, out)
            for doc in task.eval_docs:
                with suppress(TemplateError):  # `Bench` tells them in one line
                    task.doc_to_text(doc)
    finally:
        shutil.rmtree(out, ignore_errors=True)


test_hostile_suites = fuzzed(
    Target(
        "suite data",
        make_source,
        in_child(read_source),
        {
            "*/*.jsonl": lines_damage,
            "*/*.json": json_damage,
            "*.csv": bytes_damage,
            "*/*.csv": bytes_damage,
            "README.md": bytes_damage,
            "hub/main/*.parquet": bytes_damage,
        },
        allowed=WORKERS,
        share=0.5,
    ),
    Target("suite record", make_fetched, read_fetched, {RECORD: json_damage, "*.jsonl": lines_damage}, share=0.5),
    Target(
        "task data",
        make_task,
        read_task,  # not in a fork: the library has threads
        {"*.yaml": yaml_damage, "*.jsonl": lines_damage},
        share=0.1,
    ),
)
