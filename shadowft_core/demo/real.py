"""`make demo-real`: runs the flow `retrain`, unchanged, on a real small model in a separate workspace.

python -m shadowft_core.demo.real --help
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
import yaml

from shadowft_core.demo import smollm2
from shadowft_core.environment import set_variables
from shadowft_core.errors import InputError, ShadowError
from shadowft_core.files import canonical_json, file_digest, new_folder, write_atomically
from shadowft_core.params import load_params

ROOT = Path(__file__).resolve().parents[2]
GUARD, GUARD_DEV_ITEMS, ITEMS = "arc_easy", 32, 160

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="training rows: json, jsonl or parquet; best with about 250 tokens each")],
    guard: Annotated[Path | None, typer.Option(help="ARC Easy as JSON lines with query, choices and gold")] = None,
    text: Annotated[Path | None, typer.Option(help="plain text to train the synthetic Base on")] = None,
    workspace: Annotated[Path, typer.Option(help="clone for the run; created or updated")] = Path("var/real"),
    save: Annotated[Path | None, typer.Option(help="folder for the results demo-real-DATA.md and .json")] = None,
    vllm: Annotated[
        Path | None, typer.Option(help="evaluate with this vllm program (engine server) instead of with transformers")
    ] = None,
) -> None:
    """Run the whole pipeline on SmolLM2-135M-Instruct and a synthetic Base made from it.

    The Base is the Instruct, trained briefly on plain text. The run shows that the pipeline works with a real model; it
    is no evidence about the published Base. It takes about 40 minutes on two cores and 5 GB of disk.

    Example: python -m shadowft_core.demo.real --data my_rows.jsonl

    Example: python -m shadowft_core.demo.real --data my_rows.jsonl --guard arc_easy.jsonl --save benchmarks/results

    Example: python -m shadowft_core.demo.real --data my_rows.jsonl --vllm .venv-vllm/bin/vllm
    """
    prepare_workspace(workspace, data, guard, text, vllm)
    smollm2.resolve("smollm2:instruct")  # so that a missing package is reported before any stage starts
    if guard is None:
        print("no --guard: harm outside the domain is not measured, so the verdict does not cover it", file=sys.stderr)
    from shadowft_core.pipeline.command import run_flow

    run_flow(workspace / "flows/retrain.py", workspace)
    if save is not None:
        save_result(workspace, data, save)


def prepare_workspace(
    workspace: Path, data: Path, guard: Path | None, text: Path | None, vllm: Path | None = None
) -> None:
    """Clone the last commit into `workspace`, or update the clone; copy the inputs; write params.yaml.

    Stage outputs of an earlier run stay, so unchanged stages are skipped. Raises InputError when an input is missing or
    a row of the guard is unusable; the workspace is then unchanged.
    """
    for option, file in (("--data", data), ("--guard", guard), ("--text", text), ("--vllm", vllm)):
        if file is not None and not file.is_file():
            raise InputError(f"{option} {file}: no such file; name an existing file")
    items = {} if guard is None else guard_items(guard)
    if not (workspace / ".git").exists():
        _git("clone", "--quiet", "--no-checkout", str(ROOT), str(workspace))
    _git("-C", str(workspace), "fetch", "--quiet", str(ROOT), "HEAD")
    _git("-C", str(workspace), "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
    rows = f"data-{_plain(data.stem)}{data.suffix}"
    base = {"steps": str(smollm2.DEFAULT_STEPS)}
    with new_folder(workspace / "input") as folder:
        shutil.copyfile(data, folder / rows)
        if text is not None:  # named by content, so that params.yaml changes when the text does
            name = f"text-{file_digest(text).removeprefix('sha256:')[:12]}.txt"
            shutil.copyfile(text, folder / name)
            base["text"] = f"input/{name}"
        write_tasks(folder / "tasks", items)
    settings = settings_of(f"input/{rows}", f"smollm2:base?{urlencode(base, safe='/')}", guarded=guard is not None)
    if vllm is not None:
        settings["evaluate"]["engine"] = engine_of(vllm)
    write_atomically(workspace / "params.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    load_params(workspace / "params.yaml")


def settings_of(data: str, base: str, *, guarded: bool) -> dict[str, Any]:
    """params.yaml of the demo: both routes, a short LoRA, and as many items as two cores score in half an hour."""
    return {
        "routes": {
            "shadow": {"model": "base", "graft": ""},
            "direct": {"model": "instruct", "graft": "--onto-base"},
        },
        "fetch": {"base": base, "instruct": "smollm2:instruct"},
        "prepare": {"data": data, "valid": 0.04, "dev": 0.04, "test": 0.15, "max_rows": 600},
        "render": {"thinking": "keep", "system": "refuse"},
        "train": {
            "method": "lora",
            "lora": {"rank": 16, "alpha": 32},
            "max_steps": 25,
            "batch_size": 4,
            "learning_rate": 5e-4,
            "max_length": 384,
            "threads": 2,
        },
        "extract": {"ignore": []},
        "sweep": {
            "scales": [0.5, 0.75, 1.0],
            "domain": ["heldout_dev"],
            "guards": [f"{GUARD}_dev"] if guarded else [],
            "tolerance": 0.04,  # one of 32 dev items
        },
        "graft": {"scale": "sweep", "dtype": "instruct"},
        "evaluate": {
            "tasks": "input/tasks",
            "domain": ["heldout"],
            "guards": [GUARD] if guarded else [],
            "limit": ITEMS,
            "batch_size": 4,
            "kl_answers": 16,  # each costs a second of a core for each arm
        },
        "verdict": {  # of heldout, in nats per byte; guards are shares of right answers
            "metrics": {"logprob_per_byte": {"margin": 0.01, "margin_each": 0.02, "worthwhile": 0.01}}
        },
        "registry": {"name": "shadowft-smollm2"},
    }


def engine_of(vllm: Path) -> dict[str, Any]:
    """The engine `server` with vLLM on the CPU: in float32, as `hf`, and with the Instruct's whole context."""
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    command = [
        "env", "HF_HUB_OFFLINE=1", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind", "OMP_NUM_THREADS=2",
        str(vllm.absolute()), "serve", "{model}", "--served-model-name", "{name}", "--host", "127.0.0.1",
        "--port", "{port}", "--dtype", "float32", "--max-model-len", "8192", "--enforce-eager",
        "--enable-lora", "--max-lora-rank", "16",
        # Without this, vLLM 0.32 on the CPU adapts lm_head, too, and then cannot score two prompts at a time.
        "--lora-target-modules", *layers,
    ]  # fmt: skip
    return {"kind": "server", "server": {"model": "instruct", "concurrency": 4, "command": command}}


def guard_items(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The distinct items of a JSON lines file, ordered by hash and split into a dev and a test task.

    Raises InputError naming the first line without a valid query (text), choices (two or more texts) or gold (index),
    or when there are too few items.
    """
    items: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            item = {"query": row["query"], "choices": row["choices"], "gold": row["gold"]}
            usable = (
                len(item["choices"]) > 1
                and all(isinstance(text, str) and text for text in [item["query"], *item["choices"]])
                and item["gold"] in range(len(item["choices"]))
            )
        except (ValueError, KeyError, TypeError):
            usable = False
        if not usable:
            raise InputError(f"--guard {file}:{number}: expected query (text), choices (2 or more texts), gold (index)")
        items.setdefault(hashlib.sha256(item["query"].encode()).hexdigest(), item)
    drawn = [items[key] for key in sorted(items)]
    if len(drawn) < 2 * GUARD_DEV_ITEMS:
        raise InputError(
            f"--guard {file}: {len(drawn)} distinct items, expected {2 * GUARD_DEV_ITEMS} or more; pass a larger file"
        )
    return {f"{GUARD}_dev": drawn[:GUARD_DEV_ITEMS], GUARD: drawn[GUARD_DEV_ITEMS:]}


def write_tasks(folder: Path, items: dict[str, list[dict[str, Any]]]) -> None:
    """Create a task folder: for each task its items, and a task file like the harness's arc_easy."""
    folder.mkdir()
    for task, part in items.items():
        (folder / f"{task}.jsonl").write_bytes(b"".join(canonical_json(item) + b"\n" for item in part))
        (folder / f"{task}.yaml").write_text(TASK.format(task=task), encoding="utf-8")


TASK = """task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {task}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def save_result(workspace: Path, data: Path, folder: Path) -> None:
    """Write the table, the verdict, what they mean and the time of each stage to `folder`/demo-real-DATA.{md,json}."""
    from shadowft_core.pipeline.result import Result

    work, params = workspace / "work", load_params(workspace / "params.yaml")
    verdict, pair, report = (_read(work / name) for name in ("verdict.json", "pair/pair.json", "data/data-report.json"))
    sweeps = {route: _read(work / "sweep" / f"{route}.json") for route in params.routes}
    seconds = _read(workspace / "var" / "durations.json")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    facts = {
        "instruct": f"{pair['instruct']['label']} ({pair['instruct']['digest']})",
        "base": f"{pair['base']['label']} ({pair['base']['digest']})",
        "weight gap sigma": f"{pair['sigma']['overall']:.5f}",
        "data": f"{data.name}, rows {json.dumps(report['splits'])}",
        **{f"scale of {route}": sweep["reason"] for route, sweep in sweeps.items()},
        "seconds": json.dumps(seconds),
        "machine": machine,
    }
    page = f"""{Result(verdict, params.evaluate.guards, facts).markdown()}

What this means: `heldout` is the log-likelihood of the reference reply, in nats per byte, on rows held out from the
data; guards are shares of right answers. {MEANING[verdict["decision"]]}
The Base is synthetic, made from the Instruct by a short training on plain text: the numbers show that the pipeline
works with a real model. They are no evidence for or against the paper.
"""
    name = f"demo-real-{_plain(data.stem)}"
    everything = {"verdict": verdict, "pair": pair, "data": report["splits"], "sweep": sweeps, "seconds": seconds}
    write_atomically(folder / f"{name}.md", page.encode())
    write_atomically(folder / f"{name}.json", json.dumps({**everything, "machine": machine}, indent=1).encode() + b"\n")
    print(f"saved: {folder / name}.md and .json", file=sys.stderr)


MEANING = {
    "promote": "On these items the candidate beats the untouched Instruct, and no harm was found.",
    "hold": "No arm beat the untouched Instruct on the dev items, or the candidate is not better on the test items, or "
    "it harms a guard.",
    "undecided": "Nothing speaks against the candidate, but there are too few items to decide.",
}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        problem = " ".join(done.stderr.split())
        raise InputError(f"git {' '.join(arguments)}: {problem}; run the demo in a clone of this repository")


def main() -> None:
    """Run the command line; a ShadowError becomes one line and an exit code."""
    set_variables()
    try:
        app(prog_name="python -m shadowft_core.demo.real")
    except ShadowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
