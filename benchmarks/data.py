"""Measures speed and memory of `prepare`, and of a simpler pipeline of the datasets library.

Runs whole processes on generated data, each once. CPU seconds are those of all threads and children, so the machine
need not be idle.

Run `python -m benchmarks.data --scratch /var/tmp`.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.graft import launch, machine
from shadowft_core.errors import ShadowError
from shadowft_core.files import write_atomically

ROOT = Path(__file__).parent.parent
FASTEST = {"prepare": 20.0, "prepare, near 0.8": 5.0}  # goals in MB of JSONL per CPU second
MOST_MEMORY = 600e6  # bytes
REPEATED = 0.05  # share of rows that repeat an earlier row

# A script of the datasets library: checks rows, drops equal ones, writes the others.
PEER = """
import hashlib, json, sys
import datasets

def checked(row):
    roles = [turn["role"] for turn in row["messages"]]
    said = all(isinstance(turn["content"], str) and turn["content"].strip() for turn in row["messages"])
    row["ok"] = bool(said and roles == ["user", "assistant"] * (len(roles) // 2))
    row["key"] = hashlib.sha256(json.dumps(row["messages"], sort_keys=True).encode()).hexdigest()
    return row

seen = set()
def first(row):
    new = row["ok"] and row["key"] not in seen
    seen.add(row["key"])
    return new

rows = datasets.load_dataset("json", data_files=sys.argv[1], cache_dir=sys.argv[2], split="train")
rows.map(checked).filter(first).to_parquet(sys.argv[3])
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    scratch: Annotated[Path, typer.Option(help="folder for the data; a subfolder is created, and deleted at the end")],
    gigabytes: Annotated[str, typer.Option(help="sizes of the JSONL file, separated by commas")] = "1,3",
    out: Annotated[Path, typer.Option(help="folder for data.md and data.json")] = Path("benchmarks/results"),
) -> None:
    """Time `prepare` without and with near duplicates, and a pipeline of the datasets library, at each size.

    Example: python -m benchmarks.data --scratch /var/tmp --gigabytes 0.1
    """
    here = scratch.resolve() / "shadowft-bench-data"
    facts: dict[str, Any] = {"format": 1, "machine": machine.describe(scratch), "runs": []}
    try:
        for size in map(float, gigabytes.split(",")):
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir(parents=True)
            rows = write_rows(here / "rows.jsonl", int(size * 1e9), here / "tasks")
            for name, command in _commands(here):
                taken = _measured(here, command)
                facts["runs"].append({"case": name, "bytes": int(size * 1e9), "rows": rows, **taken})
                print(facts["runs"][-1], file=sys.stderr)
    finally:
        shutil.rmtree(here, ignore_errors=True)
    write_atomically(out / "data.md", _page(facts).encode())
    write_atomically(out / "data.json", json.dumps(facts, indent=1).encode() + b"\n")
    print(_page(facts))


def write_rows(path: Path, size: int, tasks: Path) -> int:
    """Write at least `size` bytes of JSONL, and 1,000 test items; always the same bytes. Returns the number of rows."""
    tasks.mkdir()
    rows = made_rows()
    items = [json.dumps({"question": next(rows)["messages"][0]["content"]}) + "\n" for _ in range(1000)]
    (tasks / "items.jsonl").write_text("".join(items), encoding="utf-8")
    count = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            count += 1
            written += file.write(json.dumps(next(rows), ensure_ascii=False) + "\n")
    return count


def made_rows() -> Iterator[dict[str, Any]]:
    """Generate rows of about 1 kB with words of Zipf's frequencies. A tenth has an umlaut; some repeat earlier rows."""
    random_ = random.Random(0)
    words = ["".join(random_.choices("etaoinshrdlu", k=random_.randint(1, 9))) for _ in range(20_000)]
    bounds = list(accumulate(1 / (rank + 10) for rank in range(len(words))))
    old: list[dict[str, Any]] = []
    while True:
        if old and random_.random() < REPEATED:
            yield random_.choice(old)
            continue
        said = random_.choices(words, cum_weights=bounds, k=random_.randint(60, 260))
        if random_.random() < 0.1:
            said[2] = "schön"
        cut = random_.randint(8, len(said) // 2)
        asked, answer = " ".join(said[:cut]) + "?", " ".join(said[cut:]) + "."
        row = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        if len(old) < 5000:
            old.append(row)
        yield row


def _commands(here: Path) -> Iterator[tuple[str, list[str]]]:
    prepare = [sys.executable, "-m", "shadowft_core.cli", "prepare", "--data", str(here / "rows.jsonl")]
    for name, near in (("prepare", "null"), ("prepare, near 0.8", "0.8")):
        params = here / "params.yaml"
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        params.write_text(text.replace("  max_rows: null", f"  max_rows: null\n  near: {near}"), encoding="utf-8")
        paths = ["--tasks", str(here / "tasks"), "--params", str(params), "--out", str(here / "out")]
        yield name, [*prepare, *paths]
        shutil.rmtree(here / "out")
    (here / "peer.py").write_text(PEER, encoding="utf-8")
    paths = [str(here / name) for name in ("peer.py", "rows.jsonl", "cache", "peer.parquet")]
    yield "datasets", [sys.executable, *paths]
    shutil.rmtree(here / "cache")


def _measured(here: Path, command: list[str]) -> dict[str, float]:
    report, log = here / "taken.json", here / "log"
    with log.open("wb") as sink:
        words = [sys.executable, "-I", "-S", launch.__file__, str(report), *command]
        code = subprocess.run(
            words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, check=False
        ).returncode
    if code:
        raise ShadowError(f"{' '.join(command)}: exit code {code}: {log.read_text(encoding='utf-8')[-500:]}")
    taken: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return taken


def _page(facts: dict[str, Any]) -> str:
    lines = [
        "# Data: speed and memory of prepare",
        "",
        "Rows of about 1 kB, 5 % repeated, 1,000 test items. Each process ran once. MB are 10^6 bytes of JSONL.",
        "",
        "| case | GB | wall s | CPU s | MB a second | MB a CPU second | peak MB | goal | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in facts["runs"]:
        size, speed, work = one["bytes"] / 1e9, *(one["bytes"] / 1e6 / one[key] for key in ("wall", "cpu"))
        goal, met = "", ""
        if fastest := FASTEST.get(one["case"]):
            goal = f"{fastest:g} MB a CPU second, {MOST_MEMORY / 1e6:g} MB"
            met = "yes" if work >= fastest and one["peak"] <= MOST_MEMORY else "**no**"
        lines.append(
            f"| {one['case']} | {size:g} | {one['wall']:.1f} | {one['cpu']:.1f} | {speed:.1f} | {work:.1f} "
            f"| {one['peak'] / 1e6:.0f} | {goal} | {met} |"
        )
    lines += machine.section(facts["machine"])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.data")
