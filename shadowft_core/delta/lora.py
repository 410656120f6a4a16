"""A plain LoRA adapter becomes a `lora` delta; every other adapter is refused by name."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.checkpoint import (
    FLOATS,
    Checkpoint,
    build_header,
    open_safetensors,
    read_json_object,
    write_safetensors,
)
from shadowft_core.delta.folder import FACTORS, rounded
from shadowft_core.errors import AdapterError, NotFinite, Quantised, ZeroDelta

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MERGE = "merge the adapter into the Base (PEFT merge_and_unload, float32) and pass the merged checkpoint"
# Fields of an adapter config that leave the delta `scaling * B A`. Any other field must be at its neutral value.
_PLAIN = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "lora_dropout", "init_lora_weights", "task_type", "inference_mode", "auto_mapping"),
    *("base_model_name_or_path", "revision", "peft_version", "runtime_config"),
}
_NEUTRAL = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16}


def extract_lora(before: Checkpoint, source: Path, folder: Path) -> dict[str, Any]:
    config = _plain_config(source / ADAPTER_CONFIG)
    if not (source / ADAPTER_WEIGHTS).is_file():
        raise AdapterError(f"{source}: no {ADAPTER_WEIGHTS}; save the adapter with safe_serialization")
    weights = open_safetensors(source / ADAPTER_WEIGHTS)
    factors: dict[str, dict[str, str]] = {}
    for key in weights.names:
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise AdapterError(f"{source}: tensor {key} is no LoRA factor of a linear layer; {_MERGE}")
        factors.setdefault(match[1], {})[match[2]] = key
    targeted = {
        name.removesuffix(".weight")
        for name in before.names
        if name.endswith(".weight") and len(before.info(name).shape) == 2 and _targets(config, name[: -len(".weight")])
    }
    if missing := sorted(targeted - set(factors)):
        raise AdapterError(
            f"{source}: {missing[0]} is targeted but has no factors; the file is incomplete, save it again"
        )
    arrays: dict[str, np.ndarray] = {}
    entries: dict[str, Any] = {}
    for module, keys in sorted(factors.items()):
        name = f"{module}.weight"
        if set(keys) != {"A", "B"}:
            raise AdapterError(
                f"{source}: {module} has only factor {next(iter(keys))}; the file is incomplete, save it again"
            )
        if name not in before:
            raise AdapterError(
                f"{source}: adapts {name}, which {before.path} does not hold; pass the model it was trained on"
            )
        a, b = (_float32(weights, keys[factor]) for factor in "AB")
        rank = _pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        shape = before.info(name).shape
        if (a.shape, b.shape) != ((rank, shape[-1]), (shape[0], rank)) or len(shape) != 2:
            raise AdapterError(
                f"{source}: factors of {module} are {b.shape} x {a.shape}, rank {rank} and the tensor want "
                f"{(shape[0], rank)} x {(rank, shape[-1])}; pass the model it was trained on"
            )
        require_float(before, name)
        norm = math.sqrt(max(0.0, float(np.sum((b.T.astype(np.float64) @ b) * (a.astype(np.float64) @ a.T)))))
        scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        arrays |= {f"{name}.lora_A": a, f"{name}.lora_B": b}
        entries[name] = {
            "shape": list(shape),
            "form": "factors",
            "rank": rank,
            "scaling": scaling,
            "norm": rounded(norm * abs(scaling)),
        }
    if not any(entry["norm"] for entry in entries.values()):
        raise ZeroDelta(f"{source}: the delta is zero in every tensor; train with a higher rate or more steps")
    header = build_header({name: ("F32", array.shape) for name, array in arrays.items()})
    digests = write_safetensors(folder / FACTORS, header, lambda name: iter([arrays[name].reshape(-1)]))
    for name, entry in entries.items():
        entry |= {"digest_a": digests[f"{name}.lora_A"], "digest_b": digests[f"{name}.lora_B"]}
    return entries


def _plain_config(path: Path) -> dict[str, Any]:
    """The adapter's config. Raises AdapterError naming the first feature that makes it more than plain LoRA."""
    config = read_json_object(path)
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {config.get('peft_type')!r}, only LORA is additive; {_MERGE}")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise AdapterError(f"{path}: init_lora_weights={config['init_lora_weights']!r} alters the Base; {_MERGE}")
    for field, value in sorted(config.items()):
        if field not in _PLAIN and value and value != _NEUTRAL.get(field):
            raise AdapterError(f"{path}: {field}={value!r} is not plain LoRA; {_MERGE}")
    numbers = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    if not all(isinstance(value, int | float) and value > 0 for value in numbers.values()):
        raise AdapterError(f"{path}: {numbers}; positive numbers are wanted, save the adapter again")
    patterns = [config.get("target_modules"), config.get("exclude_modules")]
    for pattern in (*patterns, *(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())):
        try:
            re.compile(pattern if isinstance(pattern, str) else "")
        except re.error as error:
            raise AdapterError(f"{path}: pattern {pattern!r}: {error}; save the adapter again") from None
    return config


def _targets(config: dict[str, Any], module: str) -> bool:
    """Whether PEFT adapts this linear module (tuners_utils.check_target_module_exists)."""
    if _matches(config.get("exclude_modules"), module):
        return False
    targets = config.get("target_modules")
    if targets == "all-linear":
        return not module.endswith(("embed_tokens", "lm_head"))
    return _matches(targets, module)


def _matches(patterns: str | list[str] | None, module: str) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == pattern or module.endswith(f".{pattern}") for pattern in patterns or ())


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The value for a module: of the first pattern that ends its name, as in PEFT (utils.other.get_pattern_key)."""
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _float32(weights: Checkpoint, name: str) -> np.ndarray:
    require_float(weights, name)
    array = weights.read(name).astype(np.float32)
    if not np.isfinite(array).all():
        raise NotFinite(f"{weights.info(name).file}: tensor {name} holds NaN or infinity; the training diverged")
    return array


def require_float(model: Checkpoint, name: str) -> None:
    info = model.info(name)
    if info.dtype not in FLOATS:
        raise Quantised(
            f"{info.file}: tensor {name} is {info.dtype}, one of {', '.join(FLOATS)} is wanted; dequantise it"
        )
