"""Preferences on tiny models of several families: their heads, experts and dropout."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.train import train
from tests.fixtures.training import word_tokenizer
from tests.test_train_preference import DPO, place  # noqa: F401 a fixture

pytestmark = pytest.mark.families

MORE: dict[str, dict[str, Any]] = {
    "Qwen3Config": {"head_dim": 8},
    "MixtralConfig": {"num_local_experts": 4},
    "Qwen3MoeConfig": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "Gemma3TextConfig": {"head_dim": 8, "sliding_window": 16},
    "Phi3Config": {"pad_token_id": 0},
    "GlmConfig": {"head_dim": 8, "pad_token_id": 0},
    "GptOssConfig": {"head_dim": 8, "num_local_experts": 4},
    "GPT2Config": {},  # with dropout of its own
}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", MORE)
def test_three_steps_widen_the_margin(place: Path, tmp_path: Path, family: str, method: str) -> None:  # noqa: F811
    import torch
    import transformers

    tokenizer = word_tokenizer()
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 64}
    if family != "GPT2Config":
        sizes |= {"intermediate_size": 48, "num_key_value_heads": 2}
    config = getattr(transformers, family)(vocab_size=len(tokenizer), **sizes, **MORE[family])
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = DPO.model_copy(update={"method": method, "max_steps": 3})
    train(tmp_path / "model", tmp_path / "model", place / "data", settings, tmp_path / "out")
    facts = json.loads((tmp_path / "out/train.json").read_text())
    assert facts["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert facts["last_loss"] < math.log(2)
    assert facts["preferences"]["last_margin"] > 0.01
