"""Compares our training with a plain TRL script of the same settings; writes training.md and training.json.

The model has the shape of SmolLM2-135M, random weights and a bfloat16 checkpoint. Each training is a process of its own
on the CPU (training_arm.py). A third arm is our training of an earlier commit, with float32 weights.

Run `python -m benchmarks.training`.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.graft import machine
from benchmarks.training_arm import BATCH, LENGTH, RANK
from shadowft_core.files import write_atomically

WALL, MEMORY = 1.03, 1.05  # goals: ours divided by TRL's
EARLIER = "1e081c9"  # the last commit that held frozen weights in float32
ROOT = Path(__file__).parent.parent
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
VOCABULARY = 49152
WORDS = [f"w{at}" for at in range(3000)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    steps: Annotated[int, typer.Option(min=2, help="optimizer steps; the first is not counted")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="runs of each arm, in random order")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 2,
    layers: Annotated[int, typer.Option(min=1, help="layers of the model; fewer for a trial")] = 30,
    earlier: Annotated[bool, typer.Option(help="also run the earlier commit, from git")] = True,
    out: Annotated[Path, typer.Option(help="folder for training.md and training.json")] = Path("benchmarks/results"),
) -> None:
    """Time both trainings and compare their losses.

    Example: python -m benchmarks.training --steps 3 --rounds 1
    """
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        make(place, steps, layers)
        paths = {"ours": ROOT, "trl": ROOT}
        if earlier:
            paths["ours, float32 weights"] = _checkout(place / "earlier")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
        order = random.Random(1)
        for _ in range(rounds):
            names = list(paths)
            order.shuffle(names)
            for name in names:
                found[name].append(_arm(name.partition(",")[0], paths[name], place, steps, threads))
                print(
                    f"{name}: {_wall(found[name][-1]):.1f} s, {found[name][-1]['peak'] / 1e6:.0f} MB", file=sys.stderr
                )
        facts = {
            "machine": machine.describe(place),
            "settings": {"steps": steps, "threads": threads, "layers": layers},
            "arms": found,
            "bits": _bits(found),
        }
    page = _page(facts)
    write_atomically(out / "training.md", page.encode())
    write_atomically(out / "training.json", json.dumps(facts, indent=1).encode() + b"\n")
    print(page)


def make(place: Path, steps: int, layers: int, width: int = 576) -> None:
    """Write model/ (random bfloat16 weights), data/ as `prepare` would, and rows.json with the ids and labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from shadowft_core.params import Render
    from shadowft_core.rendering import load_renderer
    from shadowft_core.train.encode import encode_file

    tokens = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "user", "assistant", *WORDS]
    raw = Tokenizer(models.WordLevel({token: at for at, token in enumerate(tokens)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = SMOLLM2 | {"num_hidden_layers": layers, "hidden_size": width}
    if width != 576:
        shape |= {"intermediate_size": 2 * width, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**shape, vocab_size=VOCABULARY if width == 576 else 4096)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    draw = random.Random(0)

    def text(mean: float) -> str:
        return " ".join(draw.choices(WORDS, k=max(2, min(LENGTH - 60, int(draw.lognormvariate(mean, 0.7))))))

    chats = [
        [{"role": "user", "content": text(3)}, {"role": "assistant", "content": text(4.6)}]
        for _ in range(2 * BATCH * steps)
    ]
    (place / "data").mkdir()
    for name, rows in (("train", chats), ("valid", chats[:0])):
        kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
        table = {"messages": pa.array(rows, kind), "source": pa.array([f"rows:{n}" for n in range(len(rows))])}
        pq.write_table(pa.table(table), place / f"data/{name}.parquet")
    (place / "data/data-report.json").write_text('{"digest": "sha256:benchmark"}')
    rows = encode_file(place / "data/train.parquet", load_renderer(place / "model", Render()), LENGTH)
    ids = {"input_ids": [row.tolist() for row in rows.input_ids], "labels": [row.tolist() for row in rows.labels]}
    (place / "rows.json").write_text(json.dumps(ids))


def _checkout(folder: Path) -> Path:
    """Write the files of the earlier commit."""
    archive = folder.with_suffix(".tar")
    subprocess.run(["git", "-C", ROOT, "archive", "--output", archive, EARLIER], check=True)
    folder.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    return folder


def _arm(arm: str, path: Path, place: Path, steps: int, threads: int) -> dict[str, Any]:
    """Run an arm with the packages of `path`. Raises CalledProcessError if it fails."""
    report = place / "report.json"
    script = ROOT / "benchmarks" / "training_arm.py"
    environment = os.environ | {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), arm, place, report, str(steps), str(threads)]
    subprocess.run(
        command, check=True, env=environment, cwd=place, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _wall(sample: dict[str, Any]) -> float:
    """Seconds from the end of the first step to the end of the last."""
    return float(sample["seconds"][-1] - sample["seconds"][1])


def _bits(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The largest relative difference of a loss from ours, by arm."""
    ours = found["ours"][0]["losses"]
    return {
        name: max(abs(a - b) / a for a, b in zip(ours, samples[0]["losses"], strict=True))
        for name, samples in found.items()
    }


def _page(facts: dict[str, Any]) -> str:
    arms, settings = facts["arms"], facts["settings"]
    lines = [
        "# Training: ours and a plain TRL script",
        "",
        f"A Llama of SmolLM2-135M's shape with {settings['layers']} layers, bfloat16 checkpoint, float32 arithmetic.",
        f"LoRA of rank {RANK} on all linear layers, {BATCH} rows of at most {LENGTH} tokens a step,",
        f"{settings['threads']} threads. Seconds are those of {settings['steps'] - 1} steps, without the first,",
        "loading and encoding; memory is the peak of the process until the last step. Medians (lowest..highest); a",
        "ratio is the median of the ratios of all rounds, to TRL. The last column is the largest relative difference",
        "of a loss from ours.",
        "",
        f"| arm | seconds | ratio, at most {WALL} | peak, MB | ratio, at most {MEMORY} | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, samples in arms.items():
        walls, peaks = [_wall(one) for one in samples], [one["peak"] for one in samples]
        wall = median(a / _wall(b) for a, b in zip(walls, arms["trl"], strict=True))
        peak = median(a / b["peak"] for a, b in zip(peaks, arms["trl"], strict=True))
        shown = [
            f"{ratio:.3f}{'' if name != 'ours' or ratio <= most else ' **missed**'}"
            for ratio, most in ((wall, WALL), (peak, MEMORY))
        ]
        lines.append(
            f"| {name} | {median(walls):.1f} ({min(walls):.1f}..{max(walls):.1f}) | {shown[0]} | "
            f"{median(peaks) / 1e6:.0f} | {shown[1]} | {facts['bits'][name]:.1e} |"
        )
    lines += machine.section(facts["machine"])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
