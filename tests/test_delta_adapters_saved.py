"""Effects of PEFT's save_pretrained: a module in several copies, and patterns in another order."""

from pathlib import Path

import numpy as np

from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import AdapterError, WrongBaseError
from tests.fixtures.adapters import adapt, load, refused
from tests.fixtures.models import Pair
from tests.test_delta_adapters import logits, tuned


def test_a_module_saved_in_three_copies_counts_once(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    """PEFT saves trained and untouched copies of a wrapped embedding if the vocabulary was resized, or on demand."""
    from safetensors.numpy import load_file, save_file

    base, adapter = tiny_llama_pair.base, tmp_path / "adapter"
    model = adapt(base, adapter, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    model.save_pretrained(adapter, save_embedding_layers=True)
    file, saved = adapter / "adapter_model.safetensors", load_file(adapter / "adapter_model.safetensors")
    head = "base_model.model.lm_head"
    assert {f"{head}.{copy}weight" for copy in ("", "modules_to_save.", "original_module.")} <= saved.keys()
    want = logits(model)
    extract(base, adapter, tmp_path / "delta")
    assert np.abs(logits(load(tuned(base, open_delta(tmp_path / "delta"), tmp_path / "tuned"))) - want).max() < 1e-6
    for copy, kind, message in (
        ("modules_to_save", AdapterError, "are copies of one tensor and differ"),
        ("original_module", WrongBaseError, "lm_head.weight before the training and differs"),
    ):
        name = f"{head}.{copy}.weight"
        save_file(saved | {name: saved[name] + np.float32(1)}, file)
        refused(kind, message, base, adapter)


def test_the_factors_decide_between_several_rank_patterns(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    """Training uses the first pattern as written; PEFT saves them sorted, and cannot load this adapter itself."""
    patterns = {"q_proj": 2, "0.self_attn.q_proj": 6}
    model = adapt(tiny_llama_pair.base, tmp_path / "adapter", target_modules=["q_proj"], rank_pattern=patterns)
    want = logits(model)
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "delta")
    ours = tuned(tiny_llama_pair.base, open_delta(tmp_path / "delta"), tmp_path / "tuned")
    assert np.abs(logits(load(ours)) - want).max() < 1e-6
