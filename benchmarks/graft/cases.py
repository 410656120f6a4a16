"""The timed cases: each is one or more whole processes, with the files it reads and the folder it makes."""

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.graft.triple import Triple
from shadowft_core.files import write_atomically

SHADOWFT = str(Path(sys.executable).with_name("shadowft"))
STORES = ("compressed", "bfloat16")
READ_AND_WRITE = 'cat "$1"/* "$2"/* > /dev/null && cp -r "$3" "$4"'
DURABLE_COPY = 'cp -r "$1" "$2" && sync "$2"/*'
UNDIGESTED = (  # the same program without hashing weights, which shows the cost of digests
    "import hashlib; from types import SimpleNamespace as S; from shadowft_core.files.cache import DigestCache; "
    "DigestCache.remember = lambda *a: None; real, nothing = hashlib.sha256, S(update=len, hexdigest=lambda: '0' * 64); "  # noqa: E501
    "hashlib.sha256 = lambda *a: real(*a) if a else nothing; "
    "from shadowft_core.cli import main; main()"
)
SIGMA = (
    "import sys; from pathlib import Path; from shadowft_core.environment import set_variables; set_variables(); "
    "from shadowft_core.pair import check_pair; "
    "print(check_pair(*map(Path, sys.argv[1:]))['sigma']['overall'])"
)


@dataclass(frozen=True)
class Case:
    """Commands that run one after the other; only `result` of the files they make is kept."""

    name: str
    about: str
    steps: tuple[list[str], ...]
    inputs: tuple[Path, ...]
    out: Path
    result: Path | None = None


def store_deltas(triple: Triple, stored: Path) -> list[Case]:
    """Make the dense deltas that the graft cases read, and cache the digests of the three models."""
    inputs, known, found = (triple.base, triple.tuned, triple.instruct), with_cache(stored), []
    for store in STORES:
        out = stored / store
        made = extract(triple.base, triple.tuned, out / "delta", known, store)
        use = graft(triple.instruct, out / "delta", out / "model", known)
        found.append(Case(f"store-{store}", "", (made, use), inputs, out, out / "delta"))
    out = stored / "one-pass"
    return [*found, Case("store-one-pass", "", (one_pass(triple, out / "model", known),), inputs, out)]


def with_cache(stored: Path) -> list[str]:
    """Prefix of a command that runs with cached digests, as in a run after `fetch`."""
    return ["env", f"SHADOWFT_CACHE={stored.parent / 'cache'}", SHADOWFT]


def all_cases(triple: Triple, stored: Path, outs: Path, mergekit: Path | None) -> list[Case]:
    """Every case; `stored` is where `store_deltas` left them, `outs` gets one folder for each case."""
    python = sys.executable
    base, tuned, instruct, adapter = triple.base, triple.tuned, triple.instruct, triple.adapter
    known, uncached = with_cache(stored), ["env", "SHADOWFT_CACHE=/dev/null/none", SHADOWFT]
    undigested = [*known[:-1], python, "-c", UNDIGESTED]

    def peer(*arguments: object) -> list[str]:
        return [python, "-m", "benchmarks.graft.peers", *map(str, arguments)]

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
    add(
        "state-dicts",
        "peer: three torch state dicts in memory, float32, save_file",
        peer("state-dicts", *three, outs / "state-dicts" / "model"),
        reads=three,
        result="model",
    )
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

    for store in STORES:
        end = "" if store == STORES[0] else f"-{store}"
        made = extract(base, tuned, outs / f"extract{end}" / "delta", known, store)
        add(f"extract{end}", f"ours: dense delta, stored {store}", made, reads=(base, tuned))
        delta = stored / store / "delta"
        used = graft(instruct, delta, outs / f"graft{end}" / "model", known)
        add(f"graft{end}", f"ours: from the delta stored {store}", used, reads=(instruct, delta), result="model")
    delta, model = (outs / "extract+graft" / name for name in ("delta", "model"))
    add(
        "extract+graft",
        "ours: from three checkpoints to one, and a compressed delta to keep",
        *(extract(base, tuned, delta, known), graft(instruct, delta, model, known)),
        reads=three,
        result="model",
    )
    for name, about, shadowft in (
        ("one-pass", "ours: from three checkpoints to one, no delta stored", known),
        ("first", "ours: one-pass without cached digests", uncached),
        ("undigested", "ours: one-pass with a hash that does nothing", undigested),
    ):
        add(name, about, one_pass(triple, outs / name / "model", shadowft), reads=three, result="model")
    add(
        "lora",
        "ours: extract and graft of the adapter",
        extract(base, adapter, outs / "lora" / "delta", known),
        graft(instruct, outs / "lora" / "delta", outs / "lora" / "model", known),
        reads=(base, instruct, adapter),
        result="model",
    )
    add(
        "sigma",
        "ours: the whole pair check, digests cached",
        [*known[:-1], python, "-c", SIGMA, str(base), str(instruct)],
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


def extract(base: Path, tuned: Path, out: Path, shadowft: list[str], store: str = STORES[0]) -> list[str]:
    folders = ["--base", str(base), "--tuned", str(tuned), "--out", str(out)]
    return [*shadowft, "extract", *folders, "--storage", store]


def graft(instruct: Path, delta: Path, out: Path, shadowft: list[str]) -> list[str]:
    folders = ["--instruct", str(instruct), "--delta", str(delta), "--out", str(out)]
    return [*shadowft, "graft", *folders, "--scale", "1"]


def one_pass(triple: Triple, out: Path, shadowft: list[str]) -> list[str]:
    folders = ["--instruct", str(triple.instruct), "--base", str(triple.base), "--tuned", str(triple.tuned)]
    return [*shadowft, "graft", *folders, "--out", str(out), "--scale", "1"]


def _mergekit_config(triple: Triple) -> str:
    models = "".join(
        f"  - model: {path}\n    parameters: {{weight: 1.0}}\n" for path in (triple.tuned, triple.instruct)
    )
    head = f"merge_method: task_arithmetic\nbase_model: {triple.base}\nmodels:\n"
    return f"{head}{models}dtype: float32\nout_dtype: bfloat16\n"
