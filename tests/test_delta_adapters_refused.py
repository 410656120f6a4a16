"""Adapters that cannot become an exact delta are refused in one line that names file, field, value and remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import (
    AdapterError,
    DeltaError,
    NotFiniteError,
    QuantisedError,
    ShapeMismatchError,
    UnrelatedError,
)
from shadowft_core.weights import open_checkpoint
from tests.fixtures.adapters import adapt, load, refused
from tests.fixtures.models import Pair, write_model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "corda"}, "init_lora_weights='corda' changed the Base.*path_initial_model"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' changed the Base.*where it was trained, merge"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga' changed the Base"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config=.*merge the adapter into the Base"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens=\[1\] has no exact delta here; this setting"),
        ({"layer_replication": [[0, 2]]}, "layer_replication=.*train LoRA without it"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type='PREFIX_TUNING', expected LORA; this setting has no equivalent"),
        ({"r": 0}, "r: Input should be greater than or equal to 1, found 0"),
        ({"lora_alpha": "8"}, "lora_alpha: Input should be a valid number, found '8'"),
        ({"rank_pattern": {"q_proj": 2.5}}, r"rank_pattern\.q_proj: Input should be a valid integer, found 2\.5"),
        ({"modules_to_save": "lm_head"}, "modules_to_save: Input should be a valid list, found 'lm_head'"),
        ({"trainable_token_indices": {"embed_tokens": 3}}, "trainable_token_indices.*: Input should be a valid list"),
        ({"bias": "some"}, "bias: Input should be 'none', 'all' or 'lora_only', found 'some'"),
        ({"target_modules": "(q_proj"}, r"target_modules: pattern '\(q_proj'"),
        ({"rank_pattern": {"(q_proj": 4}}, r"pattern '\(q_proj'"),
        (
            {"alpha_pattern": {"0.self_attn.q_proj": 2, "q_proj": 9}},
            "alpha_pattern has .*: 2 and 'q_proj': 9 for model",
        ),
        ({"use_dora": True}, "use_dora=True, yet .* has no lora_magnitude_vector"),
        ({"lora_bias": True}, "lora_bias=True, yet .* has no lora_B.bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight was trained according to .*is missing"),
        ({"trainable_token_indices": [3]}, "the trained rows of the input embedding are missing"),
        ({"target_modules": ["up_proj"]}, "q_proj has factors, but adapter_config.json does not target it"),
        ({"target_modules": ["q_proj", "up_proj", "o_proj"]}, "o_proj is targeted but has no factors"),
        ({"target_parameters": ["self_attn.k_proj.weight"]}, "k_proj is targeted but has no factors"),
    ],
)
def test_an_unsupported_config_is_refused(
    tiny_llama_pair: Pair, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """Edited configs that need data, a quantiser or tensors that the folder does not hold."""
    adapt(tiny_llama_pair.base, tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | settings))
    refused(AdapterError, f"adapter.*: .*{message}", tiny_llama_pair.base, tmp_path / "adapter")


def test_the_bias_of_a_config_must_be_in_the_file(family_pair: Callable[..., Pair], tmp_path: Path) -> None:
    base = family_pair("qwen2").base
    adapt(base, tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for bias in ("all", "lora_only"):
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"bias": bias}))
        refused(AdapterError, "proj.bias was trained according to .*is missing", base, tmp_path / "adapter")


def test_a_quantised_base_is_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    adapt(tiny_llama_pair.base, tmp_path / "adapter", use_dora=True, target_modules=["q_proj"])
    model, name = open_checkpoint(tiny_llama_pair.base), "model.layers.0.self_attn.q_proj.weight"
    held = {n: model.read(n) for n in model.names}
    write_model(tmp_path / "named", held, quantization_config={"quant_method": "bitsandbytes"})
    refused(
        QuantisedError, r"named: .*\(bitsandbytes\); pass the dequantised", tmp_path / "named", tmp_path / "adapter"
    )
    held[name] = held[name].astype(ml_dtypes.float8_e4m3fn)
    write_model(tmp_path / "fp8", held)
    refused(QuantisedError, f"{name} is F8_E4M3, .*dequantised", tmp_path / "fp8", tmp_path / "adapter")


def test_a_resized_vocabulary_is_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load(tiny_llama_pair.base)
    model.resize_token_embeddings(70)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    refused(ShapeMismatchError, r"\(70, 32\), .*\(64, 32\); pass the Base", tiny_llama_pair.base, tmp_path / "adapter")


def test_a_tensor_that_the_base_lacks_is_named(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.numpy import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    base, adapter = tiny_llama_pair.base, tmp_path / "adapter"
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"])).save_pretrained(adapter)
    refused(AdapterError, r"score.weight belongs to the head of a SEQ_CLS model, .*CAUSAL_LM", base, adapter)
    adapt(base, adapter, target_modules=["q_proj"])
    file, whole = adapter / "adapter_model.safetensors", load_file(adapter / "adapter_model.safetensors")
    save_file(whole | {"base_model.model.v_head.weight": np.ones((1, 32), np.float32)}, file)
    refused(AdapterError, "v_head.weight is v_head.weight, .*added for the training cannot be", base, adapter)
    for part in ("lora_A", "lora_B"):
        save_file({name.replace(part, f"{part}.my_run"): array for name, array in whole.items()}, file)
        refused(
            AdapterError, rf"{part}.my_run.weight contains the adapter's name, my_run, .*save_pretrained", base, adapter
        )
    adapt(base, adapter, target_modules=["q_proj"], lora_bias=True)
    refused(AdapterError, r"lora_B.bias is the bias of a layer that has none.*train without lora_bias", base, adapter)


def unmerged() -> list[tuple[str, dict[str, object]]]:
    """Settings for every tuner of PEFT that adapts a tiny Llama, by its type."""
    target = {"target_modules": ["q_proj"]}
    return [
        *((name, target) for name in ("ADALORA", "BOFT", "LOHA", "LOKR", "VERA", "RANDLORA", "HIRA", "LILY", "BEFT")),
        *((name, target) for name in ("OFT", "HRA", "C3A", "ROAD", "SHIRA", "GRALORA", "DELORA", "MISS", "FOURIERFT")),
        ("LN_TUNING", {"target_modules": ["input_layernorm"]}),
        ("IA3", target | {"feedforward_modules": []}),
        *((name, {"num_virtual_tokens": 2}) for name in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")),
        ("SHADOW", {}),
    ]


@pytest.mark.parametrize(("method", "settings"), unmerged())
def test_the_remedy_is_a_merge_only_where_peft_can_merge(
    tiny_llama_pair: Pair, tmp_path: Path, method: str, settings: dict[str, object]
) -> None:
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    more = {"ADALORA": {"total_step": 10}, "BOFT": {"boft_block_size": 4}, "C3A": {"block_size": 4}}.get(method, {})
    more |= {"ROAD": {"group_size": 8}, "SHIRA": {"r": 2}, "MISS": {"r": 4}}.get(method, {})
    more |= {"OFT": {"oft_block_size": 4}, "FOURIERFT": {"n_frequency": 8}}.get(method, {})
    config = PEFT_TYPE_TO_CONFIG_MAPPING[method](task_type="CAUSAL_LM", **settings, **more)
    adapted = get_peft_model(load(tiny_llama_pair.base), config)
    adapted.save_pretrained(tmp_path / "adapter")
    try:
        adapted.merge_and_unload()
        merges = True
    except (AttributeError, NotImplementedError, ValueError):
        merges = False
    remedy = "merge the adapter into the Base" if merges else "this setting has no equivalent weight delta"
    refused(AdapterError, f"peft_type='{method}', expected LORA; {remedy}", tiny_llama_pair.base, tmp_path / "adapter")
    assert merges == (method not in {"LILY", "BEFT", "SHADOW", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"})


def test_an_incomplete_or_foreign_adapter_is_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base, adapter = tiny_llama_pair.base, tmp_path / "adapter"
    adapt(base, adapter, target_modules=["q_proj", "up_proj"])
    file, whole = adapter / "adapter_model.safetensors", load_file(adapter / "adapter_model.safetensors")

    def only(keep: Callable[[str], bool]) -> None:
        save_file({n: a for n, a in whole.items() if keep(n)}, file)

    only(lambda n: "layers.1.mlp.up_proj" not in n)
    refused(AdapterError, "layers.1.mlp.up_proj is targeted but has no factors", base, adapter)
    only(lambda n: "layers.1.mlp.up_proj.lora_A" not in n)
    refused(AdapterError, "layers.1.mlp.up_proj has only factor B", base, adapter)
    save_file({n.replace("layers.1", "layers.7"): a for n, a in whole.items()}, file)
    refused(AdapterError, "layers.7.*has neither its weight nor matching experts", base, adapter)
    save_file({n: a[:-1] if n.endswith("0.mlp.up_proj.lora_B.weight") else a for n, a in whole.items()}, file)
    refused(AdapterError, r"\(47, 4\) x \(4, 32\)", base, adapter)
    for wrapper, inner in (("_orig_mod.", ""), ("module.", ""), ("", "_orig_mod.")):  # torch.compile, parallel training
        save_file({wrapper + n.replace("layers.", f"layers.{inner}"): a for n, a in whole.items()}, file)
        refused(AdapterError, f"{wrapper or inner}.* (was wrapped by|was saved).* from the names", base, adapter)
    save_file({n: np.zeros(0, np.float32) for n in whole}, file)
    refused(AdapterError, "is empty, as ZeRO-3 leaves it; gather the weights", base, adapter)
    save_file({n: a * np.float32(0) if "lora_B" in n else a for n, a in whole.items()}, file)
    refused(DeltaError, "zero in every tensor", base, adapter)
    save_file({n: a * np.float32("nan") for n, a in whole.items()}, file)
    refused(DeltaError, "NaN or infinity", base, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {"(q_proj": 4}}))
    refused(AdapterError, "pattern '\\(q_proj'", base, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    file.rename(adapter / "adapter_model.bin")
    refused(AdapterError, "no adapter_model.safetensors", base, adapter)


@pytest.mark.parametrize(
    ("version", "family", "why"),
    [
        ("0.21.2", "nobody_knows", "nobody_knows is not a known model family"),
        (None, "nobody_knows", "adapter_config.json has no peft_version"),
        (None, "qwen3_moe", "adapter_config.json has no peft_version"),
    ],
)
def test_square_experts_need_a_known_orientation(
    family_pair: Callable[..., Pair], tmp_path: Path, version: str | None, family: str, why: str
) -> None:
    base = family_pair("qwen3_moe").base
    adapt(base, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"])
    held = {name: tensor.numpy().copy() for name, tensor in load(base).state_dict().items()}
    write_model(tmp_path / "fused", held, model_type=family)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_version": version}))
    message = rf"gate_up_proj is square, \(3, 32, 32\), .* which axis is the input: {why}; merge"
    refused(AdapterError, message, tmp_path / "fused", tmp_path / "adapter")


def test_a_module_of_another_model_is_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    adapt(tiny_llama_pair.base, tmp_path / "adapter", modules_to_save=["lm_head"], target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    held = load_file(file)
    held["base_model.model.lm_head.weight"] = held["base_model.model.lm_head.weight"][::-1].copy()
    save_file(held, file)
    refused(
        UnrelatedError,
        "difference. of tensor lm_head.weight is 1.* of .weights.",
        tiny_llama_pair.base,
        tmp_path / "adapter",
    )


@pytest.mark.parametrize("indices", [[3, 3], [64, 3], [-1, 3], [3]])
def test_trained_rows_must_be_rows_of_the_embedding(tiny_llama_pair: Pair, tmp_path: Path, indices: list[int]) -> None:
    base, adapter = tiny_llama_pair.base, tmp_path / "adapter"
    adapt(base, adapter, target_modules=["q_proj"], trainable_token_indices=[3, 4])
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"trainable_token_indices": indices}))
    refused(
        AdapterError,
        r"names (token -?\d+ twice or outside of the 64 rows|1 rows of \(64, 32\))",
        tiny_llama_pair.base,
        tmp_path / "adapter",
    )


def test_the_remedy_for_a_refused_adapter_works(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    import torch
    from peft import IA3Config, get_peft_model

    base = tiny_llama_pair.base
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    adapted = get_peft_model(load(base), config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.constant_(parameter, 1.25)
    adapted.save_pretrained(tmp_path / "adapter")
    refused(AdapterError, "peft_type='IA3', expected LORA; merge the adapter into", base, tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    extract(base, tmp_path / "merged", tmp_path / "delta")
    delta, before = open_delta(tmp_path / "delta"), open_checkpoint(base)
    assert delta.names == [name for name in before.names if name.endswith("k_proj.weight")]
    for name in delta.names:
        np.testing.assert_array_equal(delta.read(name), before.read(name).astype(np.float32) * np.float32(0.25))


def test_a_damaged_adapter_leaves_nothing_behind_with_lowrank(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    adapt(tiny_llama_pair.base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "adapter" / "adapter_model.safetensors"
    held = load_file(file)
    held["base_model.model.lm_head.weight"][3, 3] = np.inf
    save_file(held, file)
    with pytest.raises(NotFiniteError, match=r"lm_head\.weight"):
        extract(tiny_llama_pair.base, tmp_path / "adapter", tmp_path / "delta", lowrank=0.1)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}
