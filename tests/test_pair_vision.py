"""sigma and config of models with a vision part."""

import json
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.pair import check_pair
from tests.fixtures.models import Pair, save_tokenizer, shifted, write_model
from tests.test_pair_sigma import F32, oracle, read, sampled


@pytest.fixture(scope="module")
def vision_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny vision-language pair whose vision part changed five times as much as its language model."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    pair = Pair(*(tmp_path_factory.mktemp("vision") / role for role in ("base", "instruct")))
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 4}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=vision)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(pair.base)
    shifted(pair.base, pair.instruct, 0.0005, seed=1)
    moved = read(pair.instruct)
    noise = np.random.default_rng(2)
    for name, array in moved.items():
        if name.startswith("visual."):
            moved[name] = (array.astype(F32) + 0.003 * noise.standard_normal(array.shape)).astype(array.dtype)
    (pair.instruct / "model.safetensors").unlink()
    from shadowft_core.weights import write_checkpoint

    write_checkpoint(pair.instruct, moved.items())
    save_tokenizer(pair.base, template=False)
    save_tokenizer(pair.instruct)
    return pair


def test_language_and_vision_are_reported_separately(vision_pair: Pair) -> None:
    base, instruct = read(vision_pair.base), read(vision_pair.instruct)
    eyes = [name for name in base if name.startswith("visual.")]
    text = [name for name in base if name not in eyes]
    assert len(eyes) > 20
    assert len(text) > 20
    sigma = check_pair(vision_pair.base, vision_pair.instruct)["sigma"]
    assert sigma["language"] == pytest.approx(oracle(base, instruct, *text), rel=1e-7)
    assert sigma["vision"]["overall"] == pytest.approx(oracle(base, instruct, *eyes), rel=1e-7)
    assert sigma["vision"]["overall"] > 2 * sigma["language"]
    assert sigma["overall"] == pytest.approx(oracle(base, instruct), rel=1e-7)
    first = [name for name in text if ".layers.0." in name]
    assert sigma["layers"]["0"] == pytest.approx(oracle(base, instruct, *first), rel=1e-7)
    first = [name for name in eyes if ".blocks.0." in name]
    assert sigma["vision"]["layers"]["0"] == pytest.approx(oracle(base, instruct, *first), rel=1e-7)
    assert "fc1" in sigma["vision"]["modules"]
    assert "fc1" not in sigma["modules"]
    figures = sampled(vision_pair, aggregations=True)["sigma"]["aggregations"]
    assert figures["ratio_over_language_model"]["value"] == pytest.approx(sigma["language"], rel=1e-7)
    assert figures["ratio_over_all_tensors"]["value"] == pytest.approx(sigma["overall"], rel=1e-7)


def test_settings_of_a_nested_language_model_are_read(vision_pair: Pair, tmp_path: Path) -> None:
    config = json.loads((vision_pair.base / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 8
    odd = write_model(tmp_path / "odd", read(vision_pair.base))
    (odd / "config.json").write_text(json.dumps(config))
    from shadowft_core.errors import PairError

    with pytest.raises(PairError, match="num_attention_heads is 8 in the Base, 4 in the Instruct"):
        check_pair(odd, vision_pair.instruct)
