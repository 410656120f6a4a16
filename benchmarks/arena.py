"""Where does a graft win, tie and lose? Tunes the embedded tiny pair in four regimes, from several pair seeds.

A cell is a pair seed, a regime and a kind of training; benchmarks/arena_cell.py runs it through the stages of the
product. A finished cell is one line of a file, and a rerun skips it. benchmarks/arena_page.py makes the pages.

Run `python -m benchmarks.arena`.
"""

import itertools
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.arena_cell import Method, Regime, Sizes, run_cell, settings
from benchmarks.arena_page import fill_in, page
from benchmarks.graft import machine
from shadowft_core.demo.pico import POSTTRAIN_STEPS, PRETRAIN_STEPS
from shadowft_core.files import write_atomically

RESULTS = Path(__file__).parent / "results"
EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence.md"

WHOLE = set(itertools.product((0, 1, 2), Regime, Method))

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    seeds: Annotated[list[int] | None, typer.Option(min=0, help="pair seeds; repeatable; default: 0, 1 and 2")] = None,
    regimes: Annotated[list[Regime] | None, typer.Option(help="regimes; repeatable; default: all four")] = None,
    methods: Annotated[list[Method] | None, typer.Option(help="lora or full; repeatable; default: both")] = None,
    pretrain: Annotated[int, typer.Option(min=10, help="steps of the Base")] = PRETRAIN_STEPS,
    posttrain: Annotated[int, typer.Option(min=1, help="steps of the Instruct")] = POSTTRAIN_STEPS,
    rows: Annotated[int, typer.Option(min=40, help="rows of the domain")] = 2000,
    items: Annotated[int | None, typer.Option(min=1, help="items per task; default: all")] = None,
    cells: Annotated[Path, typer.Option(help="file with a line for each finished cell")] = Path("var/arena.jsonl"),
    out: Annotated[Path, typer.Option(help="folder for arena.json and arena.md")] = RESULTS,
    evidence: Annotated[Path, typer.Option(help="page whose marked tables are made again")] = EVIDENCE,
) -> None:
    """Run the cells that have no line yet, then write arena.json, arena.md and the tables of docs/evidence.md.

    Pages and arena.json have all cells of these settings in the file, whatever seeds and regimes are named. With fewer
    than all cells, the published pages stay.

    Example: python -m benchmarks.arena --seeds 0 --regimes own --methods lora
    """
    sizes = Sizes(pretrain, posttrain, rows, items)
    made_of = settings(sizes)
    # pair by pair: the first cell of a pair trains it
    wanted = list(itertools.product(seeds or (0, 1, 2), regimes or Regime, methods or Method))
    done = {key: line for key, line in _lines(cells).items() if line["settings"] == made_of}
    left = [cell for cell in wanted if cell not in done]
    print(f"arena: {len(wanted) - len(left)} of {len(wanted)} cells are finished", file=sys.stderr, flush=True)
    began = time.monotonic()
    for number, (seed, regime, method) in enumerate(left, start=1):
        with TemporaryDirectory(prefix="shadowft-arena-") as place:
            found = run_cell(Path(place), seed, regime, method, sizes)
        line = {**found, "settings": made_of, "machine": machine.describe(cells.parent)}
        cells.parent.mkdir(parents=True, exist_ok=True)
        with cells.open("a") as file:
            file.write(f"\n{json.dumps(line)}\n")  # a killed run may have left a line without an end
        done[seed, regime, method] = line
        spent = time.monotonic() - began
        eta = spent / number * (len(left) - number) / 60
        print(
            f"arena: seed {seed}, {regime}, {method}: {found['candidate']}, {found['decision']}; {number} of "
            f"{len(left)} cells, {spent / 60:.0f} min, eta {eta:.0f} min",
            file=sys.stderr,
            flush=True,
        )
    if out == RESULTS and not done.keys() >= WHOLE:
        print(
            f"arena: {len(done)} of {len(WHOLE)} cells, so the published pages stay; --out and --evidence write others"
        )
        return
    facts = _facts(made_of, [done[key] for key in sorted(done, key=_order)])
    lines = ",\n".join(map(json.dumps, facts["cells"]))
    text = f'{{"settings": {json.dumps(made_of)}, "cells": [\n{lines}\n]}}\n'
    write_atomically(out / "arena.json", text.encode())
    write_atomically(out / "arena.md", page(facts).encode())
    write_atomically(evidence, fill_in(evidence.read_text(encoding="utf-8"), facts).encode())


def _lines(cells: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    """The last whole line of each cell. A line that a killed run left unfinished is named on stderr."""
    found = {}
    for number, text in enumerate(cells.read_text().splitlines() if cells.is_file() else (), start=1):
        if not text:
            continue
        try:
            line = json.loads(text)
        except ValueError:
            print(f"{cells}:{number}: unfinished; its cell runs again", file=sys.stderr)
            continue
        found[line["seed"], line["regime"], line["method"]] = line
    return found


def _facts(made_of: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What arena.json has and the pages are made from: numbers with six decimals, settings once."""
    kept = [{name: value for name, value in cell.items() if name != "settings"} for cell in cells]
    rounded = json.loads(json.dumps(kept), parse_float=lambda text: round(float(text), 6))
    return {"settings": made_of, "cells": rounded}


def _order(key: tuple[int, str, str]) -> tuple[int, int, int]:
    seed, regime, method = key
    return list(Regime).index(Regime(regime)), list(Method).index(Method(method)), seed


if __name__ == "__main__":
    app()
