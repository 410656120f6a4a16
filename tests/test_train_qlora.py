"""QLoRA on the CPU, with the kernels of bitsandbytes (extra `gpu`). Without it, only the refusal is tested."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shadowft_core.delta import extract, require_extractable
from shadowft_core.errors import TrainError
from shadowft_core.params import Lora, Train
from shadowft_core.train import train
from tests.fixtures.training import SETTINGS, run, tree, word_tokenizer

MISSING = importlib.util.find_spec("bitsandbytes") is None
needs_bitsandbytes = pytest.mark.skipif(MISSING, reason="bitsandbytes is not installed (extra gpu)")
QLORA = SETTINGS.model_copy(update={"method": "qlora", "max_steps": 12})


@pytest.mark.skipif(not MISSING, reason="bitsandbytes is installed")
@pytest.mark.parametrize("changes", [{"method": "qlora"}])
def test_without_bitsandbytes_it_is_refused_before_anything_is_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    missing = tmp_path / "missing"
    message = r"train\.method is qlora, which needs bitsandbytes; install it: pip install 'shadowft\[gpu\]'"
    with pytest.raises(TrainError, match=message):
        train(missing, missing, missing, Train.model_validate(changes), tmp_path / "out")


@needs_bitsandbytes
def test_it_learns_repeats_and_hands_over_a_float32_adapter(place: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        train(place / "base", place / "instruct", place / "data", QLORA, tmp_path / name, require_extractable)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    facts = json.loads((tmp_path / "one/train.json").read_text())
    assert facts["last_loss"] < 0.8 * facts["first_loss"]
    assert "bitsandbytes" in facts["versions"]
    factors = load_file(tmp_path / "one/adapter/adapter_model.safetensors")
    assert {str(factor.dtype) for factor in factors.values()} == {"float32"}
    wide = [name for name, f in factors.items() if (f.view(np.uint32) & 0xFFFF).any()]
    assert len(wide) == len(factors) == 28, "not rounded to bfloat16, as TRL would"
    found = extract(place / "base", tmp_path / "one", tmp_path / "delta")
    assert (found["kind"], found["tensors"]) == ("lora", {"factors": 14})
    plain = run(place, tmp_path / "lora", QLORA.model_copy(update={"method": "lora"}))
    assert plain["first_loss"] != facts["first_loss"], "the frozen layers are held in 4 bits"


@needs_bitsandbytes
def test_the_frozen_layers_are_nf4_with_double_quantisation(place: Path) -> None:
    """Evaluation does not change them: on some CPUs bitsandbytes would repack them with rounded scales."""
    import bitsandbytes
    import torch

    from shadowft_core.train.methods import with_method
    from shadowft_core.train.models import load_model

    network = with_method(load_model(place / "base", word_tokenizer(), params=QLORA), QLORA)
    held = [module for module in network.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(held) == 14
    assert {(m.weight.quant_type, m.weight.dtype, m.weight.quant_state.nested) for m in held} == {
        ("nf4", torch.uint8, True)
    }
    assert network.get_output_embeddings().weight.dtype == torch.float32
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        training = network.train()(input_ids=ids).logits
        assert torch.equal(network.eval()(input_ids=ids).logits, training)
        assert torch.equal(network.train()(input_ids=ids).logits, training)


@needs_bitsandbytes
def test_dora_and_named_targets_train_in_4_bits(place: Path, tmp_path: Path) -> None:
    settings = QLORA.model_copy(update={"lora": Lora(rank=4, alpha=8, dora=True, targets=("q_proj", "down_proj"))})
    train(place / "base", place / "instruct", place / "data", settings, tmp_path / "out", require_extractable)
    assert extract(place / "base", tmp_path / "out", tmp_path / "delta")["tensors"] == {"frames": 4}
