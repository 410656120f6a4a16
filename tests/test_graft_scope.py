"""What scope `linear` covers, by kind of module in every family, and the share of the delta that a scope leaves out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.cli.inspect import receipt as show_receipt
from shadowft_core.delta import extract, open_delta, open_difference
from shadowft_core.errors import NotFiniteError, UnrelatedError
from shadowft_core.grafting import Merge, Options, graft, grafted_tensors
from shadowft_core.grafting.receipt import read_receipt
from shadowft_core.weights import Family, open_checkpoint, percent
from tests.fixtures.models import write_model
from tests.test_graft import BF16, F32, Tensors, tensors_of

SIZES: dict[str, Any] = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "phi": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {},
    "mamba": {"state_size": 4, "conv_kernel": 2},
    "lfm2": {"num_key_value_heads": 2},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "head_dim": 8},
    "deepseek_v3": {
        **{"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        **{"first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "head_dim": 4},
        **{"qk_nope_head_dim": 4, "v_head_dim": 8, "n_shared_experts": 1},
    },
    "nobody_knows": {},
}


def kinds(model: Any) -> tuple[set[str], set[str]]:
    """Parameters of linear modules, and all others, by torch's modules."""
    import torch
    from transformers.pytorch_utils import Conv1D

    linear, head = set(), model.get_output_embeddings()
    for prefix, module in model.named_modules():
        routes = type(module).__name__.endswith("Router")
        named = {f"{prefix}.{name}": p for name, p in module.named_parameters(recurse=False)}
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and not routes:
            linear |= set(named)
        if "Experts" in type(module).__name__:
            linear |= {name for name, p in named.items() if p.ndim == 3 or name.endswith("_bias")}
    return linear, {name for name, _ in model.named_parameters()} - linear


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_is_every_linear_module_of_the_class_but_the_head(family: str) -> None:
    import torch
    import transformers

    shown = "llama" if family == "nobody_knows" else family
    config = transformers.AutoConfig.for_model(shown, **(SIZES | FAMILIES[family]))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    linear, others = kinds(model)
    written = config.to_dict() if shown == family else {"model_type": family}
    known = Family(written | ({} if shown != family else {"architectures": [type(model).__name__]}), ())
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name for name, shape in shapes.items() if known.is_linear(name, shape)}
    assert linear
    assert found == linear, (sorted(linear - found)[:5], sorted(found - linear)[:5])
    assert not found & others


@pytest.mark.parametrize(
    ("name", "shape", "linear"),
    [
        ("blocks.0.attn.anything.weight", (8, 8), True),
        ("blocks.0.attn.anything.bias", (8,), True),
        ("blocks.0.attn.o_proj.weight", (8, 8), True),
        ("blocks.0.post_norm.weight", (8, 8), False),
        ("blocks.0.post_norm.bias", (8,), False),
        ("blocks.0.ln_1.weight", (8,), False),
        ("blocks.0.ln_1.bias", (8,), False),
        ("blocks.0.mlp.router.weight", (4, 8), False),
        ("blocks.0.mlp.gate.weight", (4, 8), False),
        ("tok_embeddings.weight", (64, 8), False),
        ("position_embed.weight", (64, 8), False),
        ("wpe.weight", (64, 8), False),
        ("lm_head.weight", (64, 8), False),
        ("lm_head.bias", (64,), False),
        ("blocks.0.state", (8, 8), False),
        ("blocks.0.scale.weight", (8,), False),
    ],
)
def test_an_unknown_module_is_judged_by_name_and_shape(name: str, shape: tuple[int, ...], linear: bool) -> None:
    assert Family({"model_type": "nobody"}, ()).is_linear(name, shape) is linear


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHAPES = {
    EMBEDDING: (60, 64),
    HEAD: (60, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.q_proj.bias": (64,),
    "model.layers.0.self_attn.o_proj.weight": (64, 64),
    "model.layers.0.mlp.gate.weight": (4, 64),
    "model.norm.weight": (64,),
}
LINEAR = [name for name in SHAPES if "_proj" in name]


def written(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    start = {n: rng.standard_normal(s) for n, s in SHAPES.items()}

    def model(place: str, size: float) -> Path:
        moved: Tensors = {n: (0.02 * a + size * rng.standard_normal(a.shape)).astype(BF16) for n, a in start.items()}
        return write_model(folder / place, moved)

    return [model("base", 0), model("tuned", 1e-3), model("instruct", 1e-3)]


@pytest.mark.parametrize("one_pass", [False, True], ids=["delta", "one pass"])
@pytest.mark.parametrize(
    ("options", "travels", "word"),
    [
        ({"scope": "linear"}, LINEAR, "linear: "),
        ({"scope": ["*q_proj*", "*norm*"]}, [n for n in SHAPES if "q_proj" in n or "norm" in n], "scope: "),
        ({"scope": "linear", "scale_for": [("*o_proj*", 0.0)]}, LINEAR[:2], "linear: "),
        ({"scope": "linear", "scale_for": [("*q_proj*", -2.0)]}, LINEAR, "linear: "),
        ({"scale_for": [(HEAD, 0.0)]}, [n for n in SHAPES if n != HEAD], ""),
    ],
    ids=str,
)
def test_receipt_and_output_report_the_grafted_share(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    travels: list[str],
    word: str,
    one_pass: bool,
) -> None:
    base, tuned, instruct = written(tmp_path)
    squares = {
        n: float(np.sum(np.square(tensors_of(tuned)[n].astype(np.float64) - tensors_of(base)[n].astype(np.float64))))
        for n in SHAPES
    }
    extract(base, tuned, tmp_path / "delta")
    capsys.readouterr()
    delta = open_difference(base, tuned) if one_pass else tmp_path / "delta"
    graft(instruct, [(delta, 0.5)], tmp_path / "out", Options(**options))
    line = capsys.readouterr().err.strip()
    changed = {n for n, a in tensors_of(instruct).items() if not np.array_equal(a, tensors_of(tmp_path / "out")[n])}
    assert changed == set(travels)
    share = sum(squares[n] for n in travels) / sum(squares.values())
    travel = read_receipt(tmp_path / "out")["travel"]
    assert travel["energy"] == pytest.approx(share, abs=1e-4)
    leaves: dict[str, float] = {}
    for name in set(SHAPES) - set(travels):
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        leaves[leaf] = leaves.get(leaf, 0.0) + squares[name] / sum(squares.values())
    assert travel["stays"] == pytest.approx(leaves, rel=1e-3)
    assert f"; {word}{percent(travel['energy'])} of the delta's energy is added" in line
    assert all(leaf in line for leaf in leaves)
    assert "of what is added, " in line
    assert "100 %" not in line
    show_receipt(tmp_path / "out")
    assert f"{percent(travel['energy'])} of the delta's energy is grafted; not grafted: " in capsys.readouterr().out


def test_only_the_whole_is_100_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned, instruct = written(tmp_path)
    extract(base, tuned, tmp_path / "delta")
    made = graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out", Options(dtype="float32"))
    assert made["scope"] == "all"
    assert "of the delta's energy 100 % survives the rounding" in capsys.readouterr().err
    assert read_receipt(tmp_path / "out")["travel"] is None
    texts = {1: "100 %", 0: "0 %", 0.831: "83.1 %", 0.99996: "more than 99.99 %", 1e-9: "less than 0.01 %", 0.5: "50 %"}
    assert {share: percent(share) for share in texts} == texts
    nudged, norm = tensors_of(tuned), tensors_of(base)["model.norm.weight"].copy()
    norm[0] *= BF16.type(1.02)
    extract(base, write_model(tmp_path / "nudged", nudged | {"model.norm.weight": norm}), tmp_path / "delta2")
    capsys.readouterr()
    graft(instruct, [(tmp_path / "delta2", 1.0)], tmp_path / "out2", Options(["*"], scale_for=[("*norm*", 0.0)]))
    assert "more than 99.99 % of the delta's energy is added, less than 0.01 % is not" in capsys.readouterr().err


def test_several_deltas_count_by_their_scales(tmp_path: Path) -> None:
    base, tuned, instruct = written(tmp_path)
    other = write_model(
        tmp_path / "other", {n: (a.astype(F32) * 1.01).astype(BF16) for n, a in tensors_of(base).items()}
    )
    for name, folder in (("one", tuned), ("two", other)):
        extract(base, folder, tmp_path / name)
    deltas = [(open_delta(tmp_path / "one"), 0.5), (open_delta(tmp_path / "two"), -2.0)]
    squares = {n: sum((scale * delta.norm(n)) ** 2 for delta, scale in deltas) for n in SHAPES}
    share = sum(squares[n] for n in LINEAR) / sum(squares.values())
    mixed = [(open_difference(base, tuned), 0.5), (tmp_path / "two", -2.0)]
    for number, (given, merge) in enumerate(
        [([(d.path, s) for d, s in deltas], Merge()), (mixed, Merge()), (mixed, Merge("ties", 0.5))]
    ):
        graft(instruct, given, tmp_path / str(number), Options("linear", merge=merge))
        assert read_receipt(tmp_path / str(number))["travel"]["energy"] == pytest.approx(share, abs=1e-4)
    graft(instruct, [(d.path, 0.0) for d, _ in deltas], tmp_path / "nothing", Options("linear"))
    assert read_receipt(tmp_path / "nothing")["travel"] is None


def test_a_receipt_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    base, tuned, instruct = written(tmp_path)
    extract(base, tuned, tmp_path / "delta")
    graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "out", Options("linear"))
    file = tmp_path / "out" / "receipt.json"
    old = {key: value for key, value in json.loads(file.read_bytes()).items() if key not in ("travel", "ignored")}
    file.write_text(json.dumps(old))
    account = read_receipt(tmp_path / "out")
    assert account["travel"] is None
    assert account["ignored"] == {}
    show_receipt(tmp_path / "out")


def test_the_scope_of_a_fused_delta_is_that_of_its_experts(tmp_path: Path) -> None:
    """The same experts are selected by names of either layout; a router is not one of them."""
    fused = {
        "model.layers.0.mlp.experts.gate_up_proj": (2, 32, 16),
        "model.layers.0.mlp.experts.down_proj": (2, 16, 16),
    }
    single = {
        f"model.layers.0.mlp.experts.{e}.{p}_proj.weight": (16, 16) for e in (0, 1) for p in ("gate", "up", "down")
    }
    router = {"model.layers.0.mlp.gate.weight": (2, 16), EMBEDDING: (60, 16)}
    rng = np.random.default_rng(0)
    for place, layout in (("base", fused), ("tuned", fused), ("instruct", single)):
        shapes = layout | router
        moved = {n: (rng.standard_normal(s) * 0.02).astype(BF16) for n, s in shapes.items()}
        write_model(tmp_path / place, moved, model_type="qwen3_moe")
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", unrelated=True)
    options = Options("linear", waivers=["unrelated"])
    found = dict(grafted_tensors(tmp_path / "instruct", [(tmp_path / "delta", 1.0)], options))
    own = tensors_of(tmp_path / "instruct")
    assert {n for n in own if not np.array_equal(own[n], found[n])} == set(single)
    assert open_checkpoint(tmp_path / "instruct").family.known


def test_tensors_out_of_scope_are_measured_not_judged(tmp_path: Path) -> None:
    """A new head is out of scope: one pass measures it and does not refuse the model as unrelated."""
    base, tuned, instruct = written(tmp_path)
    other = tensors_of(tuned) | {HEAD: np.random.default_rng(9).standard_normal(SHAPES[HEAD]).astype(BF16)}
    new = write_model(tmp_path / "new", other)
    graft(instruct, [(open_difference(base, new), 1.0)], tmp_path / "out", Options("linear"))
    assert read_receipt(tmp_path / "out")["travel"]["stays"]["lm_head"] > 0.9
    with pytest.raises(UnrelatedError, match=r"lm_head\.weight"):
        graft(instruct, [(open_difference(base, new), 1.0)], tmp_path / "no")
    broken = write_model(tmp_path / "broken", other | {HEAD: np.full(SHAPES[HEAD], np.nan, BF16)})
    with pytest.raises(NotFiniteError, match=r"lm_head\.weight: its delta is not finite"):
        graft(instruct, [(open_difference(base, broken), 1.0)], tmp_path / "no", Options("linear"))
    assert not (tmp_path / "no").exists()
