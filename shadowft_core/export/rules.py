"""The rules that an adapter folder must satisfy for vLLM to serve it, each with its source in vLLM's code or manual."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.files import read_json_object
from shadowft_core.limits import CONFIG_BYTES
from shadowft_core.weights import LAYERS, Checkpoint, open_checkpoint, open_safetensors
from shadowft_core.weights.entries import require_own_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # allowed values of --max-lora-rank: vllm/config/lora.py, MaxLoRARanks
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class _Adapter:
    """The facts about an adapter folder that the rules check."""

    config: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    files: set[str]
    instruct: Checkpoint
    max_rank: int

    def modules(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of A and B by module, for tensors with a valid name."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for key, shape in self.tensors.items():
            if match := _KEY.fullmatch(key):
                found.setdefault(match[1], {})[match[2]] = shape
        return found

    def stored(self, module: str) -> str:
        """The Instruct's tensor that holds the weight of a module."""
        return self.instruct.family.in_files(f"{module}.weight")


def lint(folder: Path, instruct: Path, max_rank: int = RANKS[-1]) -> list[str]:
    """Find what prevents vLLM from serving an adapter folder on this Instruct with this --max-lora-rank.

    Returns one line per broken rule: the rule, the value found, and the source of the rule. Raises CheckpointError when
    the folder is not a readable adapter.
    """
    require_own_files(folder)
    weights = open_safetensors(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else None
    adapter = _Adapter(
        config=read_json_object(folder / CONFIG, CONFIG_BYTES, finite=True),
        tensors={name: weights.info(name).shape for name in weights.names} if weights else {},
        files={path.name for path in folder.iterdir()},
        instruct=open_checkpoint(instruct),
        max_rank=max_rank,
    )
    return [f"{rule}: {found} ({source})" for rule, source, check in RULES if (found := check(adapter))]


def _weights(a: _Adapter) -> str:
    if odd := sorted(name for name in a.files if name.endswith((".bin", ".pt", ".pkl"))):
        return f"{odd[0]} is a pickle"
    return "" if a.tensors else f"no {WEIGHTS} with tensors in it"


def _required(a: _Adapter) -> str:
    missing = sorted({"r", "lora_alpha", "target_modules"} - set(a.config))
    return f"{', '.join(missing)} missing" if missing else ""


def _field(name: str, *allowed: Any) -> Callable[[_Adapter], str]:
    def check(a: _Adapter) -> str:
        value = a.config.get(name, allowed[0])
        return "" if value in allowed else f"{name} is {value!r:.80}"

    return check


def _rank(a: _Adapter) -> str:
    if a.max_rank not in RANKS:
        return f"--max-lora-rank {a.max_rank} is not one of {', '.join(map(str, RANKS))}"
    rank = a.config.get("r")
    ok = isinstance(rank, int) and not isinstance(rank, bool) and 0 < rank <= a.max_rank
    return "" if ok else f"r is {rank!r:.80}, the server accepts 1 to {a.max_rank}"


def _alpha(a: _Adapter) -> str:
    alpha = a.config.get("lora_alpha")
    ok = isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha) and alpha
    return "" if ok else f"lora_alpha is {alpha!r:.80}"


def _names(a: _Adapter) -> str:
    if odd := sorted(key for key in a.tensors if not _KEY.fullmatch(key)):
        return f"tensor {odd[0]} is not a LoRA factor of a linear layer"
    lone = sorted(module for module, factors in a.modules().items() if len(factors) != 2)
    return f"{lone[0]} has only one of its two factors" if lone else ""


def _layers(a: _Adapter) -> str:
    for module in sorted(a.modules()):
        if (kind := a.instruct.family.kind(a.stored(module))) not in LAYERS:
            return f"{module} is {of_kind(kind)}, not a linear layer"
    return ""


def of_kind(kind: str | None) -> str:
    return f"of kind `{kind}`" if kind else "of an unknown kind"


def _shapes(a: _Adapter) -> str:
    rank = a.config.get("r")
    for module, factors in sorted(a.modules().items()):
        name = a.stored(module)
        if name not in a.instruct:
            return f"{module} is not in {a.instruct.path}"
        outputs, inputs = layer_shape(a.instruct, name)
        found, expected = (factors.get("B"), factors.get("A")), ((outputs, rank), (rank, inputs))
        if found != expected:
            return f"{module} has B x A of {found}, rank and Instruct require {expected}"
    return ""


def layer_shape(model: Checkpoint, name: str) -> tuple[int, int]:
    """(outputs, inputs) of the layer that this tensor is the matrix of; a Conv1D stores it as (inputs, outputs)."""
    rows, columns = model.info(name).shape
    return (columns, rows) if model.family.kind(name) == "conv1d" else (rows, columns)


def _base(a: _Adapter) -> str:
    return "" if a.config.get("base_model_name_or_path") else "base_model_name_or_path is empty"


_HELPER = "vllm/lora/peft_helper.py, PEFTHelper"
RULES: list[tuple[str, str, Callable[[_Adapter], str]]] = [
    ("weights are safetensors", "vllm/lora/lora_model.py, from_local_checkpoint; pickles are never loaded", _weights),
    ("the adapter is LoRA", _HELPER, _field("peft_type", "LORA")),
    ("rank, alpha and targets are given", f"{_HELPER}.from_dict: required fields", _required),
    ("no module is saved whole", f"{_HELPER}: modules_to_save must be None", _field("modules_to_save", None, [])),
    ("no DoRA", f"{_HELPER}: use_dora is not supported", _field("use_dora", False)),
    ("no bias", f"{_HELPER}: bias is `none` only", _field("bias", "none")),
    ("rank within the server's limit", "vllm/config/lora.py, LoRAConfig.max_lora_rank, default 16", _rank),
    ("alpha is a number", f"{_HELPER}: scaling = lora_alpha / r", _alpha),
    ("one rank for all modules", f"{_HELPER} has no rank_pattern", _field("rank_pattern", None, {})),
    ("one alpha for all modules", f"{_HELPER} has no alpha_pattern", _field("alpha_pattern", None, {})),
    ("weights are not transposed", f"{_HELPER} has no fan_in_fan_out", _field("fan_in_fan_out", False)),
    ("tensor names", "vllm/lora/utils.py, parse_fine_tuned_lora_name", _names),
    ("target modules", "vllm/lora/lora_model.py, check_unexpected_modules; support for others varies", _layers),
    ("shapes", "vllm/lora/layers: A is [r, in], B is [out, r] of the served model's layer", _shapes),
    ("the Instruct is named", "docs.vllm.ai, features/lora: lineage by base_model_name_or_path", _base),
]
