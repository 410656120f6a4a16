"""Grafts of real model classes: they load like the Instruct, stay tied, and agree with PEFT."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.grafting import Options, graft, grafted_tensors
from shadowft_core.weights import open_checkpoint
from tests.fixtures.adapters import adapt
from tests.fixtures.models import (
    FAMILIES,
    Pair,
    load_model,
    make_pair,
    save_model,
    save_tokenizer,
    shifted,
    write_model,
    write_weights,
)
from tests.test_graft import F32, bits, tensors_of


def test_a_lora_graft_equals_peft(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapt(tiny_llama_pair.base, tmp_path / "adapter")
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "delta")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_pair.instruct, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, array in grafted_tensors(tiny_llama_pair.instruct, [(tmp_path / "delta", 1.0)], Options(dtype="float32")):
        np.testing.assert_allclose(array, merged[name].numpy(), atol=1e-6, rtol=0)


def test_the_lora_product_is_rounded_once_from_float64(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    adapt(tiny_llama_pair.base, tmp_path / "adapter", use_rslora=True)
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "delta")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{f}.weight"].astype(np.longdouble) for f in "AB")
    exact = (b @ a * (8 / np.sqrt(np.longdouble(4)))).astype(np.float32)
    np.testing.assert_array_equal(open_delta(tmp_path / "delta").read(f"{name}.weight"), exact)


LAYOUTS = [*((family, False) for family in FAMILIES), ("mixtral", True), ("qwen3_moe", True)]


@pytest.mark.parametrize(("family", "fused"), LAYOUTS)
def test_a_model_of_a_family_is_made_fast_and_reproducibly(tmp_path: Path, family: str, fused: bool) -> None:
    save_model(tmp_path / "one", family, fused=fused)  # the first also pays for imports
    start = time.process_time()
    save_model(tmp_path / "two", family, fused=fused)
    assert time.process_time() - start < 1
    save_model(tmp_path / "other", family, seed=1, fused=fused)
    one, two, other = (open_checkpoint(tmp_path / name).digest() for name in ("one", "two", "other"))
    assert one == two != other


@pytest.mark.parametrize(("family", "fused"), LAYOUTS)
def test_the_result_loads_like_the_instruct(tmp_path: Path, family: str, fused: bool) -> None:
    from transformers import AutoTokenizer

    pair = make_pair(tmp_path, family, tied=family.startswith("gemma"), fused=fused)
    generation = {"eos_token_id": [4, 1], "pad_token_id": 1, "temperature": 0.6, "do_sample": True}
    (pair.instruct / "generation_config.json").write_text(json.dumps(generation))
    shifted(pair.base, tmp_path / "tuned", 0.01, seed=3)
    extract(pair.base, tmp_path / "tuned", tmp_path / "delta")
    graft(pair.instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    model, said = load_model(tmp_path / "out")
    assert said == []
    assert (str(model.dtype), model.generation_config.temperature) == ("torch.bfloat16", 0.6)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "word3"}], tokenize=False)
    for file in pair.instruct.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    missing = tensors_of(tmp_path / "out")
    missing.pop(next(name for name in missing if "norm" in name))
    write_weights(tmp_path / "out", missing)
    assert load_model(tmp_path / "out")[1], "a missing tensor must give a warning"


@pytest.mark.parametrize("stored", [False, True], ids=["head absent", "head stored"])
def test_a_tied_model_stays_tied(tiny_llama_tied_pair: Pair, tmp_path: Path, stored: bool) -> None:
    from transformers import AutoModelForCausalLM

    pair, embedding = tiny_llama_tied_pair, "model.embed_tokens.weight"
    assert "lm_head.weight" not in open_checkpoint(pair.base)
    shifted(pair.base, tmp_path / "tuned", 0.01, seed=3)
    extract(pair.base, tmp_path / "tuned", tmp_path / "delta")
    instruct = pair.instruct
    if stored:
        own = tensors_of(instruct)
        config = json.loads((instruct / "config.json").read_text())
        instruct = write_model(tmp_path / "stored", own | {"lm_head.weight": own[embedding]}, **config)
        save_tokenizer(instruct)
    graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out")
    out = tensors_of(tmp_path / "out")
    assert ("lm_head.weight" in out) == stored
    assert bits({"w": out.get("lm_head.weight", out[embedding])}) == bits({"w": out[embedding]})
    assert bits({"w": out[embedding]}) != bits({"w": open_checkpoint(instruct).read(embedding)})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_another_dtype_is_written_and_recorded(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    pair = tiny_llama_pair
    shifted(pair.base, tmp_path / "tuned", 0.01, seed=3)
    extract(pair.base, tmp_path / "tuned", tmp_path / "delta")
    recipe = graft(pair.instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out", Options("linear", "float32"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (recipe["dtype"], str(model.dtype)) == ("float32", "torch.float32")
    assert {a.dtype for a in tensors_of(tmp_path / "out").values()} == {F32}
    name = "model.norm.weight"
    assert (tensors_of(tmp_path / "out")[name] == open_checkpoint(pair.instruct).read(name).astype(F32)).all()
