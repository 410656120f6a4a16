"""The command line of the benchmark: build, time in random order, check, write the table."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.graft import cases, check, machine, measure, table
from benchmarks.graft.triple import SHAPES, build
from shadowft_core.errors import ShadowError
from shadowft_core.files import write_atomically

DISK_PER_MODEL_BYTE = 15  # three checkpoints, an adapter, a float32 delta twice, seven models to compare
NO_MERGEKIT = "the interpreter cannot import it; pass one that can with --mergekit-python"

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command()
def run(
    scratch: Annotated[
        Path, typer.Option(help="folder on the disk to measure; a subfolder is made there and deleted afterwards")
    ],
    params: Annotated[str, typer.Option(help=f"size of the models: {', '.join(SHAPES)}")] = "1.1B",
    rounds: Annotated[int, typer.Option(min=1, help="runs of each case and state of the page cache")] = 5,
    out: Annotated[Path, typer.Option(help="folder for graft-PARAMS.md and .json")] = Path("benchmarks/results"),
    cache: Annotated[Literal["warm", "cold", "both"], typer.Option(help="inputs in the page cache, or not")] = "both",
    mergekit_python: Annotated[
        Path | None, typer.Option(help="interpreter that can import mergekit, this one if not given")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="keep models, outputs and logs; the next run reuses them")
    ] = False,
) -> None:
    """Time extract, graft and the pair check against cp, in-memory scripts, mergekit and PEFT, as whole processes.

    Three seeded bfloat16 checkpoints of a Llama and a LoRA adapter of rank 128 are made, every case is run in random
    order with warm and with cold inputs, the results are compared bit by bit. 1.1B needs 33 GB of disk, 12 GB of free
    memory and most of an hour on two cores; let nothing else run.

    Example: python -m benchmarks.graft --scratch /var/tmp

    Example: python -m benchmarks.graft --scratch /var/tmp --params 0.15B --rounds 3 --keep

    Example: python -m benchmarks.graft --scratch /var/tmp --mergekit-python other/.venv/bin/python
    """
    if params not in SHAPES:
        raise typer.BadParameter(f"{params!r}; known are {', '.join(SHAPES)}", param_hint="--params")
    shape = SHAPES[params]
    here = scratch.resolve() / f"shadowft-bench-graft-{params}"
    here.mkdir(parents=True, exist_ok=True)
    try:
        _require_disk(here, 2 * sum(_size(dims) for dims in shape.tensors().values()))
        facts, samples = _measure(
            params, here, rounds, table.CACHES if cache == "both" else (cache,), mergekit_python or Path(sys.executable)
        )
    except KeyboardInterrupt:
        print("error: interrupted; no result is written, run the same command again", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        if not keep:
            shutil.rmtree(here, ignore_errors=True)
    page = table.as_markdown(samples, facts)
    write_atomically(out / f"graft-{params}.md", page.encode())
    write_atomically(out / f"graft-{params}.json", json.dumps(table.as_json(samples, facts), indent=1).encode() + b"\n")
    print(page)
    _say(f"written: {out / f'graft-{params}'}.md and .json")


def _measure(
    params: str, here: Path, rounds: int, caches: Sequence[str], mergekit_python: Path
) -> tuple[dict, table.Samples]:
    outs, stored, logs = here / "out", here / "stored", here / "logs"
    shutil.rmtree(outs, ignore_errors=True)
    _say(f"build the models of {params} parameters in {here.name}")
    triple = build(SHAPES[params], here / "in")
    version = cases.mergekit_version(mergekit_python)
    if version is None:
        _say(f"mergekit is left out: {NO_MERGEKIT}")
    _say("store the dense deltas")
    for storing in cases.store_deltas(triple, stored):
        measure.run(storing, "warm", logs)
    found = cases.all_cases(triple, stored, outs, mergekit_python if version else None)
    about = machine.describe(here) | cases.versions() | {"commit": _commit()}
    if version:
        about["mergekit"] = version
    samples: dict[tuple[str, str], list[measure.Sample]] = defaultdict(list)
    order, said = random.Random(0), {}
    for number in range(1, rounds + 1):
        todo = [(case, cache) for case in found for cache in caches if cache == "warm" or case.name in table.COLD]
        order.shuffle(todo)
        for place, (case, cache) in enumerate(todo, 1):
            sample = measure.run(case, cache, logs)
            samples[case.name, cache].append(sample)
            said[case.name] = measure.last_line(case, logs)
            _say(
                f"round {number}/{rounds}, {place}/{len(todo)}: {case.name} {cache} {sample.wall:.2f} s, "
                f"{sample.peak / 1e6:.0f} MB"
            )
    _say("compare the results")
    differences = check.check_results({case.name: case.result for case in found if case.result is not None})
    sigma = check.check_sigma(float(said["sigma"]), float(said["sigma-torch"]))
    facts = {
        "format": 1,
        "params": params,
        "rounds": rounds,
        "machine": about,
        "cases": {case.name: case.about for case in found},
        "left_out": {} if version else {"mergekit": NO_MERGEKIT},
        "checks": [*(one.sentence() for one in differences), sigma],
        "commands": [_shown(case, here) for case in found],
    }
    return facts, samples


def _shown(case: cases.Case, here: Path) -> str:
    """The commands of a case with folders named from the scratch folder on."""
    steps = []
    for step in case.steps:
        short = [word.replace(f"{here}/", "") for word in step]
        words = [Path(word).name if word.startswith("/") and os.access(word, os.X_OK) else word for word in short]
        steps.append(" ".join(f"'{word}'" if " " in word else word for word in words))
    return f"{case.name}: {' && '.join(steps)}"


def _require_disk(here: Path, model: int) -> None:
    free, needed = shutil.disk_usage(here).free, DISK_PER_MODEL_BYTE * model
    if free < needed:
        raise ShadowError(f"{here}: {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB needed; choose another --scratch")


def _size(dims: tuple[int, ...]) -> int:
    return dims[0] * (dims[1] if len(dims) > 1 else 1)


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=measure.ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line; an error is one line and an exit code, and no process is left running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: end the processes, empty the folder
    try:
        app(prog_name="python -m benchmarks.graft", standalone_mode=True)
    except ShadowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
