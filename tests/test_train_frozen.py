"""Frozen weights in 16 bits: the same losses and adapter as with float32 weights, in half of the memory."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from shadowft_core import loading
from shadowft_core.params import Lora
from shadowft_core.train import models
from shadowft_core.train.frozen import FrozenEmbedding, frozen_bytes_saved, keep_narrow, stored_dtype
from shadowft_core.train.methods import merged
from shadowft_core.weights import open_checkpoint
from tests.fixtures.families import TEXT, save_family
from tests.fixtures.training import SETTINGS, run, tree, word_tokenizer
from tests.fixtures.vision import save_vision

IDS = torch.arange(24).reshape(2, 12)
DENSE: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},  # linear layers with biases
    "gemma3_text": {},  # scales its embedding in the dtype of its weight
    "mixtral": {},  # experts
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1}
    | {"topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},  # saves a tensor in float32
}


@contextmanager
def wide() -> Iterator[None]:
    """Switches the narrow weights off: float32 copies, as the reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "keep_narrow", lambda *_: None)
        patch.setattr(models, "stored_dtype", lambda _: torch.float32)
        yield


def cast(place: Path, dtype: torch.dtype) -> None:
    model, _ = loading.load_model(AutoModelForCausalLM, place, dtype=dtype)
    model.save_pretrained(place)


def load(folder: Path, loader: Any = AutoModelForCausalLM, dtype: torch.dtype = torch.float32) -> Any:
    return loading.load_model(loader, folder, dtype=dtype)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "change", [{}, {"gradient_checkpointing": True}, {"lora": Lora(rank=8, alpha=16, dora=True)}], ids=str
)
def test_losses_and_adapter_have_the_bits_of_float32_weights(
    copied: Path, tmp_path: Path, dtype: torch.dtype, change: dict[str, Any]
) -> None:
    cast(copied / "base", dtype)
    assert stored_dtype(open_checkpoint(copied / "base")) == dtype
    settings = SETTINGS.model_copy(update={"max_steps": 4} | change)
    facts = run(copied, tmp_path / "narrow", settings)
    with wide():
        run(copied, tmp_path / "wide", settings)
    stored = open_checkpoint(copied / "base")
    linear = sum(stored.info(name).size for name in stored.names if len(stored.info(name).shape) == 2)
    assert facts["frozen_bytes_saved"] == (0 if dtype == torch.float32 else 2 * linear)
    one, other = tree(tmp_path / "narrow"), tree(tmp_path / "wide")
    assert set(one) == set(other)
    assert [name for name in one if one[name] != other[name] and name != "train.json"] == []
    compared = (json.loads(files["train.json"]) | {"frozen_bytes_saved": 0} for files in (one, other))
    assert len({json.dumps(each) for each in compared}) == 1


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("family", [*DENSE, "gemma3"])
def test_a_family_gives_the_same_logits_and_gradients(tmp_path: Path, family: str, autocast: bool) -> None:
    """With autocast too, as on CUDA. Buffers count: loading in 16 bits rounds Gemma's scale."""
    if family == "gemma3":
        loader, folder = AutoModelForImageTextToText, save_vision(tmp_path / "model", family)
    else:
        more = TEXT | DENSE[family] if family != "mixtral" else {}
        loader, folder = AutoModelForCausalLM, save_family(tmp_path / "model", family, **more)
    load(folder, loader, torch.bfloat16).save_pretrained(folder)
    results = []
    for narrow in (True, False):
        model = load(folder, loader, stored_dtype(open_checkpoint(folder)) if narrow else torch.float32)
        if narrow:
            keep_narrow(model)
            assert frozen_bytes_saved(model) > 0
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(input_ids=IDS, labels=IDS)
        out.loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((out.logits, grads, dict(model.named_buffers())))
    (logits, grads, buffers), (expected, others, constants) = results
    assert torch.equal(logits, expected)
    assert len(grads) == len(others) > 0
    for name, grad in grads.items():
        assert torch.equal(grad, others[name]), name
        assert grad.dtype == torch.float32
    assert all(torch.equal(buffers[name], value) for name, value in constants.items())


def test_backward_keeps_the_stored_weights_and_no_copy(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama", **TEXT | {"hidden_size": 128, "intermediate_size": 512})
    load(folder, dtype=torch.bfloat16).save_pretrained(folder)
    kept = []
    for narrow in (True, False):
        model = load(folder, dtype=torch.bfloat16 if narrow else torch.float32)
        if narrow:
            keep_narrow(model)
            less = frozen_bytes_saved(model)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        seen: dict[int, int] = {p.untyped_storage().data_ptr(): p.nbytes for p in model.parameters()}
        held = sum(seen.values())

        def pack(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(input_ids=IDS, labels=IDS).loss
        kept.append((held, sum(seen.values()) - held))
        del loss
    (weights, saved), (wide_weights, wide_saved) = kept
    assert wide_weights - weights == less > 0.45 * wide_weights
    assert saved <= wide_saved  # a cast copy that backward keeps would add twice what the weights save


def test_rows_that_change_and_whole_modules_stay_float32(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama", **TEXT)
    model = load(folder, dtype=torch.bfloat16)
    keep_narrow(model, excluded=["layers.1.mlp"], vocabulary=False)
    assert model.get_input_embeddings().weight.dtype == model.lm_head.weight.dtype == torch.float32
    assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert type(model.lm_head) is torch.nn.Linear
    assert not any(isinstance(module, FrozenEmbedding) for module in model.modules())


@pytest.mark.parametrize(
    ("change", "vocabulary", "wide"),
    [
        ({}, True, set()),
        ({}, False, {"embed_tokens"}),  # the tied head with it
        ({"lora": Lora(modules_to_save=("mlp.up_proj",))}, True, {"up_proj"}),
        ({"lora": Lora(modules_to_save=("lm_head",))}, True, {"embed_tokens"}),  # tied to it
        ({"method": "full"}, True, {"embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"method": "osf"}, True, {"embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
    ids=["nothing", "vocabulary", "up_proj", "lm_head", "full", "osf"],  # a set has another text in each process
)
def test_what_trains_or_changes_is_loaded_in_float32(
    copied: Path, change: dict[str, Any], vocabulary: bool, wide: set[str]
) -> None:
    """A step smaller than 2^-9 of a weight would be rounded away in bfloat16."""
    cast(copied / "base", torch.bfloat16)
    settings = SETTINGS.model_copy(update=change)
    checkpoint = open_checkpoint(copied / "base")
    network = models.load_to_train(checkpoint, word_tokenizer(), settings, False, vocabulary)
    dtypes = {(name.split(".")[-2], p.dtype) for name, p in network.named_parameters() if p.ndim == 2}
    assert {name for name, dtype in dtypes if dtype == torch.float32} == wide | (
        {"gate_proj", "up_proj", "down_proj"} if "method" in change else set()
    )
    assert len(dtypes) == 8


def test_an_adapter_is_merged_in_float32(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama", **TEXT)
    load(folder, dtype=torch.bfloat16).save_pretrained(folder)
    results = []
    for narrow in (True, False):
        model = load(folder, dtype=torch.bfloat16 if narrow else torch.float32)
        if narrow:
            keep_narrow(model)
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        results.append(merged(model).state_dict())
    one, other = results
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == torch.float32 for name in other)


def test_a_mixed_checkpoint_is_narrowed_where_no_bit_is_lost(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama", **TEXT)
    model = load(folder)
    up = model.model.layers[0].mlp.up_proj.weight
    up.data[:-1] = up.data[:-1].bfloat16().float()  # all rows but the last would survive
    model.model.layers[1].to(torch.bfloat16)
    model.save_pretrained(folder)
    assert stored_dtype(open_checkpoint(folder)) == torch.float32
    model = load(folder)
    keep_narrow(model)
    assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.model.layers[1].input_layernorm.weight.dtype == torch.float32
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, up)
