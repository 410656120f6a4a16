"""Runs `make demo` on pairs of several seeds; writes demo.md and demo.json.

A seed draws the facts of the small world, what is held out, all texts, the initial weights, the training rows and the
items. Everything else is params.yaml. Each run is the flow `retrain` in a checkout of its own.

Run `python -m benchmarks.demo`.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.graft import machine
from shadowft_core.demo.pico import build_pair
from shadowft_core.demo.pico.generate import files
from shadowft_core.demo.pico.world import World
from shadowft_core.files import write_atomically
from shadowft_core.params import load_params
from shadowft_core.prepare.tracked import content_of
from tests.fixtures.checkouts import ROOT, checkout, commit, edit_params, run

SEEDS = [0, 1, 2, 3, 4]
GAIN = 0.3
HEAD = """# The demo on pairs of several seeds

`make demo` with the settings of params.yaml, on pairs, training rows and items of other seeds. Scores are shares of
right answers on test items, at scale 1 unless another is given. A check holds if

- *learns*: `direct` gains at least 50 points on the domain;
- *harms*: `direct` loses more than `verdict.margin` on all guards together, and more than `verdict.margin_each` on one;
- *half*: `shadow` gains at least half of what `direct` gains;
- *promoted*: the arm that was chosen on dev items gains at least 30 points, and the decision is `promote`.

This says how stable the demo is. It is no evidence for or against the method: pair, data and settings were chosen so
that something can be decided.

"""

Facts = dict[str, Any]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def seeds(
    seed: Annotated[list[int], typer.Option(help="seed of a pair; repeatable")] = SEEDS,
    out: Annotated[Path, typer.Option(help="folder for demo.md and demo.json")] = ROOT / "benchmarks" / "results",
) -> None:
    """Run the demo on pairs of these seeds and write a table.

    Example: python -m benchmarks.demo --seed 0 --seed 1
    """
    about, found = machine.describe(out), {}
    for number in seed:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            seconds = {"pair": timed(build_pair, number)}
            workspace(number, folder)
            seconds |= {"demo": timed(demo, folder), "again": timed(demo, folder)}
            found[number] = facts(folder) | {"seconds": seconds}
        typer.echo("\n".join(table({number: found[number]})))
        page = HEAD + "\n".join([*table(found), *machine.section(about), ""])
        write_atomically(out / "demo.md", page.encode("utf-8"))
        whole = {"machine": about, "seeds": found}
        write_atomically(out / "demo.json", (json.dumps(whole, indent=1) + "\n").encode("utf-8"))


def timed(work: Callable[[Any], object], given: object) -> int:
    """Seconds that a function takes."""
    started = time.monotonic()
    work(given)
    return round(time.monotonic() - started)


def workspace(seed: int, folder: Path) -> Path:
    """A checkout whose pair, training rows, replay rows and items are those of a seed."""
    checkout(folder)
    for library in (ROOT / "shadowft_core/kernels").glob("*.so"):
        shutil.copy(library, folder / "shadowft_core/kernels")
    room = folder / "shadowft_core/demo/pico"
    for name, content in files(World(seed)).items():
        (room / name).write_text(content, encoding="utf-8")
    params = load_params(folder / "params.yaml")
    assert params.prepare.replay is not None
    replay = params.prepare.replay.model_copy(update={"digest": content_of(room / "replay.jsonl").digest})
    if seed:  # seed 0 is the pair of params.yaml
        pair = build_pair(seed)
        edit_params(folder, fetch={"base": str(pair / "base"), "instruct": str(pair / "instruct")})
    edit_params(folder, prepare={"replay": replay.model_dump(mode="json")})
    commit(folder, f"seed {seed}")
    return folder


def demo(folder: Path) -> str:
    """Run the flow in a workspace; returns its output."""
    return run(ROOT, "python", "-m", "flows.retrain", "--workspace", str(folder))


def facts(folder: Path) -> Facts:
    """What a finished run found: the means of every arm, the decision, and which checks hold."""
    params = load_params(folder / "params.yaml")
    verdict = json.loads((folder / "work/verdict.json").read_text(encoding="utf-8"))
    arms = {name: arm for name, arm in verdict["arms"].items() if "champion" not in name}
    tasks = {name: {task: mean["mean"] for task, mean in arm["tasks"].items()} for name, arm in arms.items()}

    def gain(arm: str, *names: str) -> float:
        return fmean(tasks[arm][name] - tasks["instruct"][name] for name in names)

    domain, guards, limits = params.evaluate.domain, params.evaluate.guards, params.verdict
    direct, candidate = gain("direct", *domain), verdict["candidate"]
    checks = {
        "learns": direct >= 0.5,
        "harms": gain("direct", *guards) < -limits.margin
        and min(gain("direct", one) for one in guards) < -limits.margin_each,
        "half": gain("shadow", *domain) >= direct / 2,
        "promoted": bool(candidate) and verdict["decision"] == "promote" and gain(candidate, *domain) >= GAIN,
    }
    return {
        "arms": {name: {"scale": arms[name]["scale"], "tasks": tasks[name]} for name in arms},
        "candidate": candidate,
        "decision": verdict["decision"],
        "reasons": verdict["reasons"],
        "checks": checks,
    }


def table(found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """For each seed the Instruct, every route at scale 1, the candidate, and the checks."""
    rows = []
    for seed, one in sorted(found.items()):
        for name, arm in sorted(one["arms"].items(), key=lambda at: at[0] != "instruct"):
            chosen = name == one["candidate"]
            if not name.endswith("_scaled") or chosen:
                means = [f"{mean:.3f}" for mean in arm["tasks"].values()]
                rows.append([str(seed), name, f"{arm['scale']:g}", *means, one["decision"] if chosen else ""])
    head = ["seed", "arm", "scale", *(task.removeprefix("pico_") for task in arm["tasks"]), "decision"]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    held = list(next(iter(found.values()))["checks"])
    lines += ["", f"| seed | {' | '.join(held)} | pair, s | demo, s | again, s |", "|---" * (len(held) + 4) + "|"]
    for seed, one in sorted(found.items()):
        marks = ["yes" if one["checks"][name] else "no" for name in held]
        times = [str(seconds) for seconds in one["seconds"].values()] if "seconds" in one else [""] * 3
        lines.append(f"| {' | '.join([str(seed), *marks, *times])} |")
    return lines


if __name__ == "__main__":
    app()
