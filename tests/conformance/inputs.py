"""The folders of a case: an intact start, base/ tuned/ instruct/ (or adapter/ for tuned/), and changes of it."""

import json
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from shadowft_core.weights import SINGLE, open_checkpoint
from tests.conformance.oracle import Tensors, tensors_of
from tests.fixtures.models import (
    SPECIAL,
    internlm2_tensors,
    save_adapter,
    save_model,
    save_tokenizer,
    shifted,
    write_model,
    write_weights,
)

Change = Callable[[Path], None]
Edit = Callable[[Tensors], None]
TOKENS = (*SPECIAL, *(f"word{number}" for number in range(59)))
"""one token for each of the 64 rows"""
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}


@dataclass(frozen=True)
class Start:
    """A Base, an Instruct near it, and the Base after tuning: a full fine-tune, or an adapter with these settings."""

    family: str = "llama"
    dtype: str = "bfloat16"
    tied: bool = False
    fused: bool = False
    adapter: Mapping[str, Any] | None = field(default=None, hash=False)

    def build(self, folder: Path) -> None:
        base, instruct = folder / "base", folder / "instruct"
        if self.family == "internlm2":
            sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "dtype": self.dtype}
            write_model(base, internlm2_tensors(DTYPES[self.dtype]), model_type="internlm2", **sizes)
        else:
            seed = zlib.crc32(self.family.encode())  # families of equal shapes must differ in their weights
            save_model(base, self.family, self.dtype, self.tied, seed, self.fused)
        shifted(base, instruct, 0.001, seed=1)
        save_tokenizer(base, template=False, tokens=TOKENS)
        save_tokenizer(instruct, tokens=TOKENS)
        generation = {"eos_token_id": [4, 1], "pad_token_id": 1, "temperature": 0.6, "do_sample": True}
        (instruct / "generation_config.json").write_text(json.dumps(generation, indent=2))
        if self.adapter is None:
            shifted(base, folder / "tuned", 0.01, seed=2)
        else:
            save_adapter(base, folder / "adapter", **self.adapter)


def edit(role: str, *edits: Edit, shards: int = 1) -> Change:
    """Change the tensors of one folder."""

    def change(case: Path) -> None:
        tensors = tensors_of(case / role)
        for one in edits:
            one(tensors)
        write_weights(case / role, tensors, shards)

    return change


def sharded(role: str, shards: int) -> Change:
    return edit(role, shards=shards)


def drop(*names: str) -> Edit:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def rename(name: str, other: str) -> Edit:
    return lambda tensors: tensors.update({other: tensors.pop(name)})


def transpose(name: str) -> Edit:
    return lambda tensors: tensors.update({name: np.ascontiguousarray(tensors[name].T)})


def add(name: str, like: str) -> Edit:
    return lambda tensors: tensors.update({name: tensors[like].copy()})


def put(name: str, value: float) -> Edit:
    """Set one entry in the middle of a tensor."""

    def change(tensors: Tensors) -> None:
        tensors[name].reshape(-1)[tensors[name].size // 2] = value

    return change


def cast(dtype: Any, *names: str) -> Edit:
    return lambda tensors: tensors.update({n: tensors[n].astype(dtype) for n in names or list(tensors)})


def jiggle(tensors: Tensors) -> None:
    """Add digits that only this dtype can hold."""
    rng = np.random.default_rng(11)
    for name, array in tensors.items():
        tensors[name] = (array + 1e-4 * rng.standard_normal(array.shape)).astype(array.dtype)


def shorten(name: str) -> Edit:
    return lambda tensors: tensors.update({name: tensors[name][:-1].copy()})


def relayout(convert: Callable[[Tensors], Tensors]) -> Edit:
    def change(tensors: Tensors) -> None:
        converted = convert(dict(tensors))
        tensors.clear()
        tensors.update(converted)

    return change


def eight_bits(*names: str) -> Edit:
    return lambda tensors: tensors.update({n: (tensors[n].astype(np.float32) * 1000).astype(np.int8) for n in names})


def config(role: str, **values: Any) -> Change:
    def change(case: Path) -> None:
        path = case / role / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2))

    return change


def replace(role: str, source: Start, source_role: str) -> Change:
    """Replace one folder with that of another start."""

    def change(case: Path) -> None:
        other = case / "other"
        source.build(other)
        shutil.rmtree(case / role)
        (other / source_role).rename(case / role)
        shutil.rmtree(other)

    return change


def another_seed(role: str) -> Change:
    """New random weights of the same names and shapes."""

    def reseed(tensors: Tensors) -> None:
        rng = np.random.default_rng(99)
        for name, array in tensors.items():
            wide = array.astype(np.float32)
            tensors[name] = (wide.mean() + wide.std() * rng.standard_normal(array.shape)).astype(array.dtype)

    return edit(role, reseed)


def copy(source: str, target: str) -> Change:
    def change(case: Path) -> None:
        shutil.rmtree(case / target)
        shutil.copytree(case / source, case / target)

    return change


def nearby(role: str) -> Change:
    """Another release: every weight changes a little."""

    def change(case: Path) -> None:
        (case / role).rename(case / "former")
        shifted(case / "former", case / role, 0.001, seed=5)
        shutil.rmtree(case / "former")

    return change


def swap(case: Path) -> None:
    (case / "base").rename(case / "former")
    (case / "instruct").rename(case / "base")
    (case / "former").rename(case / "instruct")


def record(case: Path) -> None:
    """Write tuned/train.json, which names the model that was tuned."""
    made_from = {"model_digest": open_checkpoint(case / "base").digest()}
    (case / "tuned" / "train.json").write_text(json.dumps(made_from))


def vocabulary(tokens: Sequence[str] = TOKENS, padding: int = 0, role: str = "instruct") -> Change:
    """Give a model another tokenizer: each known token keeps its row, new tokens and padding get new rows."""

    def change(case: Path) -> None:
        rng, tensors = np.random.default_rng(3), tensors_of(case / role)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                old = tensors[name]
                rows = (0.02 * rng.standard_normal((len(tokens) + padding, old.shape[1]))).astype(old.dtype)
                for number, token in enumerate(tokens):
                    if token in TOKENS:
                        rows[number] = old[TOKENS.index(token)]
                tensors[name] = rows
        write_weights(case / role, tensors)
        config(role, vocab_size=len(tokens) + padding)(case)
        save_tokenizer(case / role, template=role != "base", tokens=tokens)

    return change


def without(role: str, *files: str) -> Change:
    def change(case: Path) -> None:
        for file in files:
            (case / role / file).unlink()

    return change


def edit_adapter(edit: Edit) -> Change:
    def change(case: Path) -> None:
        file = case / "adapter" / "adapter_model.safetensors"
        (case / "adapter" / "whole").mkdir()
        file.rename(case / "adapter" / "whole" / SINGLE)
        tensors = tensors_of(case / "adapter" / "whole")
        edit(tensors)
        write_weights(case / "adapter" / "whole", tensors)
        (case / "adapter" / "whole" / SINGLE).rename(file)
        (case / "adapter" / "whole").rmdir()

    return change


def zero(part: str) -> Edit:
    return lambda tensors: tensors.update({n: a * 0 for n, a in tensors.items() if part in n})


def more_files(role: str) -> Change:
    """Add a second chat template."""

    def change(case: Path) -> None:
        extra = case / role / "additional_chat_templates"
        extra.mkdir()
        (extra / "tool_use.jinja").write_text("{{ messages | length }} ")

    return change
