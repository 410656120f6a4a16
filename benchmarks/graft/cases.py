"""What is timed: every case is one or more whole processes, with the files it reads and the folder it makes."""

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.graft.triple import Triple
from shadowft_core.checkpoint import write_atomically

SHADOWFT = str(Path(sys.executable).with_name("shadowft"))
READ_AND_WRITE = 'cat "$1"/* "$2"/* > /dev/null && cp -r "$3" "$4"'
DURABLE_COPY = 'cp -r "$1" "$2" && sync "$2"/*'
SIGMA = (
    "import sys; from pathlib import Path; from shadowft_core.pair import check_pair; "
    "print(check_pair(*map(Path, sys.argv[1:]))['sigma']['overall'])"
)


@dataclass(frozen=True)
class Case:
    """Commands that run one after the other; of the files they make only `result` is kept."""

    name: str
    about: str
    steps: tuple[list[str], ...]
    inputs: tuple[Path, ...]
    out: Path
    result: Path | None = None


def store_delta(triple: Triple, stored: Path) -> Case:
    """Make the dense delta that the case `graft` reads; not part of the table."""
    command = _extract(triple.base, triple.tuned, stored / "delta")
    return Case("store", "", (command,), (triple.base, triple.tuned), stored, stored / "delta")


def all_cases(triple: Triple, stored: Path, outs: Path, mergekit: Path | None) -> list[Case]:
    """Every case; `stored` is the delta that `store_delta` left, `outs` gets one folder for each case."""
    python = sys.executable
    base, tuned, instruct, adapter = triple.base, triple.tuned, triple.instruct, triple.adapter

    def peer(*arguments: object) -> list[str]:
        return [python, "-m", "benchmarks.graft.peers", *map(str, arguments)]

    def graft(delta: Path, out: Path) -> list[str]:
        return [
            *(SHADOWFT, "graft", "--instruct", str(instruct), "--delta", str(delta)),
            *("--scale", "1", "--out", str(out)),
        ]

    found: list[Case] = []

    def add(name: str, about: str, *steps: list[str], reads: tuple[Path, ...], result: str | None = None) -> None:
        out = outs / name
        found.append(Case(name, about, steps, reads, out, out / result if result is not None else None))

    three = (base, tuned, instruct)
    add("cp", "yardstick: copy the output", ["cp", "-r", str(instruct), str(outs / "cp" / "model")], reads=(instruct,))
    add(
        "cp-durable",
        "yardstick: copy the output and sync it, as `shadowft` does",
        ["sh", "-c", DURABLE_COPY, "sh", str(instruct), str(outs / "cp-durable" / "model")],
        reads=(instruct,),
    )
    add(
        "read-3-write-1",
        "yardstick: read the three inputs, write one output",
        ["sh", "-c", READ_AND_WRITE, "sh", *map(str, three), str(outs / "read-3-write-1" / "model")],
        reads=three,
    )
    for name, about in (
        ("state-dicts", "peer: three torch state dicts in memory, float32, save_file"),
        ("transformers", "peer: three models with from_pretrained, float32, save_pretrained"),
    ):
        add(name, about, peer(name, *three, outs / name / "model"), reads=three, result="model")
    if mergekit is not None:
        config = outs / "mergekit.yaml"
        write_atomically(config, _mergekit_config(triple).encode())
        add(
            "mergekit",
            "peer: mergekit task_arithmetic, lazy, float32, bfloat16 out",
            [
                *(str(mergekit), "-m", "mergekit.scripts.run_yaml", str(config)),
                *(str(outs / "mergekit" / "model"), "--lazy-unpickle"),
            ],
            reads=three,
            result="model",
        )
    add(
        "peft",
        "peer: PEFT merge_and_unload, save_pretrained",
        peer("peft", instruct, adapter, outs / "peft" / "model"),
        reads=(instruct, adapter),
        result="model",
    )
    add(
        "sigma-torch",
        "peer: sigma, one tensor at a time with torch",
        peer("sigma", base, instruct),
        reads=(base, instruct),
    )
    add("extract", "ours: dense delta", _extract(base, tuned, outs / "extract" / "delta"), reads=(base, tuned))
    add(
        "graft",
        "ours: from the stored dense delta",
        graft(stored, outs / "graft" / "model"),
        reads=(instruct, stored),
        result="model",
    )
    add(
        "extract+graft",
        "ours: from three checkpoints to one",
        _extract(base, tuned, outs / "extract+graft" / "delta"),
        graft(outs / "extract+graft" / "delta", outs / "extract+graft" / "model"),
        reads=three,
        result="model",
    )
    add(
        "lora",
        "ours: extract and graft of the adapter, base read for its digest",
        _extract(base, adapter, outs / "lora" / "delta"),
        graft(outs / "lora" / "delta", outs / "lora" / "model"),
        reads=(base, instruct, adapter),
        result="model",
    )
    add(
        "sigma",
        "ours: the whole pair check, digests included",
        [python, "-c", SIGMA, str(base), str(instruct)],
        reads=(base, instruct),
    )
    return found


def mergekit_version(python: Path) -> str | None:
    """The version of mergekit that an interpreter can import, None when it cannot."""
    code = "import mergekit.scripts.run_yaml, importlib.metadata; print(importlib.metadata.version('mergekit'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.split()[-1] if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of the libraries that the cases use."""
    names = ("numpy", "ml-dtypes", "torch", "transformers", "peft", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}


def _extract(base: Path, tuned: Path, out: Path) -> list[str]:
    return [SHADOWFT, "extract", "--base", str(base), "--tuned", str(tuned), "--out", str(out)]


def _mergekit_config(triple: Triple) -> str:
    models = "".join(
        f"  - model: {path}\n    parameters: {{weight: 1.0}}\n" for path in (triple.tuned, triple.instruct)
    )
    head = f"merge_method: task_arithmetic\nbase_model: {triple.base}\nmodels:\n"
    return f"{head}{models}dtype: float32\nout_dtype: bfloat16\n"
