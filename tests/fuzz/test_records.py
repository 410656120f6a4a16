"""Damaged outputs of a run, as report, compare and verdict --items read them."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from shadowft_core.forgetting import ledger
from shadowft_core.forgetting.page import render
from shadowft_core.params import Verdict
from shadowft_core.report import gather, points, report
from shadowft_core.verdict.itemfile import verdict_of_items
from tests.fixtures.report import write_work
from tests.fuzz.damage import bytes_damage, json_damage, lines_damage
from tests.fuzz.harness import Target, fuzzed

FILES = {
    **dict.fromkeys(
        (
            "verdict.json",
            "run.json",
            "candidate.json",
            "preflight.json",
            "pair/pair.json",
            "data/data-report.json",
            "scores/shadow/shadow_scaled/scores.json",
            "sweep/shadow.json",
            "tuned/shadow/train.json",
            "delta/shadow/delta.json",
            "grafted/shadow/recipe.json",
            "grafted/shadow/receipt.json",
        ),
        json_damage,
    ),
    "scores/shadow/shadow_scaled/items.jsonl": lines_damage,
    "tuned/shadow/metrics.jsonl": lines_damage,
    "tuned/shadow/samples.jsonl": lines_damage,
}
RUN = (
    '{"candidate":"a","champion":{"digest":"d","version":2},"commit":"c","costs":[{"seconds":1.5,"stage":"train@shadow"}],'
    '"date":null,"dirty":false,"earlier":[{"candidate":"b","commit":null,"model_name":"m","number":1,"overlap":3}],'
    '"format":1,"items":"i","look":2,"skipped":[{"digest":"e","reason":"lost","version":1}]}'
)
PREFLIGHT = (
    '{"cosine":0.5,"format":1,"loss":{"base":1.5,"instruct":1.25},"method":"lora","modules":{"q_proj":0.5},'
    '"sequences":4,"sigma":{"modules":{"q_proj":0.25},"overall":0.125}}'
)


def make_run(folder: Path) -> None:
    write_work(folder, routes=("shadow",))
    (folder / "run.json").write_text(RUN)
    (folder / "preflight.json").write_text(PREFLIGHT)
    (folder / "candidate.json").write_text(
        '{"arm":"shadow_scaled","format":1,"reason":"best","route":"shadow","scale":0.75}'
    )
    (folder / "tuned/shadow/samples.jsonl").write_text('{"left_out":0,"pieces":[{"learned":true,"text":"hi"}]}\n' * 3)


def make_report(folder: Path) -> None:
    make_run(folder)
    report(folder, folder.parent / "first.html")  # matplotlib makes its folders at first use


def make_arms(folder: Path) -> None:
    write_work(folder / "work", routes=("shadow",))
    for name in ("instruct", "shadow"):
        shutil.copytree(folder / f"work/scores/{name}/{name}", folder / name)
    shutil.rmtree(folder / "work")


def read_arms(folder: Path) -> None:
    render(ledger(folder / "instruct", folder / "shadow"))


def make_table(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"suite": suite, "task": task, "item_id": str(item), "arm": arm, "score": float(item % 2), "cluster": None}
        for arm in ("instruct", "mine")
        for suite, task in (("domain", "skill"), ("guard", "facts"))
        for item in range(20)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "items.parquet")


def read_table(folder: Path) -> None:
    params = Verdict(resamples=999)
    verdict_of_items(folder / "items.parquet", "mine", params, folder.parent / "out" / "verdict.json")


test_hostile_records = fuzzed(
    Target("run", make_run, lambda folder: points(gather(folder)), FILES, share=0.5),
    Target(
        "report", make_report, lambda folder: report(folder, folder.parent / "out" / "report.html"), FILES, share=0.05
    ),
    Target("arms", make_arms, read_arms, {"shadow/scores.json": json_damage, "shadow/items.jsonl": lines_damage}),
    Target("items.parquet", make_table, read_table, {"items.parquet": bytes_damage}),
)
