"""Damaged data files of every format, as `prepare` reads them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shadowft_core.params import Prepare
from shadowft_core.prepare import prepare
from tests.fixtures.data import lines, talk
from tests.fuzz.child import in_child
from tests.fuzz.damage import Damage, bytes_damage, json_damage, lines_damage
from tests.fuzz.harness import WORKERS, Target, fuzzed

ROWS = [talk(f"What is {number} and {number}?", f"It is {2 * number}.") for number in range(6)]
FLAT = [{"question": f"What is {number} and {number}?", "answer": f"It is {2 * number}."} for number in range(6)]
PAIRS = [{"prompt": f"Is {n} odd?", "chosen": f"It is {n % 2}.", "rejected": f"No: {n}."} for n in range(6)]
TOOLS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": f"Call {number}"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            {"role": "assistant", "content": f"Done {number}."},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    for number in range(3)
]


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(FLAT)


def write_arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_data(folder: Path) -> None:
    prepare(folder, None, Prepare(data="-", valid=0.2, max_bad=0.9), folder.parent / "out")


FORMATS: dict[str, tuple[Callable[[Path], Any], Damage]] = {
    "rows.jsonl": (lambda path: path.write_bytes(lines(ROWS)), lines_damage),
    "tools.jsonl": (lambda path: path.write_bytes(lines(TOOLS)), lines_damage),
    "pairs.jsonl": (lambda path: path.write_bytes(lines(PAIRS)), lines_damage),
    "rows.json": (lambda path: path.write_text(json.dumps(FLAT)), json_damage),
    "rows.csv": (write_csv, bytes_damage),
    "rows.parquet": (lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path), bytes_damage),
    "rows.arrow": (write_arrow, bytes_damage),
}
NATIVE = ("rows.parquet", "rows.arrow")  # read by a library in C++
test_hostile_data = fuzzed(
    *(
        Target(
            f"data {name}",
            lambda folder, name=name, write=write: write(folder / name),
            in_child(read_data) if name in NATIVE else read_data,
            {name: damage},
            allowed=WORKERS if name in NATIVE else frozenset(),
            share=0.5,
        )
        for name, (write, damage) in FORMATS.items()
    )
)
