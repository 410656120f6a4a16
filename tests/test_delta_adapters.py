"""Adapters of every kind that PEFT saves: the delta equals PEFT's own merge, or the adapter is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shadowft_core.delta import Delta, extract, open_delta
from shadowft_core.errors import AdapterError, UnrelatedError
from shadowft_core.weights import open_checkpoint, write_checkpoint
from tests.fixtures.adapters import adapt, load, refused
from tests.fixtures.models import Pair, write_model

# PEFT computes in float32, this project in float64: a value of size 1 differs by a few times 6e-8. The fixtures'
# weights are at most 1, a delta is around 1e-2.
CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 0}


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model(torch.arange(24).reshape(2, 12)).logits.numpy()
    return found


def tuned(base: Path, delta: Delta, out: Path) -> Path:
    """Base + delta in float32, as a model folder."""
    model = open_checkpoint(base)
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"))
    whole = {name: model.read(name).astype(np.float32) for name in model.names}
    write_checkpoint(out, ((n, w + delta.read(n) if n in delta.names else w) for n, w in whole.items()))
    return out


def require_equal(base: Path, delta: Delta, merged: Path) -> None:
    """Require that the delta has the tensors that PEFT's merge changes, and the same change of each."""
    before, after = open_checkpoint(base), open_checkpoint(merged)
    for name in before.names:
        moved = after.read(name).astype(np.float32) - before.read(name).astype(np.float32)
        ours = delta.read(name) if name in delta.names else np.zeros(moved.shape, np.float32)
        np.testing.assert_allclose(ours, moved, err_msg=name, **CLOSE)
        assert (name in delta.names) == bool(np.abs(moved).max() > 0), name
        if name in delta.names:
            assert delta.certificate["tensors"][name]["norm"] == pytest.approx(np.linalg.norm(ours), rel=1e-4)


PISSA = {"init_lora_weights": "pissa", "noise": 0.002}
CASES: list[tuple[str, str, dict[str, Any]]] = [  # family, kind of the delta, settings
    ("llama", "lora", {}),
    ("llama", "lora", {"use_rslora": True}),
    ("llama", "lora", {"target_modules": ["q_proj", "down_proj"]}),
    ("llama", "lora", {"target_modules": r".*\.layers\.1\..*_proj"}),
    ("llama", "lora", {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6}, "alpha_pattern": {"q_proj": 3}}),
    ("llama", "lora", {"exclude_modules": ["o_proj"], "target_modules": ["q_proj", "o_proj"]}),
    ("llama", "lora", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]}),
    ("llama", "lora", {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"}),
    ("llama", "lora", {"target_modules": [], "target_parameters": ["q_proj.weight", "mlp.up_proj.weight"]}),
    ("llama", "lora", {"target_modules": ["embed_tokens", "q_proj", "lm_head"], "rank_pattern": {"embed_tokens": 3}}),
    *(("llama", "lora", {"init_lora_weights": init}) for init in ("gaussian", "orthogonal", "mica")),
    ("llama", "lora", PISSA),
    ("llama", "lora", PISSA | {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}),
    ("llama", "lora", {"init_lora_weights": "olora", "noise": 0.002}),
    ("llama", "dense", PISSA | {"use_dora": True}),
    ("llama", "dense", PISSA | {"target_modules": ["q_proj", "lm_head"]}),
    ("llama", "dense", {"use_dora": True}),
    ("llama", "dense", {"use_dora": True, "target_modules": ["embed_tokens", "o_proj", "lm_head"]}),
    ("llama", "dense", {"modules_to_save": ["lm_head", "norm"]}),
    ("llama", "dense", {"trainable_token_indices": [7, 3]}),
    ("llama", "dense", {"trainable_token_indices": {"embed_tokens": [63, 0], "lm_head": [5]}}),
    ("qwen2", "dense", {"bias": "all", "target_modules": ["q_proj", "up_proj"]}),
    ("qwen2", "dense", {"bias": "lora_only", "target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    ("qwen2", "dense", {"lora_bias": True, "bias": "lora_only", "target_modules": ["q_proj", "v_proj"]}),
    ("phi3", "lora", {}),
    ("qwen3_moe", "lora", {}),
    ("mixtral", "lora", {}),
    (
        "mixtral",
        "lora",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"], "rank_pattern": {"down_proj": 3}},
    ),
]


@pytest.mark.parametrize(("family", "kind", "settings"), CASES)
def test_the_delta_equals_the_merge_of_peft(
    family_pair: Callable[..., Pair], tmp_path: Path, family: str, kind: str, settings: dict[str, Any]
) -> None:
    base = family_pair(family).base
    adapted = adapt(base, tmp_path / "adapter", **settings)
    meant = logits(adapted)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    extract(base, tmp_path / "adapter", tmp_path / "delta")
    delta = open_delta(tmp_path / "delta")
    assert delta.kind == kind
    require_equal(base, delta, tmp_path / "merged")
    # Logits are around 0.3; two layers of float32 sums in another order differ by about 1e-6.
    np.testing.assert_allclose(logits(load(tuned(base, delta, tmp_path / "tuned"))), meant, atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_initial_factors_are_recomputed_as_by_peft(tiny_llama_pair: Pair, tmp_path: Path, init: str) -> None:
    """The delta equals what PEFT loads from a saved PiSSA adapter, and PEFT's own conversion to plain LoRA."""
    from peft import PeftModel

    base, first, second = tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "converted"
    trained = adapt(base, first, init_lora_weights=init, noise=0.002)
    loaded = PeftModel.from_pretrained(load(base), first)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapt(base, tmp_path / "start", init_lora_weights=init, noise=0.0)
    config = json.loads((tmp_path / "start" / "adapter_config.json").read_text())
    (tmp_path / "start" / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": True}))
    trained.save_pretrained(second, path_initial_model_for_weight_conversion=tmp_path / "start")
    for number, adapter in enumerate((first, second)):
        extract(base, adapter, tmp_path / f"delta{number}")
        require_equal(base, open_delta(tmp_path / f"delta{number}"), tmp_path / "merged")


def with_gap(base: Path, out: Path, size: float) -> Path:
    """The Base, with matrices of four large singular values, `size` times the others."""
    model, noise = open_checkpoint(base), np.random.default_rng(5)
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"))

    def lifted(name: str) -> np.ndarray:
        array = model.read(name).astype(np.float32)
        if array.ndim == 2:
            a, b = np.linalg.qr(noise.standard_normal((array.shape[0], 4)))[0], noise.standard_normal((4, len(array.T)))
            array = array + size * a.astype(np.float32) @ b.astype(np.float32)
        return array

    write_checkpoint(out, ((name, lifted(name)) for name in model.names))
    return out


def test_fast_pissa_is_accepted_where_its_iterations_converged(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    """It starts from unsaved random numbers, so it is repeatable only with a clear gap in the singular values."""
    settings: dict[str, Any] = {"init_lora_weights": "pissa_niter_8", "target_modules": ["q_proj"], "noise": 0.002}
    clear, adapter = with_gap(tiny_llama_pair.base, tmp_path / "clear", 0.3), tmp_path / "adapter"
    adapt(clear, adapter, **settings).merge_and_unload().save_pretrained(tmp_path / "merged")
    extract(clear, adapter, tmp_path / "delta")
    require_equal(clear, open_delta(tmp_path / "delta"), tmp_path / "merged")
    settings |= {"init_lora_weights": "pissa_niter_2"}
    adapt(tiny_llama_pair.base, tmp_path / "vague", **settings)
    refused(
        AdapterError,
        r"adapter_config.json: init_lora_weights='pissa_niter_2': .* start of .*q_proj.weight only .*values 4 and 5.*"
        "save it with path_initial_model_for_weight_conversion",
        tiny_llama_pair.base,
        tmp_path / "vague",
    )


def test_pissa_on_another_base_is_refused(family_pair: Callable[..., Pair], tmp_path: Path) -> None:
    adapt(family_pair("llama").base, tmp_path / "adapter", init_lora_weights="pissa", noise=0.002)
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    unnamed = settings | {"base_model_name_or_path": "someone/base"}  # a folder that exists would be compared before
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(unnamed))
    other = family_pair("mistral").base
    model = open_checkpoint(other)
    turned = {n: model.read(n)[::-1].copy() if model.info(n).shape else model.read(n) for n in model.names}
    shutil.copytree(other, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    write_checkpoint(tmp_path / "other", turned.items())
    refused(UnrelatedError, "from the initial ones of", tmp_path / "other", tmp_path / "adapter")


TIED: list[dict[str, Any]] = [
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"modules_to_save": ["embed_tokens"]},
    {"modules_to_save": ["embed_tokens"], "use_dora": True},
]


@pytest.mark.parametrize("settings", TIED)
def test_tied_weights_must_have_equal_changes(
    tiny_llama_tied_pair: Pair, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The oracle is the adapted model itself: PEFT's merge adds the factors of tied layers twice to their tensor."""
    base = tiny_llama_tied_pair.base
    settings = {"target_modules": ["q_proj"]} | settings
    together = adapt(base, tmp_path / "together", ensure_weight_tying=True, **settings)
    extract(base, tmp_path / "together", tmp_path / "delta")
    delta = open_delta(tmp_path / "delta")
    assert "model.embed_tokens.weight" in delta.names
    assert "lm_head.weight" not in delta.names
    np.testing.assert_allclose(
        logits(load(tuned(base, delta, tmp_path / "tuned"))), logits(together), atol=1e-5, rtol=0
    )
    adapt(base, tmp_path / "apart", **settings)
    refused(AdapterError, "ties lm_head.weight to .*trained them separately; train with", base, tmp_path / "apart")


def test_trained_rows_of_a_tied_embedding_also_change_the_head(tiny_llama_tied_pair: Pair, tmp_path: Path) -> None:
    base = tiny_llama_tied_pair.base
    adapted = adapt(base, tmp_path / "adapter", trainable_token_indices=[3, 4], target_modules=["q_proj"])
    extract(base, tmp_path / "adapter", tmp_path / "delta")
    delta = open_delta(tmp_path / "delta")
    np.testing.assert_allclose(logits(load(tuned(base, delta, tmp_path / "tuned"))), logits(adapted), atol=1e-5, rtol=0)
    apart = {"embed_tokens": [3], "lm_head": [4]}
    adapt(base, tmp_path / "apart", trainable_token_indices=apart, target_modules=["q_proj"])
    refused(AdapterError, "the adapter trained them separately", base, tmp_path / "apart")
    touched = np.flatnonzero(np.abs(delta.read("model.embed_tokens.weight")).max(axis=1))
    assert touched.tolist() == [3, 4]


def test_experts_in_one_tensor_get_a_dense_delta(family_pair: Callable[..., Pair], tmp_path: Path) -> None:
    """Some folders hold fused experts, as the loaded model does: its state dict is Base and oracle."""
    base, fused = family_pair("mixtral").base, tmp_path / "fused"
    held = {name: tensor.numpy().copy() for name, tensor in load(base).state_dict().items()}
    write_model(fused, held)
    assert held["model.layers.0.mlp.experts.gate_up_proj"].shape == (3, 96, 32)
    adapted = adapt(base, tmp_path / "adapter")
    extract(fused, tmp_path / "adapter", tmp_path / "delta")
    delta = open_delta(tmp_path / "delta")
    assert {delta.certificate["tensors"][name]["form"] for name in delta.names} == {"factors", "frames"}
    for name, tensor in adapted.merge_and_unload().state_dict().items():
        if name in delta.names:
            np.testing.assert_allclose(delta.read(name), tensor.numpy() - held[name], err_msg=name, **CLOSE)
    moved = {n for n in held if n.endswith("_proj") or ".self_attn.q_proj" in n}
    assert moved <= set(delta.names)


def test_factors_are_stored_exactly(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    adapt(tiny_llama_pair.base, tmp_path / "run" / "adapter", modules_to_save=["lm_head"])
    extract(tiny_llama_pair.base, tmp_path / "run", tmp_path / "delta")
    before = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    after = load_file(tmp_path / "delta" / "factors.safetensors")
    factors = {name: array for name, array in before.items() if ".lora_" in name}
    for name, array in factors.items():
        module, factor, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        np.testing.assert_array_equal(after[f"{module}.weight.{factor}"], array)
    assert len(after) == len(factors)
    head = open_delta(tmp_path / "delta").read("lm_head.weight")
    trained = before["base_model.model.lm_head.weight"]
    np.testing.assert_array_equal(head, trained - open_checkpoint(tiny_llama_pair.base).read("lm_head.weight"))


@pytest.mark.parametrize("lowrank", [None, 0.3])
def test_a_delta_of_several_forms_is_grafted_as_one(
    tiny_llama_pair: Pair, tmp_path: Path, lowrank: float | None
) -> None:
    from shadowft_core.grafting import graft

    adapt(tiny_llama_pair.base, tmp_path / "adapter", noise=0.005, modules_to_save=["lm_head", "norm"], r=2)
    extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "delta", lowrank=lowrank)
    delta, before = open_delta(tmp_path / "delta"), open_checkpoint(tiny_llama_pair.instruct)
    assert {entry["form"] for entry in delta.certificate["tensors"].values()} == {"factors", "frames"}
    graft(tiny_llama_pair.instruct, [(tmp_path / "delta", 0.5)], tmp_path / "grafted")
    after = open_checkpoint(tmp_path / "grafted")
    for name in before.names:
        expected = before.read(name).astype(np.float32)
        if name in delta.names:
            expected += np.float32(0.5) * delta.read(name)
        np.testing.assert_array_equal(after.read(name), expected.astype(after.read(name).dtype), err_msg=name)


def test_a_rescaled_weight_is_rounded_once(tmp_path: Path) -> None:
    """DoRA on weights near 1: two roundings to float32 would leave errors of 6e-8, hundreds of units of a delta."""
    rng, name = np.random.default_rng(0), "model.layers.0.self_attn.q_proj"
    weight = rng.uniform(0.5, 1.5, (48, 32)).astype(np.float32)
    a, b = (1e-3 * rng.standard_normal(shape).astype(np.float32) for shape in ((4, 32), (48, 4)))
    magnitude = np.linalg.norm(weight, axis=1).astype(np.float32) * np.float32(1.0001)
    base = write_model(tmp_path / "base", {f"{name}.weight": weight})
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj"]}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    factors = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector": magnitude}
    whole = {f"base_model.model.{name}.{factor}": array for factor, array in factors.items()}
    save_file(whole, tmp_path / "adapter/adapter_model.safetensors")
    extract(base, tmp_path / "adapter", tmp_path / "delta", "float32")
    moved = weight.astype(np.float64) + 2 * b.astype(np.float64) @ a.astype(np.float64)
    exact = magnitude[:, None] / np.linalg.norm(moved, axis=1, keepdims=True) * moved - weight
    assert np.abs(exact).max() < 1e-3
    found = open_delta(tmp_path / "delta").read(f"{name}.weight")
    np.testing.assert_allclose(found, exact, rtol=2**-23, atol=1e-14)
