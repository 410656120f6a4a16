"""Adapters of Conv1D layers, whose weights are stored (inputs, outputs)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import AdapterError
from tests.fixtures.adapters import adapt, load, refused
from tests.fixtures.families import save_family
from tests.test_delta_adapters import logits, require_equal, tuned


def gpt2(folder: Path) -> Path:
    """A model with Conv1D weights, a square c_proj in the attention, and a separate linear head."""
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "tie_word_embeddings": False}
    return save_family(folder, "gpt2", **sizes, eos_token_id=4, bos_token_id=4)


CONV1D = ["c_attn", "c_fc", "c_proj"]  # of attention and feed-forward


@pytest.mark.parametrize("flag", [True, False])  # PEFT saves the flag of the last layer it wrapped
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": CONV1D},
        {"target_modules": [*CONV1D, "lm_head"]},
        {"target_modules": ["attn.c_proj", "lm_head"], "use_dora": True},
        {"target_modules": [*CONV1D, "lm_head"], "init_lora_weights": "pissa", "noise": 0.002},
        {"target_modules": ["lm_head"], "target_parameters": ["attn.c_proj.weight", "c_attn.weight"]},
    ],
)
def test_the_delta_of_a_conv1d_equals_the_merge_of_peft(tmp_path: Path, settings: dict[str, Any], flag: bool) -> None:
    base = gpt2(tmp_path / "base")
    adapted = adapt(base, tmp_path / "adapter", **settings)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": flag}))
    meant = logits(adapted)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    extract(base, tmp_path / "adapter", tmp_path / "delta")
    delta = open_delta(tmp_path / "delta")
    require_equal(base, delta, tmp_path / "merged")
    np.testing.assert_allclose(logits(load(tuned(base, delta, tmp_path / "tuned"))), meant, atol=2e-5, rtol=0)


def test_olora_of_a_conv1d_is_refused(tmp_path: Path) -> None:
    """PEFT takes the QR of the stored matrix, whose columns are outputs here."""
    base = gpt2(tmp_path / "base")
    adapt(base, tmp_path / "adapter", target_modules=["lm_head"], init_lora_weights="olora", noise=0.002)
    extract(base, tmp_path / "adapter", tmp_path / "delta")
    adapt(base, tmp_path / "conv1d", target_modules=["attn.c_proj"], noise=0.002)
    config = tmp_path / "conv1d" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": "olora"}))
    refused(AdapterError, "c_proj is a Conv1D, which olora initialises differently", base, tmp_path / "conv1d")


def test_shapes_show_the_orientation_in_an_unknown_family(tmp_path: Path) -> None:
    base, unknown = gpt2(tmp_path / "base"), tmp_path / "unknown"
    shutil.copytree(base, unknown)
    config = json.loads((unknown / "config.json").read_text()) | {"model_type": "nobody_knows", "architectures": None}
    (unknown / "config.json").write_text(json.dumps(config))
    oblong = adapt(base, tmp_path / "oblong", target_modules=["c_attn", "c_fc", "lm_head"])
    oblong.merge_and_unload().save_pretrained(tmp_path / "merged")
    extract(unknown, tmp_path / "oblong", tmp_path / "delta")
    require_equal(base, open_delta(tmp_path / "delta"), tmp_path / "merged")
    for targets in ([*CONV1D, "lm_head"], ["attn.c_proj"]):  # other shapes show it; only fan_in_fan_out states it
        adapt(base, tmp_path / "square", target_modules=targets)
        message = r"attn.c_proj.weight is square, \(32, 32\), nobody_knows is not a known model family"
        refused(AdapterError, message, unknown, tmp_path / "square")
