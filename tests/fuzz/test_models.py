"""Damaged model folders: weights, index, config and tokenizer, alone and in a pair."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.loading import require_loadable
from shadowft_core.pair import check_pair
from shadowft_core.plan.shape import shape_of
from shadowft_core.weights import open_checkpoint, open_safetensors
from tests.fixtures.models import TEMPLATE, write_model, write_weights
from tests.fuzz.damage import json_damage, safetensors_damage
from tests.fuzz.harness import WORKERS, Target, fuzzed
from tests.test_weights_fuzz import ours, theirs

WORDS = ["<unk>", "<pad>", "<|user|>", "<|bot|>", "<|end|>", "a", "b", "c"]
CONFIG = {
    **{"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8, "hidden_act": "silu", "eos_token_id": 4},
    **{"rms_norm_eps": 1e-6, "max_position_embeddings": 64, "torch_dtype": "float32", "rope_theta": 10000.0},
}
SIDE_FILES = {
    f"*/{name}.json": json_damage for name in ("config", "tokenizer", "tokenizer_config", "generation_config")
}


def tensors(seed: int) -> dict[str, np.ndarray]:
    """Those of a Llama with one layer; another seed is near the first one."""
    layer, rng, near = "model.layers.0", np.random.default_rng(0), np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (8, 8), "model.norm.weight": (8,), "lm_head.weight": (8, 8)}
    shapes |= {f"{layer}.self_attn.{name}_proj.weight": (8 if name in "qo" else 4, 8) for name in "qkvo"}
    shapes |= {f"{layer}.mlp.{name}_proj.weight": (6, 8) for name in ("gate", "up")}
    shapes |= {f"{layer}.mlp.down_proj.weight": (8, 6)}
    shapes |= {f"{layer}.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
    found = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return {
        name: values + 0.01 * near.standard_normal(values.shape, dtype=np.float32) for name, values in found.items()
    }


def make_model(folder: Path, seed: int = 1, template: bool = True, shards: int = 1) -> None:
    write_model(folder, tensors(seed), shards, **CONFIG)
    settings = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = [{"id": number, "content": word, **settings} for number, word in enumerate(WORDS[:5])]
    model = {"type": "WordLevel", "vocab": {word: number for number, word in enumerate(WORDS)}, "unk_token": "<unk>"}
    tokenizer: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    split = {"type": "WhitespaceSplit"}
    tokenizer |= {"normalizer": None, "pre_tokenizer": split, "post_processor": None, "decoder": None, "model": model}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "unk_token": "<unk>"}
    files = {"tokenizer": tokenizer, "tokenizer_config": settings | ({"chat_template": TEMPLATE} if template else {})}
    for name, content in (files | {"generation_config": {"eos_token_id": [4], "max_length": 20}}).items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def make_pair(folder: Path) -> None:
    make_model(folder / "base", 1, template=False)
    make_model(folder / "instruct", 2)


def read_model(folder: Path) -> None:
    model = open_checkpoint(folder / "model")
    _ = model.digest(), model.tokenizer_digest(), model.other_files(), model.config, model.head_is_tied
    for name in model.names:
        model.read(name)
    require_loadable(folder / "model", tokenizer=True)
    shape_of(model)


def read_header(folder: Path) -> None:
    """What the safetensors library refuses is refused; what both accept is equal."""
    file = folder / "model.safetensors"
    if file.is_file() and (size := file.stat().st_size) and size < 1 << 20:
        raw = file.read_bytes()
        found = ours(raw)
        assert isinstance(found, str) or found == theirs(raw), "the library refuses it, or reads something else"
    opened = open_safetensors(file)
    for name in opened.names:
        opened.read(name)


test_hostile_models = fuzzed(
    Target(
        "safetensors",
        lambda folder: write_weights(folder, tensors(1)),
        read_header,
        {"model.safetensors": safetensors_damage},
    ),
    Target(
        "model folder",
        lambda folder: make_model(folder / "model"),
        read_model,
        {**SIDE_FILES, "*/model.safetensors": safetensors_damage},
    ),
    Target(
        "shards",
        lambda folder: make_model(folder / "model", shards=3),
        read_model,
        {"*/*.index.json": json_damage, "*/*-00002-*.safetensors": safetensors_damage},
    ),
    Target(
        "base and instruct",
        make_pair,
        lambda folder: check_pair(folder / "base", folder / "instruct"),
        SIDE_FILES,
        allowed=WORKERS,
    ),
)
