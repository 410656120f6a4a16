"""Compares our evaluation with the bare harness, and a sweep with its generation; writes evaluate.md and .json.

Every run is a process of its own (evaluate_arm.py). The items are questions of the tiny pair's demonstration, generated
and as multiple choice. The delta is a small random one on every tensor.

Run `python -m benchmarks.evaluate`.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.graft import machine
from shadowft_core.files import write_atomically

GOALS = {"overhead": 1.05, "sweep": 1.2, "resumed": 1.02}
ROOT = Path(__file__).parent.parent
QUESTIONS = ROOT / "shadowft_core" / "demo" / "pico" / "tasks"
GENERATED, LIKELIHOOD = "bench_text", "bench_choice"
WORDS = 12  # of a question at most
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: target
{more}
"""
TEXT = """generation_kwargs: {{until: ["<|im_end|>", "."], do_sample: false, max_gen_toks: {tokens}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]"""
CHOICE = 'doc_to_choice: "{{choices}}"\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]'

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    instruct: Annotated[
        Path | None, typer.Option(help="a model folder; the Instruct of the tiny pair by default")
    ] = None,
    items: Annotated[int, typer.Option(min=2, max=800, help="of each task")] = 800,
    tokens: Annotated[int, typer.Option(min=1, help="of an answer at most")] = 16,
    scales: Annotated[int, typer.Option(min=2, help="of the sweep, from 0 to 1")] = 11,
    rounds: Annotated[int, typer.Option(min=1, help="runs of each arm, in random order")] = 3,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    out: Annotated[Path, typer.Option(help="folder for evaluate.md and evaluate.json")] = Path("benchmarks/results"),
    name: Annotated[str, typer.Option(help="name of the files")] = "evaluate",
) -> None:
    """Time our evaluation and the bare harness, a sweep and its generation.

    Example: python -m benchmarks.evaluate --items 40 --rounds 1
    """
    if instruct is None:
        from shadowft_core.demo.pico import build_pair

        instruct = build_pair() / "instruct"
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        settings = {
            "instruct": str(instruct.resolve()),
            "tasks": [GENERATED, LIKELIHOOD],
            "batch_size": batch_size,
            "threads": threads,
            "scales": [number / (scales - 1) for number in range(scales)],
        }
        make(place, instruct, items, tokens)
        found: dict[str, list[dict[str, Any]]] = {}
        order = random.Random(1)
        for number in range(rounds):
            for pair in (["bare", "ours"], ["generation", "sweep"]):
                order.shuffle(pair)
                for arm in pair:
                    _run(found, arm, place, settings, f"{arm}{number}")
            half = settings | {"kill_at": found["ours"][-1]["batches"] // 2}
            for arm in ("killed", "resumed"):
                _run(found, arm, place, half, f"killed{number}")
        facts = {
            "machine": machine.describe(place),
            "settings": settings | {"instruct": instruct.name, "items": items, "tokens": tokens},
            "weights": sum(file.stat().st_size for file in instruct.glob("*.safetensors")),
            "arms": found,
            "ratios": {kind: _ratios(found, kind) for kind in ("cpu", "wall")},
        }
    _require_equal(found)
    page = _page(facts)
    write_atomically(out / f"{name}.md", page.encode())
    write_atomically(out / f"{name}.json", json.dumps(facts, indent=1).encode() + b"\n")
    print(page)


def make(place: Path, instruct: Path, items: int, tokens: int) -> None:
    """Write tasks/, an empty data/ and delta/: a seeded change of every tensor by about a hundredth of its spread."""
    import numpy as np

    from shadowft_core.delta import extract
    from shadowft_core.weights import open_checkpoint, write_checkpoint

    (place / "tasks").mkdir()
    (place / "data").mkdir()
    rows: dict[str, str] = {}
    for file in sorted(QUESTIONS.glob("*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            if {"prompt", "target"} <= row.keys() and len(row["prompt"].split()) <= WORDS:
                rows.setdefault(row["prompt"], str(row["target"]))
    asked = [{"prompt": prompt, "target": target} for prompt, target in rows.items()]
    random.Random(0).shuffle(asked)
    if len(asked) < items:
        raise typer.BadParameter(f"the demonstration has {len(asked)} questions, asked for {items}; lower --items")
    targets = sorted({row["target"] for row in asked})
    draw = random.Random(1)
    chosen: list[dict[str, Any]] = []
    for row in asked[:items]:
        others = draw.sample([target for target in targets if target != row["target"]], 3)
        chosen.append(row | {"choices": [row["target"], *others]})
    for task, kind, more in (
        (GENERATED, "generate_until", TEXT.format(tokens=tokens)),
        (LIKELIHOOD, "multiple_choice", CHOICE),
    ):
        file = place / "tasks" / f"{task}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        (place / "tasks" / f"{task}.yaml").write_text(TASK.format(name=task, file=file, kind=kind, more=more))
    model, noise = open_checkpoint(instruct), np.random.default_rng(0)
    tuned = place / "tuned"
    tuned.mkdir()
    (tuned / "config.json").write_bytes((instruct / "config.json").read_bytes())

    def changed(name: str) -> np.ndarray:
        values = model.read(name).astype(np.float32)
        return (values + 0.01 * values.std() * noise.standard_normal(values.shape, np.float32)).astype(
            model.read(name).dtype
        )

    write_checkpoint(tuned, ((name, changed(name)) for name in model.names))
    extract(instruct, tuned, place / "delta")


def _run(found: dict[str, list[dict[str, Any]]], arm: str, place: Path, settings: dict[str, Any], cache: str) -> None:
    """Run an arm with a cache of its own. Ends this program, with what the arm printed, if it fails."""
    report = place / "report.json"
    report.unlink(missing_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "SHADOWFT_CACHE": str(place / cache)}
    command = [sys.executable, "-m", "benchmarks.evaluate_arm", arm, str(place), str(report), json.dumps(settings)]
    with (place / "log").open("w+") as log:
        done = subprocess.run(command, env=environment, cwd=place, stdout=log, stderr=log, check=False)
        if done.returncode != (-signal.SIGKILL if arm == "killed" else 0):
            log.seek(0)
            raise SystemExit(f"{arm} ended with exit code {done.returncode}:\n{log.read()[-2000:]}")
    taken = json.loads(report.read_text())
    found.setdefault(arm, []).append(taken)
    print(f"{arm}: {taken['cpu']:.1f} CPU s, {taken['peak'] / 1e6:.0f} MB", file=sys.stderr)


def _ratios(found: dict[str, list[dict[str, Any]]], kind: str) -> dict[str, float]:
    """Medians over the rounds. What the second start of a resumed run costs is not in its ratio."""

    def ratio(one: str, other: str) -> float:
        return median(a[kind] / b[kind] for a, b in zip(found[one], found[other], strict=True))

    ratios = {"overhead": ratio("ours", "bare"), "sweep": ratio("sweep", "generation")}
    if kind == "cpu":
        rounds = zip(found["killed"], found["resumed"], found["ours"], strict=True)
        ratios["resumed"] = median((a["cpu"] + b["cpu"] - c["start"]) / c["cpu"] for a, b, c in rounds)
    return ratios


def _require_equal(found: dict[str, list[dict[str, Any]]]) -> None:
    """Both sides of a pair must give the same means; else the seconds mean nothing."""
    for one, other in (("ours", "bare"), ("sweep", "generation"), ("resumed", "ours")):
        if found[one][0]["means"] != found[other][0]["means"]:
            raise SystemExit(
                f"{one} and {other} give other means: {found[one][0]['means']}, {found[other][0]['means']}"
            )


def _page(facts: dict[str, Any]) -> str:
    arms, settings, ratios = facts["arms"], facts["settings"], facts["ratios"]
    lines = [
        "# Evaluation: ours and the bare harness",
        "",
        f"{settings['items']} questions generated (at most {settings['tokens']} tokens) and as many multiple choices,",
        f"batches of {settings['batch_size']}, {settings['threads']} thread, {len(settings['scales'])} scales,",
        f"{facts['weights'] / 1e6:.1f} MB of weights. Seconds exclude the imports. Medians (lowest..highest); a",
        "ratio is the median of the ratios of all rounds, goals are for CPU seconds. Means are equal within each pair.",
        "",
        "| arm | CPU s | wall s | peak, MB | written, MB |",
        "|---|---|---|---|---|",
    ]
    for arm, samples in arms.items():
        cells = [_spread([one[kind] for one in samples]) for kind in ("cpu", "wall")]
        peak, written = (median(one[kind] for one in samples) / 1e6 for kind in ("peak", "written"))
        lines.append(f"| {arm} | {cells[0]} | {cells[1]} | {peak:.0f} | {written:.2f} |")
    lines += ["", "| | CPU | wall | goal |", "|---|---|---|---|"]
    for kind, label in (
        ("overhead", "`ours` divided by `bare`"),
        ("sweep", "`sweep` divided by `generation`"),
        ("resumed", "`killed` and `resumed`, without the second start, divided by `ours`"),
    ):
        cpu, wall = ratios["cpu"][kind], ratios["wall"].get(kind)
        missed = "" if cpu <= GOALS[kind] else " **missed**"
        lines.append(f"| {label} | {cpu:.3f}{missed} | {f'{wall:.3f}' if wall else '-'} | at most {GOALS[kind]} |")
    lines += machine.section(facts["machine"])
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f}..{max(values):.1f})"


if __name__ == "__main__":
    app()
