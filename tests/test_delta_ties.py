"""Adapters of tied models: Base + delta has the logits of the trained model, or the adapter is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract
from shadowft_core.errors import AdapterError
from shadowft_core.weights import open_checkpoint
from tests.fixtures.adapters import adapt, load, refused
from tests.fixtures.families import save_family
from tests.fixtures.models import Pair
from tests.fixtures.vision import TEXT, save_vision
from tests.test_delta_families import grafted, logits

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | ENDS
LLAMA4 = {"num_local_experts": 2, "intermediate_size_mlp": 48, "moe_layers": [], "attention_chunk_size": 64}
TIED: dict[
    str, tuple[dict[str, Any], str, str, str]
] = {  # settings, and names of a layer, the embedding and the head in the model
    "llama": (TEXT | {"tie_word_embeddings": True}, "q_proj", "model.embed_tokens", "lm_head"),
    "gemma2": (TEXT, "q_proj", "model.embed_tokens", "lm_head"),
    "gpt2": (GPT2, "c_attn", "transformer.wte", "lm_head"),
    "bloom": (SMALL | ENDS, "query_key_value", "transformer.word_embeddings", "lm_head"),
    "gpt_neox": (
        SMALL | ENDS | {"intermediate_size": 48, "tie_word_embeddings": True},
        "query_key_value",
        "gpt_neox.embed_in",
        "lm_head",
    ),
    "mistral3": ({}, "q_proj", "model.language_model.embed_tokens", "lm_head"),
    "llava_onevision": ({}, "q_proj", "model.language_model.embed_tokens", "lm_head"),
}


def save(folder: Path, family: str) -> Path:
    return save_family(folder, family, **TIED[family][0]) if TIED[family][0] else save_vision(folder, family)


def forms(layer: str, embedding: str, head: str) -> dict[str, dict[str, Any]]:
    """Settings by their effect, in every spelling that PEFT accepts."""
    last = embedding.rpartition(".")[2]
    either = rf".*\.({layer}|{last})"
    found: dict[str, dict[str, Any]] = {
        "lora on the embedding": {"target_modules": [layer, last]},
        "lora on the embedding, by pattern": {"target_modules": either},
        "lora on the head": {"target_modules": [layer, head]},
        "lora on both": {"target_modules": [layer, last, head]},
        "embedding saved": {"target_modules": [layer], "modules_to_save": [last]},
        "embedding saved, by its full name": {"target_modules": [layer], "modules_to_save": [embedding]},
        "head saved": {"target_modules": [layer], "modules_to_save": [head]},
        "both saved": {"target_modules": [layer], "modules_to_save": [last, head]},
        "rows": {"target_modules": [layer], "trainable_token_indices": [3, 5]},
        "rows by name": {"target_modules": [layer], "trainable_token_indices": {last: [3, 5]}},
        "rows of both": {"target_modules": [layer], "trainable_token_indices": {last: [3, 5], head: [3, 5]}},
        "rows of the head": {"target_modules": [layer], "trainable_token_indices": {head: [3, 5]}},
        "other rows of the head": {"target_modules": [layer], "trainable_token_indices": {last: [3], head: [5]}},
        "the layer alone": {"target_modules": [layer]},
    }
    return found | {
        f"{name}, tied": s | {"ensure_weight_tying": True} for name, s in found.items() if "other" not in name
    }


@pytest.mark.parametrize("family", TIED)
def test_a_tied_model_keeps_the_trained_logits(tmp_path: Path, family: str) -> None:
    """The oracle is the trained model in memory: PEFT's own merge adds factors of tied layers twice, or unties them."""
    _, layer, embedding, head = TIED[family]
    base = save(tmp_path / "base", family)
    assert open_checkpoint(base).ties, "the family of this test is tied"
    exact = set()
    for number, (name, settings) in enumerate(forms(layer, embedding, head).items()):
        adapter = tmp_path / str(number) / "adapter"
        adapted = adapt(base, adapter, noise=0.005, **settings)
        try:
            folder = grafted(base, adapter)
        except AdapterError:
            refused(
                AdapterError,
                "ties .* to .*, the adapter trained them separately; (train with ensure|merge it where)",
                base,
                adapter,
            )
            continue
        exact.add(name)
        model = load(folder)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        np.testing.assert_allclose(logits(model), logits(adapted), atol=2e-5, rtol=0, err_msg=name)
    always = {"rows", "rows by name", "rows of both", "the layer alone"}
    always |= {f"{name}, tied" for name in always} | {"head saved, tied", "lora on the head, tied"}
    named = {"embedding saved", "embedding saved, by its full name", "lora on the embedding", "both saved"}
    if embedding.endswith("embed_tokens"):  # the only name that PEFT looks for when it ties
        always |= {f"{name}, tied" for name in named}
    assert always <= exact, f"refused: {sorted(always - exact)}"
    assert not exact & {"lora on the head", "head saved", "embedding saved", "rows of the head", "lora on both"}


def test_rows_that_peft_does_not_tie_are_refused(tmp_path: Path) -> None:
    """Llama 4 is tied by its text config, and PEFT reads the config of the whole model."""
    from transformers import AutoConfig

    text = TEXT | LLAMA4 | {"tie_word_embeddings": True}
    look = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    look |= {"image_size": 16, "patch_size": 4, "vision_output_dim": 32, "projector_input_dim": 32}
    base = save_family(tmp_path / "base", "llama4", text_config=text, vision_config=look | {"projector_output_dim": 32})
    assert AutoConfig.from_pretrained(base).text_config.tie_word_embeddings
    model = load(base)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    settings = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}
    adapted = adapt(base, tmp_path / "adapter", **settings)
    live = adapted.get_base_model()
    moved = live.get_input_embeddings().token_adapter.get_merged_weights(["default"])
    assert not np.array_equal(live.get_output_embeddings().weight.detach().numpy(), moved.detach().numpy())
    refused(AdapterError, "the adapter trained them separately", base, tmp_path / "adapter")


def test_tied_factors_of_different_scalings_are_refused(tiny_llama_tied_pair: Pair, tmp_path: Path) -> None:
    base, folder = tiny_llama_tied_pair.base, tmp_path / "adapter"
    adapt(base, folder, ensure_weight_tying=True, target_modules=["embed_tokens", "q_proj"])
    extract(base, folder, tmp_path / "delta")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"lm_head": 2 * config["lora_alpha"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    refused(AdapterError, "the adapter trained them separately", base, folder)
