"""The adapters that are tried, a row each: on which tiny model, made by which settings of PEFT, and what must come out.

An outcome is EXACT, Base and delta equal PEFT's own merge, or a regular expression of the one line that refuses.
"""

from typing import Any, NamedTuple

EXACT = "exact"
MERGE = r"no exact delta here; merge the adapter into the Base|expected LORA; merge the adapter into the Base"
RETRAIN = r"this setting has no equivalent weight delta; train LoRA without it"
APART = (
    "ties .*, the adapter trained them separately; train with ensure_weight_tying=True, or merge it into an untied Base"
)
UNHEARD = "ties .*, the adapter trained them separately; merge it where it was trained, into an untied Base"
"""PEFT applies ensure_weight_tying only to an embedding called embed_tokens"""


class Row(NamedTuple):
    family: str
    what: str
    outcome: str
    settings: dict[str, Any]
    """of the tuner's config, besides its rank"""
    tuner: str = "Lora"
    model: dict[str, Any] = {}  # noqa: RUF012
    """of the tiny model's config"""
    limit: float = 1e-6
    """largest difference, as a share of the largest change of the same tensor"""

    def __str__(self) -> str:
        return f"{self.family}-{self.what}".replace(" ", "_")


QV = ["q_proj", "v_proj"]
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}


def _lora(family: str, what: str, outcome: str = EXACT, model: dict[str, Any] = UNTIED, **settings: Any) -> Row:
    return Row(family, what, outcome, {"target_modules": QV} | settings, model=model)


OPTIONS = [
    _lora("llama", "plain"),
    _lora("llama", "seven", target_modules=SEVEN),
    _lora("llama", "all linear", target_modules="all-linear"),
    _lora("llama", "regex", target_modules=r".*layers\.1\.(mlp\.up|self_attn\.q)_proj"),
    _lora("llama", "rslora", use_rslora=True),
    _lora(
        "llama", "rank pattern", target_modules=SEVEN, rank_pattern={"up_proj": 2, r"layers\.1\.self_attn\.q_proj": 6}
    ),
    _lora(
        "llama", "alpha pattern", target_modules=SEVEN, alpha_pattern={"down_proj": 3, "^model.layers.0.mlp.up_proj": 5}
    ),
    _lora("llama", "rslora with patterns", use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 16}),
    _lora("llama", "layers", layers_to_transform=[1]),
    _lora("llama", "layer", layers_to_transform=1),
    _lora("llama", "layers pattern", layers_to_transform=[0], layers_pattern="layers"),
    _lora("llama", "exclude", target_modules="all-linear", exclude_modules=["down_proj"]),
    _lora("llama", "exclude regex", target_modules=SEVEN, exclude_modules=r".*layers\.0\..*"),
    _lora("llama", "dropout", lora_dropout=0.1),
    _lora("llama", "bias all", bias="all", model=UNTIED | {"attention_bias": True}),
    _lora("llama", "bias lora only", bias="lora_only", model=UNTIED | {"attention_bias": True}),
    _lora("llama", "bias of a model without", bias="all"),
    _lora("llama", "lora bias", lora_bias=True, model=UNTIED | {"attention_bias": True}),
    _lora("llama", "lora bias of layers without", "train without lora_bias", lora_bias=True),
    _lora("llama", "norms saved", modules_to_save=["input_layernorm", "norm"]),
    _lora("llama", "head saved", modules_to_save=["lm_head"]),
    _lora("llama", "embedding saved", modules_to_save=["embed_tokens"]),
    _lora("llama", "head and embedding saved", modules_to_save=["lm_head", "embed_tokens"]),
    _lora("llama", "block saved", modules_to_save=["mlp"]),
    _lora("llama", "head adapted", target_modules=[*QV, "lm_head"]),
    _lora("llama", "embedding adapted", target_modules=[*QV, "embed_tokens"]),
    _lora("llama", "head and embedding adapted", target_modules=[*QV, "embed_tokens", "lm_head"]),
    _lora("llama", "dora", target_modules=SEVEN, use_dora=True),
    _lora("llama", "dora of the head", target_modules=["q_proj", "lm_head"], use_dora=True),
    _lora("llama", "dora of the embedding", target_modules=["q_proj", "embed_tokens"], use_dora=True),
    _lora("llama", "dora rslora", use_dora=True, use_rslora=True, rank_pattern={"q_proj": 2}),
    _lora("llama", "trained rows", trainable_token_indices=[3, 9, 60]),
    _lora("llama", "trained rows of the head", trainable_token_indices={"lm_head": [5], "embed_tokens": [3, 4]}),
    _lora("llama", "dense parameter", target_modules=[], target_parameters=["q_proj.weight", "mlp.up_proj.weight"]),
    _lora("llama", "gaussian", init_lora_weights="gaussian"),
    _lora("llama", "orthogonal", init_lora_weights="orthogonal"),
    _lora("llama", "eva", init_lora_weights="eva"),
    _lora("llama", "random from the start", init_lora_weights=False),
    _lora("llama", "olora", init_lora_weights="olora"),
    # PEFT decomposes in float32, the delta is computed in float64: the difference is PEFT's rounding.
    _lora("llama", "pissa", init_lora_weights="pissa")._replace(limit=5e-4),
    _lora("llama", "pissa of random vectors", "pissa_niter_4|begins? at|random", init_lora_weights="pissa_niter_4"),
    _lora("llama", "layer replication", RETRAIN, layer_replication=[[0, 2], [1, 2]]),
    _lora("llama", "activated", RETRAIN, alora_invocation_tokens=[5]),
    _lora("llama", "qalora", MERGE, use_qalora=True, qalora_group_size=16),
]
EVERYTHING = [  # for each of these, every layer that PEFT treats as linear
    _lora(family, "all linear", model={}, target_modules="all-linear")
    for family in (
        *(
            "gpt2",
            "falcon",
            "gpt_neox",
            "bloom",
            "opt",
            "phi",
            "phi3",
            "gemma2",
            "qwen2",
            "qwen3",
            "mistral",
            "cohere2",
        ),
        *("lfm2", "jamba", "olmoe", "granitemoe", "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"),
        *("deepseek_v3", "qwen3_next", "gemma3n_text", "llama4_text", "glm4_moe", "phimoe", "ernie4_5_moe", "smollm3"),
        *("codegen", "gpt_bigcode", "gptj", "stablelm", "nemotron", "minimax_m2", "bart", "bert"),
    )
]
EVERYTHING += [  # PEFT adapts only these layers of a Mamba block
    _lora("mamba", "in_proj, x_proj", model={}, target_modules=["in_proj", "x_proj"]),
    _lora("mamba2", "in_proj", model={}, target_modules=["in_proj"]),
]
CONV1D = [
    _lora("gpt2", "c_attn", model={}, target_modules=["c_attn"]),
    _lora("gpt2", "square Conv1D", model={}, target_modules=["attn.c_proj"]),
    _lora("gpt2", "fan_in_fan_out", model={}, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    _lora("gpt2", "dora", model={}, target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True),
    _lora("gpt2", "beside the head", model=UNTIED, target_modules=["attn.c_proj", "lm_head"]),
    _lora("gpt2", "bias all", model={}, target_modules=["c_attn"], bias="all"),
    _lora("gpt2", "lora bias", model={}, target_modules=["attn.c_proj"], lora_bias=True, fan_in_fan_out=True),
    _lora("gpt2", "rslora of some", model={}, target_modules=["c_fc"], use_rslora=True, layers_to_transform=[1]),
    _lora("gpt2", "olora", "Conv1D, which olora", model={}, target_modules=["c_attn"], init_lora_weights="olora"),
    _lora("gpt2", "pissa", model={}, target_modules=["c_attn"], init_lora_weights="pissa")._replace(limit=5e-4),
]
BOTH = ["gate_up_proj", "down_proj"]
EXPERTS = [
    *(
        _lora(family, "experts", model={}, target_parameters=[f"experts.{name}" for name in BOTH])
        for family in ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4_text", "ernie4_5_moe")
    ),
    *(
        _lora(family, "experts", model={}, target_parameters=[f"experts.{name}" for name in BOTH])
        for family in ("minimax_m2", "phimoe", "jamba", "glm4_moe", "olmoe", "qwen3_next", "hunyuan_v1_moe")
    ),
    *(
        _lora(family, f"{name} alone", model={}, target_parameters=[f"experts.{name}"])
        for family in ("mixtral", "qwen2_moe", "gpt_oss")
        for name in BOTH
    ),
    _lora(
        "gpt_oss", "square experts", model={"intermediate_size": 32}, target_parameters=[f"experts.{n}" for n in BOTH]
    ),
    _lora("gpt_oss", "square down", model={"intermediate_size": 32}, target_parameters=["experts.down_proj"]),
    _lora("qwen3_moe", "square experts", model={"moe_intermediate_size": 32}, target_parameters=["experts.down_proj"]),
    _lora(
        "mixtral", "experts with patterns", model={}, target_parameters=[f"experts.{n}" for n in BOTH], use_rslora=True
    ),
    _lora("qwen2_moe", "the usual seven", model={}, target_modules=SEVEN),
    _lora("qwen3_moe", "the usual seven", model={}, target_modules=SEVEN),
    _lora("deepseek_v3", "the usual seven", model={}, target_modules=[*SEVEN, "kv_b_proj", "q_b_proj"]),
    _lora("deepseek_v3", "dora", model={}, target_modules=["kv_b_proj", "o_proj"], use_dora=True),
    _lora("phimoe", "w1, w2, w3", model={}, target_modules=["q_proj", "w1", "w2", "w3"]),
    _lora("mixtral", "w1, w2, w3", model={}, target_modules=["q_proj", "w1", "w2", "w3"]),
    _lora("qwen2_moe", "router", model={}, target_modules=["q_proj"], target_parameters=["mlp.gate.weight"]),
    _lora("mixtral", "router saved", model={}, modules_to_save=["gate"]),
]
VISION = [
    _lora(family, "attention", model={})
    for family in (
        *("gemma3", "qwen2_5_vl", "qwen2_vl", "mistral3", "llava", "llava_next", "llava_onevision", "internvl"),
        *("paligemma", "mllama", "qwen3_vl", "qwen3_vl_moe", "idefics3", "smolvlm", "llama4", "qwen3_5", "aya_vision"),
        *("got_ocr2", "gemma4", "glm4v", "vipllava", "ovis2"),
    )
] + [
    _lora("gemma3", "all linear", model={}, target_modules="all-linear"),
    _lora("gemma3", "norms and projector saved", model={}, modules_to_save=["multi_modal_projector"]),
    _lora("qwen2_5_vl", "dora", model={}, use_dora=True),
    _lora("llava", "all linear", model={}, target_modules="all-linear"),
    _lora("qwen3_vl_moe", "experts", model={}, target_parameters=[f"experts.{name}" for name in BOTH]),
]
_NAMES = {  # names of embedding, head, and a layer to adapt
    "llama": ("embed_tokens", "lm_head", "q_proj", TIED),
    "gemma2": ("embed_tokens", "lm_head", "q_proj", {}),
    "gpt2": ("wte", "lm_head", "c_attn", {}),
    "bloom": ("word_embeddings", "lm_head", "query_key_value", {}),
    "gpt_neox": ("embed_in", "lm_head", "query_key_value", TIED),
    "gemma3": ("embed_tokens", "lm_head", "q_proj", {}),
}
TIES = [
    Row(
        family,
        what,
        outcome,
        {"target_modules": [layer, *adapted], "modules_to_save": saved or None} | more,
        model=model,
    )
    for family, (embedding, head, layer, model) in _NAMES.items()
    for apart, together in [(APART, EXACT) if embedding == "embed_tokens" else (UNHEARD, UNHEARD)]
    for what, adapted, saved, more, outcome in (
        ("tied", [], [], {}, EXACT),
        ("tied, embedding saved", [], [embedding], {}, apart),
        ("tied, head saved", [], [head], {}, apart),
        ("tied, embedding adapted", [embedding], [], {}, apart),
        ("tied, head adapted", [head], [], {}, apart),
        ("tied, embedding saved with its head", [], [embedding], {"ensure_weight_tying": True}, together),
        ("tied, embedding adapted with its head", [embedding], [], {"ensure_weight_tying": True}, together),
        ("tied, trained rows", [], [], {"trainable_token_indices": {embedding: [3, 9]}}, EXACT),
    )
]
_LINEAR = {"target_modules": QV}
TUNERS = [
    Row("llama", tuner, outcome, settings, tuner=tuner, model=UNTIED)
    for tuner, outcome, settings in (
        ("AdaLora", MERGE, _LINEAR | {"total_step": 10}),
        ("LoHa", MERGE, _LINEAR),
        ("LoKr", MERGE, _LINEAR),
        ("OFT", MERGE, _LINEAR | {"oft_block_size": 4}),
        ("BOFT", MERGE, _LINEAR | {"boft_block_size": 4}),
        ("IA3", MERGE, _LINEAR | {"feedforward_modules": []}),
        ("HRA", MERGE, _LINEAR),
        ("FourierFT", MERGE, _LINEAR | {"n_frequency": 20, "scaling": 1.0}),
        ("Vera", MERGE, {"target_modules": ["q_proj"]}),
        ("VBLoRA", MERGE, _LINEAR | {"vector_length": 4, "num_vectors": 8}),
        ("RandLora", MERGE, _LINEAR | {"r": 4, "randlora_alpha": 1}),
        ("Shira", MERGE, _LINEAR | {"r": 4}),
        ("C3A", MERGE, {"target_modules": ["q_proj"], "block_size": 8}),
        ("Miss", MERGE, _LINEAR | {"r": 4}),
        ("WaveFT", MERGE, _LINEAR | {"n_frequency": 20, "scaling": 1.0}),
        ("LNTuning", MERGE, {"target_modules": ["norm"]}),
        ("TrainableTokens", MERGE, {"token_indices": [3, 4]}),
        ("Delora", MERGE, _LINEAR),
        ("Gralora", MERGE, _LINEAR),
        ("OSF", MERGE, _LINEAR),
        ("Pvera", MERGE, {"target_modules": ["q_proj"]}),
        ("Psoft", MERGE, _LINEAR | {"r": 4}),
        ("TinyLora", MERGE, _LINEAR),
        ("UniLora", MERGE, _LINEAR),
        ("Hira", MERGE, _LINEAR),
        ("Peanut", MERGE, _LINEAR),
        ("Adamss", MERGE, _LINEAR),
        ("Frod", MERGE, _LINEAR),
        ("Deft", MERGE, _LINEAR),
        ("Road", MERGE, _LINEAR | {"group_size": 4}),
        ("Glora", MERGE, _LINEAR),
        ("Supertuning", MERGE, _LINEAR),
        ("Beft", RETRAIN, _LINEAR),
        ("Lily", RETRAIN, _LINEAR),
        ("Shadow", RETRAIN, _LINEAR),
        ("Poly", RETRAIN, _LINEAR | {"n_tasks": 2}),
        ("PromptTuning", RETRAIN, {"num_virtual_tokens": 4}),
        ("PrefixTuning", RETRAIN, {"num_virtual_tokens": 4}),
        ("PromptEncoder", RETRAIN, {"num_virtual_tokens": 4, "encoder_hidden_size": 8}),
        ("MultitaskPromptTuning", RETRAIN, {"num_virtual_tokens": 4}),
        ("CPT", RETRAIN, {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]}),
        ("AdaptionPrompt", RETRAIN, {"adapter_len": 4, "adapter_layers": 1}),
        ("Cartridge", RETRAIN, {"num_virtual_tokens": 4}),
    )
]
ROWS = [*OPTIONS, *EVERYTHING, *CONV1D, *EXPERTS, *VISION, *TIES, *TUNERS]
