"""adapter_config.json of a PEFT LoRA adapter: what it adapts, how strongly, and the settings that are refused."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shadowft_core.errors import AdapterError
from shadowft_core.files import read_json_object

MERGE = "merge the adapter into the Base (PEFT merge_and_unload, float32) and pass the merged checkpoint"
CONVERT = "save it with path_initial_model_for_weight_conversion, or merge it where it was trained, in float32"
_RETRAIN = "this setting has no equivalent weight delta; train LoRA without it"

# Methods that PEFT cannot merge either: prompts, key-value caches, and changes that depend on the input.
_UNMERGED = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"),
    *("XLORA", "POLY", "LILY", "SHADOW"),
}
_NO_WEIGHTS = {"alora_invocation_tokens", "arrow_config", "layer_replication"}
# Fields that are handled here or do not affect the weights. Any other field must have its neutral value.
_KNOWN = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters", "lora_dropout", "task_type"),
    *("init_lora_weights", "eva_config", "use_dora", "bias", "lora_bias", "fan_in_fan_out", "modules_to_save"),
    *("trainable_token_indices", "ensure_weight_tying", "inference_mode", "auto_mapping", "runtime_config"),
    *("base_model_name_or_path", "revision", "peft_version"),
}
EMBEDDING = "the input embedding"
_NEUTRAL = {"megatron_core": "megatron.core", "qalora_group_size": 16}
_BASE_KEPT = (True, False, "gaussian", "eva", "orthogonal", "mica")  # initialisations that do not change the Base


class Settings:
    """The checked config. Raises AdapterError naming the file, the field, its value and the remedy.

    `biased` means that every layer to which the adapter adds a bias has one in the Base, so that PEFT can merge it.
    """

    def __init__(self, path: Path, biased: bool = True) -> None:
        self.path = path
        self._config = config = read_json_object(path)
        method = config.get("peft_type")
        if method != "LORA":
            remedy = _RETRAIN if method in _UNMERGED or (method == "BEFT" and not biased) else MERGE
            raise AdapterError(f"{path}: peft_type={method!r}, expected LORA; {remedy}")
        for field, value in sorted(config.items()):
            if field not in _KNOWN and value and value != _NEUTRAL.get(field):
                remedy = _RETRAIN if field in _NO_WEIGHTS else MERGE
                raise AdapterError(f"{path}: {field}={value!r} has no exact delta here; {remedy}")
        self._require_types()
        self.dora = bool(config.get("use_dora"))
        self.transposed = bool(config.get("fan_in_fan_out"))
        """whether the last layer that PEFT wrapped has its weight stored (inputs, outputs), as in Conv1D"""
        self.bias: str = config.get("bias") or "none"
        self.lora_bias = bool(config.get("lora_bias"))
        self.tied_training = bool(config.get("ensure_weight_tying"))
        self.modules_to_save: list[str] = config.get("modules_to_save") or []
        self.initialisation = config.get("init_lora_weights", True)
        self.initial, self.iterations = self._moved_base()
        """"pissa", "olora" or None; subspace iterations of PiSSA's fast form, None for the exact one"""

    def _moved_base(self) -> tuple[str | None, int | None]:
        value = self.initialisation
        if value in _BASE_KEPT:
            return None, None
        if value == "pissa" or (isinstance(value, str) and re.fullmatch(r"pissa_niter_\d+", value)):
            return "pissa", None if value == "pissa" else int(value.rpartition("_")[2])
        if value == "olora":
            return "olora", None
        # CorDA and LoRA-GA changed the Base by factors computed from data; LoftQ replaced it by its quantised form.
        remedy = MERGE.replace("merge the", "where it was trained, merge the") if value == "loftq" else CONVERT
        raise AdapterError(
            f"{self.path}: init_lora_weights={value!r} changed the Base by initialisation state that was not saved; "
            f"{remedy}"
        )

    def _require_types(self) -> None:
        """Require the types that PEFT writes: a string in place of a list would match letter by letter."""
        config = self._config

        def refuse(field: str, expected: str) -> AdapterError:
            return AdapterError(
                f"{self.path}: {field}={config.get(field)!r}, expected {expected}; save the adapter again"
            )

        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        for field, values in (("r", [config.get("r")]), ("rank_pattern", ranks.values())):
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise refuse(field, "a positive integer")
        for field, values in (("lora_alpha", [config.get("lora_alpha")]), ("alpha_pattern", alphas.values())):
            if not all(isinstance(value, int | float) and value > 0 for value in values):
                raise refuse(field, "a positive number")
        if config.get("bias") not in (None, "none", "all", "lora_only"):
            raise refuse("bias", "none, all or lora_only")
        for field in ("modules_to_save", "target_parameters"):
            if not all(isinstance(name, str) for name in config.get(field) or ()) or isinstance(config.get(field), str):
                raise refuse(field, "a list of names")
        for indices in self.token_rows.values():
            if not isinstance(indices, list) or not all(isinstance(index, int) for index in indices):
                raise refuse("trainable_token_indices", "a list of token ids")
        for field in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
            value = config.get(field) or ()
            for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else ():
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise AdapterError(
                        f"{self.path}: {field}: pattern {pattern!r}: {error}; save the adapter again"
                    ) from None

    def targets(self, module: str) -> bool:
        """Whether PEFT adapts this module (tuners_utils.check_target_module_exists)."""
        targets, excluded = self._config.get("target_modules"), self._config.get("exclude_modules")
        if matches(excluded, module) or self.saves(module):
            return False
        if targets == "all-linear":
            return not module.endswith(("embed_tokens", "lm_head"))
        if isinstance(targets, str) or not matches(targets, module):
            return isinstance(targets, str) and matches(targets, module)
        layers = self._config.get("layers_to_transform")
        chosen = [layers] if isinstance(layers, int) else layers
        return not chosen or self._layer(module) in chosen

    def _layer(self, module: str) -> int | None:
        patterns = self._config.get("layers_pattern") or []
        named = [rf"(?:^|.*?\.){pattern}" for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
        matched = (re.match(rf"{pattern}\.(\d+)\.", module) for pattern in named or [r".*?\.[^.]*"])
        return next((int(found[1]) for found in matched if found), None)

    def targets_parameter(self, name: str) -> bool:
        """Whether PEFT adapts this parameter itself (tuners_utils._inject_parameters)."""
        return matches(self._config.get("target_parameters"), name)

    def parameters_of(self, module: str) -> list[str]:
        """Last words of the names of a module's parameters that PEFT adapts, in the order in which it wraps them: for
        experts, the inner matrices first."""
        last = {name.rpartition(".")[2] for name in self._config.get("target_parameters") or ()}
        return sorted(
            (name for name in last if self.targets_parameter(f"{module}.{name}")), key=lambda n: (n[:4] == "down", n)
        )

    @property
    def peft(self) -> tuple[int, ...] | None:
        """Major and minor version of the PEFT that saved the adapter; None if not recorded (before 0.18)."""
        found = re.match(r"(\d+)\.(\d+)", str(self._config.get("peft_version") or ""))
        return tuple(map(int, found.groups())) if found else None

    @property
    def task(self) -> str | None:
        return self._config.get("task_type")

    def saves(self, module: str) -> bool:
        """Whether this module, or one that holds it, was trained as a whole (utils.other._set_trainable)."""
        steps = module.split(".")
        holders = [".".join(steps[: number + 1]) for number in range(len(steps))]
        return any(holder.endswith(saved) for holder in holders for saved in self.modules_to_save)

    @property
    def token_rows(self) -> dict[str, list[int]]:
        """For each module: ids of the tokens whose rows were trained, in the order in which the rows are saved.

        A plain list belongs to the input embedding, whatever its name; its key here is EMBEDDING.
        """
        found = self._config.get("trainable_token_indices") or {}
        return found if isinstance(found, dict) else {EMBEDDING: found}

    def rank_and_scaling(self, key: str, held: int | None = None) -> tuple[int, float]:
        """Rank and scaling of a module or parameter: alpha/rank (Hu et al. 2021), or alpha/sqrt(rank) (rsLoRA,
        Kalajdzievski 2023).

        Training used the first matching pattern as written, but PEFT saves the patterns sorted. If several match and
        differ, the rank is that of the factors, `held`. The alpha is recorded nowhere else, so AdapterError is raised.
        """
        ranks = _pattern(self._config.get("rank_pattern"), key, self._config["r"])
        alphas = _pattern(self._config.get("alpha_pattern"), key, self._config["lora_alpha"])
        if len(set(alphas.values())) > 1:
            odd = " and ".join(f"{pattern!r}: {alpha}" for pattern, alpha in alphas.items())
            raise AdapterError(
                f"{self.path}: alpha_pattern has {odd} for {key}; training used the one written first, but PEFT saved "
                "them sorted; remove all but the one that training used"
            )
        rank = next((rank for rank in ranks.values() if rank == held), next(iter(ranks.values())))
        alpha = next(iter(alphas.values()))
        return rank, alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


def matches(patterns: str | Iterable[str] | None, module: str) -> bool:
    """Match a module as PEFT does: a string is a regular expression for the whole name, a list has name suffixes."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == pattern or module.endswith(f".{pattern}") for pattern in patterns or ())


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> dict[str, Any]:
    """The values of all patterns that match the end of the module's name, by pattern; else the default.

    Patterns match as in PEFT (utils.other.get_pattern_key).
    """
    found = {key: value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)}
    return found or {"": default}
