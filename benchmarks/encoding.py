"""Compares our encoding of conversations with that of transformers; writes encoding.md and encoding.json.

Both encode the same prepared rows as ids and labels, with the same tokenizer, in one process. Ours is `encode_file`.
Theirs is `datasets.map` with `apply_chat_template(return_assistant_tokens_mask=True)` and TRL's training variant of the
template. Ours also checks that each reply follows the prompt of inference.

Run `python -m benchmarks.encoding`.
"""

import importlib.resources
import json
import random
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.graft import machine
from shadowft_core.files import write_atomically
from shadowft_core.params import Render
from shadowft_core.rendering import IGNORED, Renderer
from shadowft_core.train.encode import encode_file

MOST = 1.1  # goal: our seconds divided by those of transformers
TEMPLATES = ("qwen2_5", "llama3", "phi3")
ENDS = {"qwen2_5": "<|im_end|>", "llama3": "<|eot_id|>", "phi3": "<|end|>"}
CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    *("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
)

FRESH = count()  # numbers for fingerprints, so that datasets reads nothing from its cache

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    rows: Annotated[int, typer.Option(min=10, help="conversations")] = 5000,
    rounds: Annotated[int, typer.Option(min=1, help="pairs of runs, in random order")] = 5,
    out: Annotated[Path, typer.Option(help="folder for encoding.md and encoding.json")] = Path("benchmarks/results"),
) -> None:
    """Time both encodings and compare the ids and labels that they give.

    Example: python -m benchmarks.encoding --rows 500 --rounds 2
    """
    with TemporaryDirectory() as scratch:
        file = _write_rows(Path(scratch) / "train.parquet", rows)
        facts = {
            "machine": machine.describe(Path(scratch)),
            "rows": rows,
            "templates": {name: _measure(name, file, rounds) for name in TEMPLATES},
        }
    page = _page(facts)
    write_atomically(out / "encoding.md", page.encode())
    write_atomically(out / "encoding.json", json.dumps(facts, indent=1).encode() + b"\n")
    print(page)


def _write_rows(file: Path, number: int) -> Path:
    """Write seeded conversations of one to four questions, with replies of about 60 words from a Zipf distribution."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(3000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]

    def text(mean: int) -> str:
        return " ".join(draw.choices(words, weights, k=max(1, int(draw.expovariate(1 / mean)))))

    conversations = []
    for _ in range(number):
        turns = [("user", 20), ("assistant", 60)] * draw.choice([1, 1, 2, 4])
        conversations.append([{"role": role, "content": text(mean)} for role, mean in turns])
    sources = [f"rows.jsonl:{at + 1}" for at in range(number)]
    pq.write_table(pa.table({"messages": conversations, "source": sources}), file)
    return file


def _tokenizer(name: str, file: Path, training: bool) -> Any:
    """A byte-level BPE trained on the rows, with the control tokens of the templates."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    conversations = pq.read_table(file)["messages"].to_pylist()[:500]
    texts = (turn["content"] for conversation in conversations for turn in conversation)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|begin_of_text|>", eos_token=ENDS[name])
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL)})
    folder = importlib.resources.files("trl") / "chat_templates"
    tokenizer.chat_template = (folder / f"{name}{'_training' * training}.jinja").read_text(encoding="utf-8")
    return tokenizer


Columns = tuple[list[Any], list[Any]]


def _measure(name: str, file: Path, rounds: int) -> dict[str, Any]:
    plain, marked = (_tokenizer(name, file, training) for training in (False, True))
    renderer = Renderer(plain, {plain.eos_token_id}, Render())

    def ours() -> Columns:
        found = encode_file(file, renderer, 1 << 20)
        return found.input_ids, found.labels

    def theirs() -> Columns:
        import datasets

        def encode(row: dict[str, Any]) -> dict[str, Any]:
            found = marked.apply_chat_template(
                row["messages"], return_dict=True, return_assistant_tokens_mask=True, tokenize=True
            )
            ids, mask = np.array(found["input_ids"], np.int32), np.array(found["assistant_masks"], bool)
            return {"input_ids": ids, "labels": np.where(mask, ids, IGNORED).astype(np.int32)}

        datasets.disable_progress_bars()
        read = datasets.Dataset.from_parquet(str(file), cache_dir=str(file.parent / "cache"))
        made = read.map(
            encode, remove_columns=read.column_names, load_from_cache_file=False, new_fingerprint=f"run{next(FRESH)}"
        )
        return list(made.with_format("numpy")["input_ids"]), list(made.with_format("numpy")["labels"])

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    results: dict[str, Columns] = {}
    order = random.Random(1)
    for _ in range(rounds):
        cases: list[tuple[str, Callable[[], Columns]]] = [("ours", ours), ("theirs", theirs)]
        order.shuffle(cases)
        for case, act in cases:
            began = time.perf_counter()
            results[case] = act()
            seconds[case].append(time.perf_counter() - began)
    learned = {
        case: int(sum((np.asarray(row) != IGNORED).sum() for row in found[1])) for case, found in results.items()
    }
    tokens = {case: sum(map(len, found[0])) for case, found in results.items()}
    same = sum(map(np.array_equal, *(list(map(np.asarray, results[case][0])) for case in ("ours", "theirs"))))
    ratio = median(one / other for one, other in zip(seconds["ours"], seconds["theirs"], strict=True))
    kept = sum(ids.nbytes + labels.nbytes for ids, labels in zip(*results["ours"], strict=True)) / tokens["ours"]
    return {
        "seconds": seconds, "ratio": ratio, "tokens": tokens, "learned": learned, "equal_ids": same, "bytes": kept
    }  # fmt: skip


def _page(facts: dict[str, Any]) -> str:
    lines = [
        "# Encoding: ids and labels of conversations",
        "",
        f"{facts['rows']} conversations; seconds are medians (lowest..highest). The ratio is the median of the",
        "ratios of all rounds. `equal ids` counts the sequences for which both give the same ids.",
        "",
        f"| template | ours, s | transformers, s | ratio | at most {MOST} | tokens | equal ids | bytes a token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in facts["templates"].items():
        shown = [
            f"{median(taken):.2f} ({min(taken):.2f}..{max(taken):.2f})"
            for taken in (found["seconds"]["ours"], found["seconds"]["theirs"])
        ]
        met = "yes" if found["ratio"] <= MOST else "**no**"
        lines.append(
            f"| {name} | {shown[0]} | {shown[1]} | {found['ratio']:.2f} | {met} | {found['tokens']['ours']} | "
            f"{found['equal_ids']} | {found['bytes']:.1f} |"
        )
    lines += machine.section(facts["machine"])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
