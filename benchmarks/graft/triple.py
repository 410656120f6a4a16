"""Base, tuned, Instruct and a LoRA adapter of a size worth measuring: seeded, sharded, written chunk by chunk.

The weights are noise with the spread of trained ones: base N(0, 0.02), tuned = base + N(0, 1e-4), instruct = base + 2 %
of its spread, all rounded to bfloat16; norms lie around 1. sigma of such a pair is 0.01, as of published pairs.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from shadowft_core.files import new_folder
from shadowft_core.weights import CHUNK, INDEX, Checkpoint, build_header, open_checkpoint, write_shards

SPREAD, TUNING, DISTANCE = 0.02, 1e-4, 0.02 * 0.02
SHARD_BYTES = 500_000_000
RANK, ALPHA = 128, 256
FACTOR_A, FACTOR_B = 0.02, 2.2e-4  # alpha / rank * B A then has the spread of TUNING
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Shape:
    """A Llama without tied embeddings; heads have 64 dimensions in published sizes."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name to shape, in the order of the files."""
        keys = self.hidden // self.heads * self.key_value_heads
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            found |= {f"{layer}.self_attn.{name}_proj.weight": (self.hidden, self.hidden) for name in "qo"}
            found |= {f"{layer}.self_attn.{name}_proj.weight": (keys, self.hidden) for name in "kv"}
            found |= {f"{layer}.mlp.{name}_proj.weight": (self.intermediate, self.hidden) for name in ("gate", "up")}
            found[f"{layer}.mlp.down_proj.weight"] = (self.hidden, self.intermediate)
            found |= {f"{layer}.{name}_layernorm.weight": (self.hidden,) for name in ("input", "post_attention")}
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


SHAPES = {
    "1.3M": Shape(128, 352, 4, 4, 2, 2048),
    "0.15B": Shape(768, 2048, 16, 12, 4, 32000),
    "1.1B": Shape(2048, 5632, 22, 32, 4, 32000),
}


@dataclass(frozen=True)
class Triple:
    """Folders of the three checkpoints and of the adapter of the Base."""

    base: Path
    tuned: Path
    instruct: Path
    adapter: Path


def build(shape: Shape, folder: Path) -> Triple:
    """Write the missing folders; an existing folder is complete and is reused. The bits are the same every time."""
    triple = Triple(*(folder / name for name in ("base", "tuned", "instruct", "adapter")))
    if not triple.base.exists():
        _model(shape, triple.base, lambda name: _weights(shape, name))
    base = open_checkpoint(triple.base)
    for path, spread in ((triple.tuned, TUNING), (triple.instruct, DISTANCE)):
        if not path.exists():
            _model(shape, path, lambda name, role=path.name, spread=spread: _moved(base, name, role, spread))
    if not triple.adapter.exists():
        _adapter(shape, triple.adapter)
    return triple


def _model(shape: Shape, out: Path, produce: Any) -> None:
    tensors = shape.tensors()
    shards = _shards(tensors)
    total = sum(2 * int(np.prod(dims)) for dims in tensors.values())
    with new_folder(out) as folder:
        weight_map, files = {}, {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            files[folder / file] = build_header({n: ("BF16", tensors[n]) for n in names})
            weight_map |= dict.fromkeys(names, file)
        write_shards(files, produce, f"bench: {out.name}")
        _json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _json(folder / "config.json", shape.config())
        _json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
        _tokenizer(folder, shape.vocabulary, TEMPLATE if out.name == "instruct" else None)


def _shards(tensors: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    """Names by shard: at most SHARD_BYTES each, and always more than one shard."""
    sizes = {name: 2 * int(np.prod(dims)) for name, dims in tensors.items()}
    limit = min(SHARD_BYTES, sum(sizes.values()) // 2)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _noise(name: str, role: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(role.encode())])


def _weights(shape: Shape, name: str) -> Iterator[np.ndarray]:
    noise, size = _noise(name, "base"), int(np.prod(shape.tensors()[name]))
    centre = np.float32(1 if name.endswith("norm.weight") else 0)
    for start in range(0, size, CHUNK):
        part = noise.standard_normal(min(CHUNK, size - start), np.float32)
        yield (centre + np.float32(SPREAD) * part).astype(ml_dtypes.bfloat16)


def _moved(base: Checkpoint, name: str, role: str, spread: float) -> Iterator[np.ndarray]:
    noise = _noise(name, role)
    for _, part in base.chunks(name, CHUNK):
        moved = part.astype(np.float32) + np.float32(spread) * noise.standard_normal(part.size, np.float32)
        yield moved.astype(ml_dtypes.bfloat16)


def _adapter(shape: Shape, out: Path) -> None:
    factors: dict[str, tuple[int, ...]] = {}
    for name, dims in shape.tensors().items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            factors[f"base_model.model.{module}.lora_A.weight"] = (RANK, dims[1])
            factors[f"base_model.model.{module}.lora_B.weight"] = (dims[0], RANK)

    def factor(name: str) -> Iterator[np.ndarray]:
        noise, size = _noise(name, "adapter"), int(np.prod(factors[name]))
        spread = np.float32(FACTOR_A if ".lora_A." in name else FACTOR_B)
        for start in range(0, size, CHUNK):
            yield spread * noise.standard_normal(min(CHUNK, size - start), np.float32)

    with new_folder(out) as folder:
        header = build_header({name: ("F32", dims) for name, dims in factors.items()})
        write_shards({folder / "adapter_model.safetensors": header}, factor, "bench: adapter")
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
        _json(folder / "adapter_config.json", config | {"target_modules": PROJECTIONS, "inference_mode": True})


def _tokenizer(folder: Path, vocabulary: int, template: str | None) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", *(f"word{number}" for number in range(3, vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    _json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
