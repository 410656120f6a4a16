"""Which layers of a family an exported adapter may target, and that they compute what the graft does."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.delta import extract
from shadowft_core.errors import AdapterError
from shadowft_core.export import export_adapter, lint
from shadowft_core.grafting import Options, graft
from shadowft_core.weights import build_header, open_safetensors, write_safetensors
from tests.fixtures.adapters import adapt, load
from tests.fixtures.families import save_family
from tests.fixtures.models import shifted, write_model
from tests.fixtures.vision import save_vision
from tests.test_export import CONFIG, WEIGHTS


@pytest.mark.parametrize(
    ("family", "targets"),
    [("gpt2", ["attn.c_attn", "attn.c_proj", "lm_head"]), ("gemma3", ["q_proj"]), ("phimoe", ["o_proj"])],
)
def test_the_layers_of_peculiar_families_are_served_as_they_compute(
    tmp_path: Path, family: str, targets: list[str]
) -> None:
    """Conv1D weights are stored (inputs, outputs), factors served as of a linear layer; names are those in memory."""
    import torch
    from peft import PeftModel

    if family == "gemma3":
        base = save_vision(tmp_path / "base", family)
    else:
        sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        more = sizes | {"tie_word_embeddings": False} if family == "gpt2" else {}
        base = save_family(tmp_path / "base", family, **more)
    instruct = tmp_path / "instruct"
    shifted(base, instruct, 0.001, seed=1)
    adapt(base, tmp_path / "trained", target_modules=targets)
    extract(base, tmp_path / "trained", tmp_path / "delta")
    if "lm_head" in targets:
        with pytest.raises(AdapterError, match=r"tensor lm_head.weight is of kind `head`, but servers adapt only"):
            export_adapter(instruct, [(tmp_path / "delta", 0.75)], tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()
    options = Options(scope=["*attn*"])
    export_adapter(instruct, [(tmp_path / "delta", 0.75)], tmp_path / "adapter", options)
    assert lint(tmp_path / "adapter", instruct) == []
    graft(instruct, [(tmp_path / "delta", 0.75)], tmp_path / "grafted", Options(["*attn*"]))
    merged = PeftModel.from_pretrained(load(instruct), tmp_path / "adapter").merge_and_unload().state_dict()
    before, moved = load(instruct).state_dict(), 0
    for name, tensor in load(tmp_path / "grafted").state_dict().items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6, msg=name)
        moved += not torch.equal(tensor, before[name])
    weights = open_safetensors(tmp_path / "adapter" / WEIGHTS)
    assert moved == len(weights.names) // 2 >= 2
    if family == "gpt2":  # factors as they would be of the stored matrix
        arrays = {n: weights.read(n.translate(str.maketrans("AB", "BA"))).T for n in weights.names if "c_attn" in n}
        (tmp_path / "adapter" / WEIGHTS).unlink()
        header = build_header({name: ("F32", array.shape) for name, array in arrays.items()})
        write_safetensors(tmp_path / "adapter" / WEIGHTS, header, lambda n: iter([arrays[n].reshape(-1)]))
        assert "shapes: transformer.h.0.attn.c_attn has B x A of" in lint(tmp_path / "adapter", instruct)[0]


@pytest.mark.parametrize(
    ("family", "module", "kind"),
    [
        ("llama", "model.layers.0.mlp.up_proj", "linear"),
        ("phi", "model.layers.0.self_attn.dense", "linear"),
        ("phi", "model.layers.0.mlp.fc1", "linear"),
        ("lfm2", "model.layers.0.self_attn.out_proj", "linear"),
        ("deepseek_v3", "model.layers.0.self_attn.kv_b_proj", "linear"),
        ("qwen3_next", "model.layers.0.linear_attn.in_proj_qkvz", "linear"),
        ("bloom", "transformer.h.0.self_attention.query_key_value", "linear"),
        ("gpt2", "transformer.h.0.mlp.c_fc", "conv1d"),
        ("nobody_knows", "model.layers.0.feed_forward.w1", "linear"),
        ("gpt2", "transformer.wte", "embedding"),
        ("gpt2", "transformer.wpe", "positions"),
        ("llama", "lm_head", "head"),
        ("llava", "model.language_model.embed_tokens", "embedding"),
        ("qwen3_moe", "model.layers.0.mlp.experts.0.up_proj", "experts"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.0.w1", "experts"),
        ("qwen3_moe", "model.layers.0.mlp.gate", "router"),
        ("nobody_knows", "model.layers.0.thing", None),
    ],
)
def test_a_module_is_judged_by_its_kind(tmp_path: Path, family: str, module: str, kind: str | None) -> None:
    sides = {"A": (2, 6), "B": (4, 2)}
    stored = np.ones((6, 4) if kind == "conv1d" else (4, 6), np.float32)
    write_model(tmp_path / "instruct", {f"{module}.weight": stored}, model_type=family)
    keys = {f"base_model.model.{module}.lora_{factor}.weight": shape for factor, shape in sides.items()}
    (tmp_path / "adapter").mkdir()
    write_safetensors(
        tmp_path / "adapter" / WEIGHTS,
        build_header({key: ("F32", shape) for key, shape in keys.items()}),
        lambda key: iter([np.ones(math.prod(keys[key]), np.float32)]),
    )
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": [module],
        "base_model_name_or_path": "A/B",
    }
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(config))
    found = lint(tmp_path / "adapter", tmp_path / "instruct")
    if kind in ("linear", "conv1d"):
        assert found == []
    else:
        word = f"of kind `{kind}`" if kind else "of an unknown kind"
        assert [line for line in found if line.startswith(f"target modules: {module} is {word}, not a linear layer")], (
            found
        )
