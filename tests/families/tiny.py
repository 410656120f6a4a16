"""Tiny seeded models of any class of transformers, from the default config of the class with every size shrunk."""

import re
from collections.abc import Mapping
from typing import Any

from tests.families import generate

LAYERS = 2
SIZES = (  # by the name of a field; the first match counts; other fields keep their defaults
    (r"type_vocab_size", None),
    (r"vocab_size(_per_layer_input)?$|group_vocab$|^num_embeddings$|codebook_size$", 64),
    (r"^first_k_dense_replace$|^num_dense_layers$|^n_group$|^topk_group$|^num_filters$", 1),
    (r"(layers|layer|depth|blocks)$", LAYERS),
    (r"(key_value|kv)_heads$|^num_key_value_groups$", 2),
    (r"(^|_)heads?$", 4),
    (r"head_dim$|^d_kv$|^kv_channels$|^dim_head$|lora_rank$|^v_head_dim$|^linear_(key|value)_head_dim$", 8),
    (r"experts?_per_tok(en)?$|^moe_topk$|^moe_k$", 2),
    (r"(^|_)experts$", 4),
    (r"ffn_dim$|intermediate_size|^d_ff$|^dff$|^n_inner$|^dim_ff$|mlp_dim$|ffn_hidden_size$|^ffn_dim", 48),
    (
        r"hidden_size|^d_model$|^n_embd$|embed_dim$|^dim$|hidden_dim$|projection_dim$|output_dim$|embed_proj_dim$|^emb_dim$",
        32,
    ),
    (
        r"^base_channels$|^adapter_(in|out)_dim$|^adapter_input_size$|^embedding_size$|input_dim$|_embed_dim$|feature_size$|_hidden_dimension$",
        32,
    ),
    (r"^image_size$|^crop_size$", 16),
    (r"(^|_)patch_size$", 4),
    (r"position_embeddings$|^n_positions$|^n_ctx$|^max_seq_len$|source_positions$|target_positions$", 64),
    (r"^(mamba_)?(d_state|state_size)$|^ssm_state_size$", 4),
)
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
SETTINGS: dict[str, dict[str, Any]] = {  # by model type, where sizes by name do not suffice
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "cosmos3_edge": {
        "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dots3_note": {"text_config": {"num_key_value_heads": 4}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [48, 24],
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
        }
    },
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64},
    "florence2": {
        "vision_config": {"embed_dim": [16, 16, 16, 32], "num_heads": [2] * 4, "num_groups": [2] * 4, "depths": [1] * 4}
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm5_next": {"text_config": {"num_key_value_heads": 4}},
    "granitemoehybrid": _MAMBA,
    "hunyuan_vl": {"vision_config": {"max_image_size": 64, "img_max_token_num": 16}},
    "inkling2": {"quantization_config": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"head_dim": 16},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "vibevoice_asr": {
        "acoustic_tokenizer_encoder_config": {"depths": [1] * 3, "downsampling_ratios": [2, 2]},
        "semantic_tokenizer_encoder_config": {"depths": [1] * 3, "downsampling_ratios": [2, 2]},
    },
    "xlnet": {"d_head": 8},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "hybrid"] * 3},
}
_TOKEN = re.compile(r"token(_id|_index)?$|_id$|_token_ids$|_token_index$")


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a config to be given so that a model of its class is small; parts within likewise."""
    found: dict[str, Any] = {}
    layers = next(
        (v for k in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(v := vars(config).get(k), int)), 0
    )
    for field, value in vars(config).items():
        if hasattr(value, "sub_configs"):
            found[field] = {"model_type": value.model_type} | settings_of(value)
        elif isinstance(value, list | tuple) and layers > LAYERS and len(value) == layers:
            found[field] = _every_kind(value)
        elif _TOKEN.search(field) and not isinstance(value, bool):
            found[field] = _small(value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            size = next((size for pattern, size in SIZES if re.search(pattern, field)), None)
            if size is not None and size < value:
                found[field] = size
    return found


def _every_kind(values: Any) -> list[Any]:
    """One value for each of LAYERS layers, with as many different values as fit."""
    kinds = [value for number, value in enumerate(values) if value not in values[:number]]
    return [*kinds, *values][:LAYERS] if len(kinds) > 1 else list(values[:LAYERS])


def _small(token: Any) -> Any:
    if isinstance(token, list | tuple):
        return [_small(one) for one in token]
    return token % 60 if isinstance(token, int) and token >= 60 else token


def config_of(model_type: str, **more: Any) -> Any:
    """The config of a tiny model of a type; `more` overrides."""
    import transformers

    kind = transformers.CONFIG_MAPPING[model_type]
    whole = generate.SETTINGS.get(model_type, {})
    for settings in (settings_of(kind.from_dict(dict(whole))), SETTINGS.get(model_type, {}), more):
        whole = _merged(whole, settings)
    return kind.from_dict(whole)


def _merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(settings)
    for key, value in more.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return both
