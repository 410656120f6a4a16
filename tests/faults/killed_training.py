"""Kills trainings (kill -9) at seeded random steps and runs the same command again: `python -m
tests.faults.killed_training --kills 20`. Prints a table; the exit code is 1 if any final digest differs from that of an
undisturbed run.

The methods are lora, full and dpo, each with one process and with two. A kill hits the command itself or one of its
processes, at a random moment after the step.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from shadowft_core.params import Prepare
from shadowft_core.prepare import prepare
from tests.fixtures.training import write_model

STEPS = 24
TRAIN = {
    "lora": {"rank": 8, "alpha": 16, "dropout": 0.1},
    "batch_size": 2,
    "accumulation": 4,
    "learning_rate": 0.005,
    "max_length": 40,
    "max_steps": STEPS,
    "validation": {"steps": 5, "keep": "best"},
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "full": {"method": "full", "learning_rate": 0.003},
    "dpo": {"method": "lora", "objective": "dpo"},
}


@dataclass
class Run:
    """One command, its kills and its final digest."""

    method: str
    processes: int
    folder: Path
    killed: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """The command; always the same."""
        place, data = self.folder.parent / "place", "pairs" if self.method == "dpo" else "data"
        paths = {"model": place / "base", "instruct": place / "instruct", "data": place / data}
        options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        files = ["--out", str(self.folder / "out"), "--params", str(self.folder / "params.yaml")]
        return [sys.executable, "-m", "shadowft_core.cli", "train", *options, *files]

    def write_params(self, keep: bool) -> None:
        """params.yaml with a checkpoint every third step, or with none."""
        self.folder.mkdir(parents=True)
        launch = {"launch": {"processes": self.processes}}
        kept = {"steps": 3 if keep else None, "minutes": None, "folder": str(self.folder / "kept")}
        given = yaml.safe_load(Path("params.yaml").read_text())
        given |= {"train": TRAIN | METHODS[self.method] | launch, "checkpoint": kept}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(given))

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command, with its stderr in `log`."""
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder)

    def finish(self) -> str:
        """Run the command to its end; the digest of all files of its result."""
        code = self.start().wait(timeout=600)
        if code:
            raise SystemExit(f"{self.method}, {self.processes}: exit code {code}\n{(self.folder / 'log').read_text()}")
        found = hashlib.sha256()
        for path in sorted(path for path in (self.folder / "out").rglob("*") if path.is_file()):
            found.update(path.relative_to(self.folder).as_posix().encode() + path.read_bytes())
        return found.hexdigest()[:16]

    def kill(self, step: int, draw: random.Random) -> None:
        """Start the command and kill a process of it after the step, or after more of them."""
        process = self.start()
        while process.poll() is None and self._step() < step:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        if process.poll() is not None:
            raise SystemExit(f"{self.method}, {self.processes}: ended before step {step}")
        every = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        ranks = [one for one in every if one.environ().get("LOCAL_RANK") and "agent.py" not in " ".join(one.cmdline())]
        victims = {"command": every[0]} | {f"rank {one.environ()['LOCAL_RANK']}": one for one in ranks}
        name = draw.choice(sorted(victims))
        reached = self._step()
        os.kill(victims[name].pid, signal.SIGKILL)
        process.wait(timeout=120)
        psutil.wait_procs(every, timeout=120)
        self.killed.append(f"{reached}{'' if self.processes == 1 else f' ({name})'}")

    def _step(self) -> int:
        files = list(self.folder.glob("kept/*/progress.jsonl"))
        lines = files[0].read_text().splitlines() if files else []
        steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
        return int(steps[-1]) if steps else 0


def make_place(place: Path) -> None:
    """A tiny pair, rows of replies and rows of preferences."""
    write_model(place / "base", 1)
    write_model(place / "instruct", 2)
    (place / "tasks").mkdir()
    sums = [(a, b) for a in range(9) for b in range(9) if a + b < 12]
    replies = [(f"{a} plus {b}", f"is {a + b}", f"be {(a * b) % 12}") for a, b in sums]
    for name, answer in (("data", False), ("pairs", True)):
        rows = [
            {"question": q, "chosen": c, "rejected": r} if answer else {"question": q, "answer": c}
            for q, c, r in replies
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepare(place / f"{name}.jsonl", place / "tasks", Prepare(data="-", valid=0.2, near=None), place / name)


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default="lora,full,dpo")
    parser.add_argument("--processes", default="1,2")
    given = parser.parse_args()
    root, draw = Path(tempfile.mkdtemp(prefix="killed-")), random.Random(given.seed)
    make_place(root / "place")
    kinds = [(method, int(count)) for count in given.processes.split(",") for method in given.methods.split(",")]
    failed = 0
    print(f"| method | processes | killed after step, of {STEPS} | undisturbed | killed | equal |")
    print("|---|---|---|---|---|---|", flush=True)
    for at, (method, processes) in enumerate(kinds):
        expected = Run(method, processes, root / f"{method}-{processes}-undisturbed")
        expected.write_params(keep=False)
        run = Run(method, processes, root / f"{method}-{processes}-killed")
        run.write_params(keep=True)
        share = given.kills // len(kinds) + (at < given.kills % len(kinds))
        for step in sorted(draw.sample(range(1, STEPS - 2), share)):
            run.kill(step, draw)
        digests = expected.finish(), run.finish()
        failed += digests[0] != digests[1]
        words = (method, processes, ", ".join(run.killed), *digests, "yes" if digests[0] == digests[1] else "NO")
        print("| " + " | ".join(map(str, words)) + " |", flush=True)
    if not failed:
        shutil.rmtree(root)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
