"""Does memory grow with the model? `python -m benchmarks.graft.sparse --scratch DIR`: a pair of 20 GB in sparse files.

Almost all weights are zero and take no room on the disk; a few values of every tensor differ, so that every tensor is
extracted and grafted. The grafted model is written in full: 20 GB of disk are needed for it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import ml_dtypes
import numpy as np
import typer

from benchmarks.graft import cases, machine, measure
from benchmarks.graft.triple import Shape
from shadowft_core.files import write_atomically
from shadowft_core.weights import SINGLE, build_header, parse_header

SHAPE = Shape(4096, 14336, 44, 32, 8, 32000)
VALUES = {"base": 0.02, "tuned": 0.0202, "instruct": 0.021}
GOAL = 100e6  # bytes

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    scratch: Annotated[Path, typer.Option(help="folder on a disk with 25 GB free; a subfolder is made and deleted")],
    out: Annotated[Path, typer.Option(help="folder for graft-20GB-sparse.md and .json")] = Path("benchmarks/results"),
) -> None:
    """Measure the peak memory of extract and graft once, on checkpoints of 20 GB each.

    Example: python -m benchmarks.graft.sparse --scratch /var/tmp
    """
    here = scratch.resolve() / "shadowft-bench-graft-sparse"
    shutil.rmtree(here, ignore_errors=True)
    try:
        folders = {role: build(here / role, value) for role, value in VALUES.items()}
        size = (folders["base"] / SINGLE).stat().st_size
        about = machine.describe(here) | cases.versions()
        delta, model, known = here / "difference" / "delta", here / "made" / "model", cases.with_cache(here / "stored")
        steps = {
            delta: cases.extract(folders["base"], folders["tuned"], delta, known),
            model: cases.graft(folders["instruct"], delta, model, known),
        }
        runs = [cases.Case(step[3], "", (step,), (), out.parent, out) for out, step in steps.items()]
        taken = {case.name: measure.run(case, "warm", here / "logs") for case in runs}
    finally:
        shutil.rmtree(here, ignore_errors=True)
    found = {"format": 1, "bytes": size, "machine": about, "taken": {n: vars(s) for n, s in taken.items()}}
    lines = [
        f"# Memory at {size / 1e9:.1f} GB a checkpoint, sparse files",
        "",
        "| command | wall s | CPU s | peak MB | at most 100 MB |",
        "|---|---|---|---|---|",
        *(
            f"| {n} | {s.wall:.1f} | {s.cpu:.1f} | {s.peak / 1e6:.0f} | {'yes' if s.peak <= GOAL else '**no**'} |"
            for n, s in taken.items()
        ),
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
    ]
    write_atomically(out / "graft-20GB-sparse.md", ("\n".join(lines) + "\n").encode())
    write_atomically(out / "graft-20GB-sparse.json", json.dumps(found, indent=1).encode() + b"\n")
    print("\n".join(lines))


def build(folder: Path, value: float) -> Path:
    """A checkpoint in one sparse file whose tensors are zero but for their first eight elements."""
    folder.mkdir(parents=True)
    header = build_header({name: ("BF16", dims) for name, dims in SHAPE.tensors().items()})
    tensors = parse_header(header, folder / SINGLE)
    values = np.full(8, value).astype(ml_dtypes.bfloat16).tobytes()
    with (folder / SINGLE).open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(info.nbytes for info in tensors.values()))
        for info in tensors.values():
            os.pwrite(file.fileno(), values, info.offset)
    (folder / "config.json").write_text(json.dumps(SHAPE.config()))
    return folder


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.graft.sparse")
