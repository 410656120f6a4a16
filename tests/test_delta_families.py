"""LoRA of families whose files differ from the loaded model: Base + delta equals PEFT's merged model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract
from shadowft_core.errors import AdapterError
from shadowft_core.grafting import Options, graft
from shadowft_core.weights import open_checkpoint
from tests.fixtures.adapters import adapt, load, refused
from tests.fixtures.families import MIXTURES, save_family
from tests.fixtures.vision import VISION, save_vision

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model.eval()(torch.arange(8, 32).reshape(2, 12)).logits.numpy()
    return found


def grafted(base: Path, adapter: Path) -> Path:
    """Base + delta, by `extract` and `graft`."""
    folder = adapter.parent
    extract(base, adapter, folder / "delta")
    graft(base, [(folder / "delta", 1.0)], folder / "grafted", Options(waivers=["onto-base"]))
    return folder / "grafted"


def require_merged(base: Path, adapter: Path, adapted: Any) -> None:
    """Require that Base + delta, loaded by transformers, equals PEFT's merge tensor by tensor, with none missing."""
    meant = logits(adapted)
    model, info = type(adapted.get_base_model()).from_pretrained(grafted(base, adapter), output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    before, merged = load_as(model, base).state_dict(), adapted.merge_and_unload().state_dict()
    moved = 0
    for name, tensor in model.state_dict().items():
        # PEFT sums in float32, this project in float64: weights below 1 differ by a few times 6e-8.
        np.testing.assert_allclose(tensor.numpy(), merged[name].numpy(), atol=1e-6, rtol=0, err_msg=name)
        moved += not np.array_equal(tensor.numpy(), before[name].numpy())
    assert moved
    np.testing.assert_allclose(logits(model), meant, atol=2e-5, rtol=0)


def load_as(model: Any, base: Path) -> Any:
    return type(model).from_pretrained(base)


@pytest.mark.parametrize("family", VISION)
def test_lora_of_a_vision_language_model_equals_the_merge(tmp_path: Path, family: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    base = save_vision(tmp_path / "base", family)
    assert any(name.startswith(("language_model.", "model.layers", "visual.")) for name in open_checkpoint(base).names)
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    )
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    for _ in range(2):
        tokens = torch.arange(8, 32).reshape(2, 12)
        # The vision tower gets no image here: an extra term changes its factors.
        loss = adapted(tokens, labels=tokens).loss + 0.1 * sum(parameter.mean() for parameter in trained)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path / "adapter")
    require_merged(base, tmp_path / "adapter", adapted)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("which", ["modules", "parameters"])
def test_lora_of_experts_equals_the_merge(tmp_path: Path, family: str, which: str) -> None:
    """Experts that are one parameter in memory are adapted as parameters, not as modules."""
    base = save_family(tmp_path / "base", family)
    up = "up_proj" if family == "nemotron_h" else "gate_up_proj"
    modules = MIXTURES[family].get("modules", SEVEN)
    settings = {"target_modules": modules} if which == "modules" else {"target_modules": modules[:1]}
    if which == "parameters":
        settings["target_parameters"] = [f"experts.{up}", "experts.down_proj"]
        settings["rank_pattern"] = {f".*{up}": 2}
    adapted = adapt(base, tmp_path / "adapter", **settings)
    experts = [name for name, _ in adapted.named_parameters() if ".experts." in name and "lora_" in name]
    assert bool(experts) == (which == "parameters")
    require_merged(base, tmp_path / "adapter", adapted)


@contextmanager
def older_peft(model: Any) -> Iterator[None]:
    """Inside, PEFT wraps experts as before 0.19: rows are inputs, whatever the class declares."""
    experts = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    said = [module.is_transposed for module in experts]
    assert experts
    for module in experts:
        module.is_transposed = True
    yield
    for module, was in zip(experts, said, strict=True):
        module.is_transposed = was


@pytest.mark.parametrize(("family", "square"), [("qwen2_moe", False), ("qwen2_moe", True), ("gpt_oss", True)])
def test_experts_saved_by_an_older_peft_equal_the_merge(tmp_path: Path, family: str, square: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    sizes = {"moe_intermediate_size": 16 if square else 24}  # gate_up_proj is (experts, 2 * 16, 32)
    base = save_family(tmp_path / "base", family, **(sizes if family == "qwen2_moe" else {}))
    model = load(base)
    parameter = "down_proj" if family == "gpt_oss" else "gate_up_proj"
    settings = LoraConfig(r=2, target_modules=[], target_parameters=[f"experts.{parameter}"])
    with older_peft(model):
        adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for tensor in adapted.parameters():
            if tensor.requires_grad:
                tensor.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    written = json.loads(config.read_text())
    assert written["peft_version"]
    if square:
        config.write_text(json.dumps({key: value for key, value in written.items() if key != "peft_version"}))
        refused(AdapterError, "is square, .*adapter_config.json has no peft_version; merge", base, tmp_path / "adapter")
    # A shape that is not square decides, whatever version the file has.
    config.write_text(json.dumps(written | ({"peft_version": "0.18.1"} if square else {})))
    require_merged(base, tmp_path / "adapter", adapted)


def test_columns_of_square_experts_are_inputs_since_peft_0_19(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "qwen2_moe", moe_intermediate_size=16)
    adapted = adapt(base, tmp_path / "adapter", target_modules=[], target_parameters=["experts.gate_up_proj"])
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_version": "0.19.0"}))
    require_merged(base, tmp_path / "adapter", adapted)


def test_a_single_expert_is_never_transposed(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base = save_family(tmp_path / "base", "qwen2_moe", num_experts=1, num_experts_per_tok=1, moe_intermediate_size=24)
    adapted = adapt(base, tmp_path / "adapter", target_modules=[], target_parameters=["experts.gate_up_proj"])
    require_merged(base, tmp_path / "adapter", adapted)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    held = {name: array.T.copy() for name, array in load_file(file).items()}
    swap = {"lora_A": "lora_B", "lora_B": "lora_A"}
    save_file({n.replace(f := n.split(".")[-2], swap[f]): a for n, a in held.items()}, file)
    refused(AdapterError, "neither its weight nor matching experts", base, tmp_path / "adapter")


def test_square_experts_are_read_like_other_experts_of_the_adapter(tmp_path: Path) -> None:
    """One class has one orientation: if gate_up_proj shows it, square down_proj has the same."""
    base = save_family(tmp_path / "base", "gpt_oss")
    settings = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    adapted = adapt(base, tmp_path / "adapter", **settings)
    config = tmp_path / "adapter" / "adapter_config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in written.items() if key != "peft_version"}))
    require_merged(base, tmp_path / "adapter", adapted)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_experts_that_were_modules_in_training_equal_the_merge(tmp_path: Path, family: str) -> None:
    """An older transformers had a linear layer per expert and matrix, with the names of the files."""
    from safetensors.numpy import load_file, save_file

    base = save_family(tmp_path / "base", family)
    matrices = ["w1", "w2", "w3"] if family == "mixtral" else ["gate_proj", "up_proj", "down_proj"]
    block = "block_sparse_moe" if family == "mixtral" else "mlp"
    adapt(base, tmp_path / "adapter", target_modules=["q_proj"])
    file, noise = tmp_path / "adapter" / "adapter_model.safetensors", np.random.default_rng(0)
    held, model = load_file(file), open_checkpoint(base)
    for name in model.names:
        if ".experts." in name:
            (rows, columns), key = model.info(name).shape, f"base_model.model.{name.removesuffix('.weight')}"
            for factor, shape in (("A", (4, columns)), ("B", (rows, 4))):
                held[f"{key}.lora_{factor}.weight"] = (0.1 * noise.standard_normal(shape)).astype(np.float32)
    save_file(held, file)
    config = tmp_path / "adapter" / "adapter_config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps(written | {"target_modules": rf".*(q_proj|experts\.\d+\.({'|'.join(matrices)}))"}))
    save_file({n: a for n, a in held.items() if f"layers.1.{block}.experts.2.{matrices[0]}" not in n}, file)
    refused(AdapterError, rf"experts\.2\.{matrices[0]} is targeted but has no factors", base, tmp_path / "adapter")
    save_file(held, file)
    result = open_checkpoint(grafted(base, tmp_path / "adapter"))
    for name in model.names:
        key = f"base_model.model.{name.removesuffix('.weight')}"
        delta = (
            2.0 * held[f"{key}.lora_B.weight"] @ held[f"{key}.lora_A.weight"] if f"{key}.lora_A.weight" in held else 0
        )
        np.testing.assert_allclose(result.read(name), model.read(name) + delta, atol=1e-6, rtol=0, err_msg=name)
