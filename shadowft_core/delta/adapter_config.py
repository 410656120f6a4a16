"""The typed fields of adapter_config.json, of a PEFT LoRA adapter."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from shadowft_core.files import Fields
from shadowft_core.limits import ADAPTER_NAMES, ADAPTER_RANK

Rank = Annotated[int, Field(ge=1, le=ADAPTER_RANK)]
Alpha = Annotated[float, Field(gt=0)]
Layer = Annotated[int, Field(ge=0)]
Names = list[str] | str | None
"""a list of name endings, or one regular expression"""
Few = Annotated[list[str], Field(max_length=ADAPTER_NAMES)]


class AdapterConfig(Fields):
    """The fields that an exact delta depends on, and those that do not affect the weights (`JsonValue`)."""

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    use_rslora: bool | None = None
    use_dora: bool | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: list[Layer] | Layer | None = None
    layers_pattern: Few | str | None = None
    target_parameters: Few | None = None
    modules_to_save: Few | None = None
    trainable_token_indices: list[int] | Annotated[dict[str, list[int]], Field(max_length=ADAPTER_NAMES)] | None = None
    ensure_weight_tying: bool | None = None
    fan_in_fan_out: bool | None = None
    bias: Literal["none", "all", "lora_only"] | None = None
    lora_bias: bool | None = None
    init_lora_weights: bool | str = True
    task_type: str | None = None
    peft_version: str | None = None
    base_model_name_or_path: JsonValue = None
    revision: JsonValue = None
    lora_dropout: JsonValue = None
    eva_config: JsonValue = None
    inference_mode: JsonValue = None
    auto_mapping: JsonValue = None
    runtime_config: JsonValue = None

    def patterns(self) -> list[tuple[str, str]]:
        """Every regular expression that is matched against module names, as (field, expression)."""
        found: list[tuple[str, str]] = []
        for field in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
            held: Any = getattr(self, field)
            if isinstance(held, str):
                found.append((field, held))
            elif isinstance(held, dict) or field == "layers_pattern":
                found += [(field, pattern) for pattern in held or ()]
        return found
