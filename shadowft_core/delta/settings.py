"""adapter_config.json of a PEFT LoRA adapter: what it adapts, how strongly, and the settings that are refused."""

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from shadowft_core.delta.adapter_config import AdapterConfig
from shadowft_core.delta.format import LARGEST
from shadowft_core.delta.patterns import Patterns
from shadowft_core.errors import AdapterError
from shadowft_core.files import read_json_object
from shadowft_core.files.record import check_record
from shadowft_core.limits import CONFIG_BYTES

MERGE = "merge the adapter into the Base (PEFT merge_and_unload, float32) and pass the merged checkpoint"
CONVERT = "save it with path_initial_model_for_weight_conversion, or merge it where it was trained, in float32"
_RETRAIN = "this setting has no equivalent weight delta; train LoRA without it"

# Methods that PEFT cannot merge either: prompts, key-value caches, and changes that depend on the input.
_UNMERGED = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"),
    *("XLORA", "POLY", "LILY", "SHADOW"),
}
_NO_WEIGHTS = {"alora_invocation_tokens", "arrow_config", "layer_replication"}
V = TypeVar("V")
EMBEDDING = "the input embedding"
_NEUTRAL = {"megatron_core": "megatron.core", "qalora_group_size": 16}
_BASE_KEPT = (True, False, "gaussian", "eva", "orthogonal", "mica")  # initialisations that do not change the Base


class Settings:
    """The checked config. Raises AdapterError naming the file, the field, its value and the remedy.

    `biased` means that every layer to which the adapter adds a bias has one in the Base, so that PEFT can merge it.
    """

    def __init__(self, path: Path, biased: bool = True) -> None:
        self.path = path
        config = read_json_object(path, CONFIG_BYTES, finite=True)
        method = config.get("peft_type")
        if method != "LORA":
            remedy = _RETRAIN if str(method) in _UNMERGED or (method == "BEFT" and not biased) else MERGE
            raise AdapterError(f"{path}: peft_type={method!r:.80}, expected LORA; {remedy}")
        for field, value in sorted(config.items()):
            if field not in AdapterConfig.model_fields and value and value != _NEUTRAL.get(field):
                remedy = _RETRAIN if field in _NO_WEIGHTS else MERGE
                raise AdapterError(f"{path}: {field:.80}={value!r:.80} has no exact delta here; {remedy}")
        self._config = found = check_record(config, AdapterConfig, path, "save the adapter again", error=AdapterError)
        self._patterns = Patterns(path)
        for field, pattern in found.patterns():
            self._patterns.check(field, pattern)
        self._targets, self._excluded, self._parameters = (
            names if isinstance(names, str) else frozenset(names or ())
            for names in (found.target_modules, found.exclude_modules, found.target_parameters)
        )
        self.dora = bool(found.use_dora)
        self.transposed = bool(found.fan_in_fan_out)
        """whether the last layer that PEFT wrapped has its weight stored (inputs, outputs), as in Conv1D"""
        self.bias: str = found.bias or "none"
        self.lora_bias = bool(found.lora_bias)
        self.tied_training = bool(found.ensure_weight_tying)
        self.modules_to_save: list[str] = found.modules_to_save or []
        self.initialisation = found.init_lora_weights
        self.initial, self.iterations = self._moved_base()
        """"pissa", "olora" or None; subspace iterations of PiSSA's fast form, None for the exact one"""

    def _moved_base(self) -> tuple[str | None, int | None]:
        value = self.initialisation
        if value in _BASE_KEPT:
            return None, None
        if value == "pissa" or (isinstance(value, str) and re.fullmatch(r"pissa_niter_[0-9]{1,4}", value)):
            return "pissa", None if value == "pissa" else int(value.rpartition("_")[2])
        if value == "olora":
            return "olora", None
        # CorDA and LoRA-GA changed the Base by factors computed from data; LoftQ replaced it by its quantised form.
        remedy = MERGE.replace("merge the", "where it was trained, merge the") if value == "loftq" else CONVERT
        raise AdapterError(
            f"{self.path}: init_lora_weights={value!r:.80} changed the Base by initialisation state that was not "
            f"saved; {remedy}"
        )

    def targets(self, module: str) -> bool:
        """Whether PEFT adapts this module (tuners_utils.check_target_module_exists)."""
        targets = self._targets
        if self._matches(self._excluded, module) or self.saves(module):
            return False
        if targets == "all-linear":
            return not module.endswith(("embed_tokens", "lm_head"))
        if isinstance(targets, str) or not self._matches(targets, module):
            return isinstance(targets, str) and self._matches(targets, module)
        layers = self._config.layers_to_transform
        chosen = [layers] if isinstance(layers, int) else layers
        return not chosen or self._layer(module) in chosen

    def _matches(self, names: str | frozenset[str], module: str) -> bool:
        """As `ends_in`, or a regular expression for the whole name, as in PEFT."""
        return self._patterns.matches(names, module) is not None if isinstance(names, str) else ends_in(names, module)

    def _layer(self, module: str) -> int | None:
        named = self._config.layers_pattern or []
        around = r"(?:|.*?\.){}\.(?P<idx>\d+)\..*" if named else r".*?\.{}\.(?P<idx>\d+)\..*"
        patterns = [named] if isinstance(named, str) else named or [r"[^.]*"]
        matched = (self._patterns.matches(pattern, module, around) for pattern in patterns)
        return next((int(found["idx"]) for found in matched if found), None)

    def targets_parameter(self, name: str) -> bool:
        """Whether PEFT adapts this parameter itself (tuners_utils._inject_parameters)."""
        return self._matches(self._parameters, name)

    def parameters_of(self, module: str) -> list[str]:
        """Last words of the names of a module's parameters that PEFT adapts, in the order in which it wraps them: for
        experts, the inner matrices first."""
        last = {name.rpartition(".")[2] for name in self._parameters}
        return sorted(
            (name for name in last if self.targets_parameter(f"{module}.{name}")), key=lambda n: (n[:4] == "down", n)
        )

    @property
    def peft(self) -> tuple[int, ...] | None:
        """Major and minor version of the PEFT that saved the adapter; None if not recorded (before 0.18)."""
        found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", self._config.peft_version or "")
        return tuple(map(int, found.groups())) if found else None

    @property
    def task(self) -> str | None:
        return self._config.task_type

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
        found = self._config.trainable_token_indices or {}
        return found if isinstance(found, dict) else {EMBEDDING: found}

    def rank_and_scaling(self, key: str, held: int | None = None) -> tuple[int, float]:
        """Rank and scaling of a module or parameter: alpha/rank (Hu et al. 2021), or alpha/sqrt(rank) (rsLoRA,
        Kalajdzievski 2023).

        Training used the first matching pattern as written, but PEFT saves the patterns sorted. If several match and
        differ, the rank is that of the factors, `held`. The alpha is recorded nowhere else, so AdapterError is raised.
        """
        ranks = self._by_pattern(self._config.rank_pattern, key, self._config.r)
        alphas = self._by_pattern(self._config.alpha_pattern, key, self._config.lora_alpha)
        if len(set(alphas.values())) > 1:
            odd = " and ".join(f"{pattern!r:.80}: {alpha:g}" for pattern, alpha in alphas.items())
            raise AdapterError(
                f"{self.path}: alpha_pattern has {odd} for {key}; training used the one written first, but PEFT saved "
                "them sorted; remove all but the one that training used"
            )
        rank = next((rank for rank in ranks.values() if rank == held), next(iter(ranks.values())))
        scaling = next(iter(alphas.values())) / (math.sqrt(rank) if self._config.use_rslora else rank)
        if not scaling <= LARGEST:
            raise AdapterError(f"{self.path}: scaling of {key} is {scaling:g}, more than float32 holds; {_RETRAIN}")
        return rank, scaling

    def _by_pattern(self, patterns: dict[str, V] | None, module: str, default: V) -> dict[str, V]:
        """The values of all patterns that match the end of the module's name, by pattern; else the default.

        Patterns match as in PEFT (utils.other.get_pattern_key).
        """
        held = (patterns or {}).items()
        return {key: value for key, value in held if self._patterns.matches(key, module, r"(.*\.)?({})")} or {
            "": default
        }


def ends_in(names: Collection[str], module: str) -> bool:
    """Whether a module has one of the names, or ends in a dot and one, as PEFT takes a list."""
    steps = module.split(".")
    return any(".".join(steps[number:]) in names for number in range(len(steps)))
