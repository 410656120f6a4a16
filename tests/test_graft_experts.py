"""Mixtures of experts: a delta in one layout is added to an Instruct in the other, row by row, or refused by name."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import MisfitError, ShapeMismatchError, TensorMissingError
from shadowft_core.grafting import Merge, Options, graft, grafted_tensors
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import FAMILIES as CONFIGS
from tests.fixtures.models import SIZES, shifted, write_model
from tests.test_graft import BF16, F32, Tensors, bits, refused, tensors_of

E, INNER, H = 3, 48, 4000  # a chunk holds 32 rows: matrices begin and end within parts
FAMILIES = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
LAYER = "model.layers.0"
OTHERS = {f"{LAYER}.self_attn.q_proj.weight": (64, 64), f"{LAYER}.input_layernorm.weight": (H,)}


def matrices(seed: int, size: float) -> dict[tuple[Any, ...], np.ndarray]:
    """The model by meaning: (expert, part) and everything else by name."""
    rng = np.random.default_rng(seed)
    shapes: dict[tuple[Any, ...], tuple[int, ...]] = {(name,): shape for name, shape in OTHERS.items()}
    for expert in range(E):
        shapes |= {(expert, "gate"): (INNER, H), (expert, "up"): (INNER, H), (expert, "down"): (H, INNER)}
    shapes["router",] = (E, H)
    return {key: (size * rng.standard_normal(shape)).astype(F32) for key, shape in shapes.items()}


def written(family: str, fused: bool, model: dict[tuple[Any, ...], np.ndarray]) -> Tensors:
    """The model's tensors as in files of that family and layout."""
    block, *parts = FAMILIES[family]
    if fused:
        block = "mlp"
    found = {key[0]: array for key, array in model.items() if key[0] in OTHERS}
    found[f"{LAYER}.{block}.gate.weight"] = model["router",]
    numbers = sorted({key[0] for key in model if len(key) == 2})
    if fused:
        both = [np.concatenate([model[n, "gate"], model[n, "up"]]) for n in numbers]
        found[f"{LAYER}.mlp.experts.gate_up_proj"] = np.stack(both)
        found[f"{LAYER}.mlp.experts.down_proj"] = np.stack([model[n, "down"] for n in numbers])
        return found
    for number in numbers:
        for part, word in zip(("gate", "up", "down"), parts, strict=True):
            if (number, part) in model:
                found[f"{LAYER}.{block}.experts.{number}.{word}.weight"] = model[number, part]
    return found


def cast(tensors: Tensors) -> Tensors:
    return {name: array.astype(BF16) for name, array in tensors.items()}


def added(*models: dict[tuple[Any, ...], np.ndarray]) -> dict[tuple[Any, ...], np.ndarray]:
    return {key: sum(model[key].astype(BF16).astype(F32) for model in models) for key in models[0]}  # type: ignore[misc]


BASE = matrices(0, 0.02)
TUNED, INSTRUCT = added(BASE, matrices(1, 0.002)), added(BASE, matrices(2, 0.001))


def save(folder: Path, family: str, fused: bool, model: dict[tuple[Any, ...], np.ndarray], **config: Any) -> Path:
    return write_model(folder, cast(written(family, fused, model)), **({"model_type": family} | config))


def delta_of(folder: Path, family: str, fused: bool, base: Any = BASE, tuned: Any = TUNED) -> Path:
    before = save(folder / "base", family, fused, base)
    extract(before, save(folder / "tuned", family, fused, tuned), folder / "delta")
    return folder / "delta"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)], ids=str)
def test_the_layouts_are_matched_row_by_row(tmp_path: Path, family: str, before: bool, after: bool) -> None:
    delta = delta_of(tmp_path, family, before)
    instruct = save(tmp_path / "instruct", family, after, INSTRUCT)
    expected = {
        key: weights.astype(BF16).astype(F32)
        + F32.type(0.7) * (TUNED[key].astype(BF16).astype(F32) - BASE[key].astype(BF16).astype(F32))
        for key, weights in INSTRUCT.items()
    }
    recipe = graft(instruct, [(delta, 0.7)], tmp_path / "out")
    assert bits(tensors_of(tmp_path / "out")) == bits(cast(written(family, after, expected)))
    assert recipe["digest"] == open_checkpoint(tmp_path / "out").digest()
    assert bits(dict(grafted_tensors(instruct, [(delta, 0.7)]))) == bits(cast(written(family, after, expected)))


@pytest.mark.parametrize("before", [False, True], ids=["per expert", "fused"])
def test_an_expert_that_did_not_change_keeps_its_rows(tmp_path: Path, before: bool) -> None:
    still = {key: BASE[key] if key[0] == 1 else array for key, array in TUNED.items()}
    delta = delta_of(tmp_path, "mixtral", before, tuned=still)
    instruct = save(tmp_path / "instruct", "mixtral", not before, INSTRUCT)
    found = dict(grafted_tensors(instruct, [(delta, 1.0)]))
    moved = {
        key: INSTRUCT[key].astype(BF16).astype(F32)
        + (still[key].astype(BF16).astype(F32) - BASE[key].astype(BF16).astype(F32))
        for key in INSTRUCT
    }
    assert bits(found) == bits(cast(written("mixtral", not before, moved)))


@pytest.mark.parametrize("merge", [Merge("ties", 0.3), Merge("dare", 0.3, 1)], ids=lambda merge: merge.rule)
def test_a_merge_rule_applies_to_the_tensors_of_the_delta_in_either_layout(tmp_path: Path, merge: Merge) -> None:
    """Trimming and dropping apply to the delta's tensors, whatever the layout of the Instruct."""
    first = delta_of(tmp_path / "first", "mixtral", fused=False)
    second = delta_of(tmp_path / "second", "mixtral", fused=True, tuned=added(BASE, matrices(5, 0.003)))
    deltas = [(first, 0.6), (second, 0.4)]
    results = [
        dict(grafted_tensors(save(tmp_path / str(fused), "mixtral", fused, INSTRUCT), deltas, Options(merge=merge)))
        for fused in (False, True)
    ]
    parts = {key: np.empty(0) for key in INSTRUCT}
    block, *names = FAMILIES["mixtral"]
    for expert in range(E):
        for part, word in zip(("gate", "up", "down"), names, strict=True):
            parts[expert, part] = results[0][f"{LAYER}.{block}.experts.{expert}.{word}.weight"]
    parts["router",] = results[0][f"{LAYER}.{block}.gate.weight"]
    parts |= {(name,): results[0][name] for name in OTHERS}
    assert bits(written("mixtral", True, parts)) == bits(results[1])


def test_scales_and_scope_apply_to_single_experts(tmp_path: Path) -> None:
    delta = delta_of(tmp_path, "qwen3_moe", fused=False)
    instruct = save(tmp_path / "instruct", "qwen3_moe", True, INSTRUCT)
    options: dict[str, Any] = {"scope": ["*experts.0.*", "*experts.2.*"], "scale_for": [("*experts.2.*", 0.5)]}
    found = dict(grafted_tensors(instruct, [(delta, 1.0)], Options(**options)))
    scales = {0: 1.0, 2: 0.5}
    expected = {
        key: INSTRUCT[key].astype(BF16).astype(F32)
        + F32.type(scales.get(key[0], 0)) * (TUNED[key].astype(BF16).astype(F32) - BASE[key].astype(BF16).astype(F32))
        for key in INSTRUCT
    }
    assert bits(found) == bits(cast(written("qwen3_moe", True, expected)))
    graft(instruct, [(delta, 1.0)], tmp_path / "out", Options(["*experts.0.*"]))
    untouched = (tmp_path / "out" / "receipt.json").read_text()
    assert '"model.layers.0.self_attn.q_proj.weight":"out of scope"' in untouched


def test_a_layout_that_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    deltas = {fused: delta_of(tmp_path / str(fused), "mixtral", fused) for fused in (False, True)}
    fewer = {key: array for key, array in INSTRUCT.items() if key[0] != 2}
    partial = {key: array for key, array in INSTRUCT.items() if key != (1, "up")}
    more = INSTRUCT | {(3, part): INSTRUCT[2, part] for part in ("gate", "up", "down")}
    shorter = {key: array[:, :-1] if key[0] == 1 and key[-1] != "down" else array for key, array in INSTRUCT.items()}
    for number, (kind, message, before, fused, model, config) in enumerate(
        [
            *(
                (TensorMissingError, r"only the Base has .*mlp\.experts\.2 \(1 such in all\)", before, fused, fewer, {})
                for before in (False, True)
                for fused in (False, True)
            ),
            (TensorMissingError, r"the up matrix of expert 1 is missing", True, False, partial, {}),
            (TensorMissingError, r"experts\.1\.w3\.weight is missing", False, False, partial, {}),
            (TensorMissingError, r"only the Instruct has .*mlp\.experts\.3 ", False, False, more, {}),
            (TensorMissingError, r"only the Instruct has .*mlp\.experts\.3 ", False, True, more, {}),
            (MisfitError, "the order of the experts of 'gpt_oss' is unknown", False, True, INSTRUCT, "gpt_oss"),
            (ShapeMismatchError, r"experts\.1\.w1\.weight .*\(48, 3999\)", True, False, shorter, {}),
        ]
    ):
        options = {"model_type": config} if config else {}
        instruct = save(tmp_path / f"instruct{number}", "mixtral", fused, model, **options)
        refused(kind, message, instruct, [(deltas[before], 1.0)])


def test_a_missing_expert_is_refused_even_if_the_delta_does_not_change_it(tmp_path: Path) -> None:
    still = {key: BASE[key] if key[0] == 2 else array for key, array in TUNED.items()}
    fewer = {key: array for key, array in INSTRUCT.items() if key[0] != 2}
    delta = delta_of(tmp_path, "mixtral", fused=False, tuned=still)
    for fused in (False, True):
        instruct = save(tmp_path / str(fused), "mixtral", fused, fewer)
        refused(TensorMissingError, r"only the Base has .*mlp\.experts\.2 \(1 such in all\)", instruct, [(delta, 1.0)])


def test_an_instruct_with_more_experts_is_refused(tmp_path: Path) -> None:
    more = INSTRUCT | {(3, part): INSTRUCT[2, part] for part in ("gate", "up", "down")}
    delta = delta_of(tmp_path, "mixtral", fused=True)
    refused(
        TensorMissingError,
        r"only the Instruct has .*experts\.3 ",
        save(tmp_path / "more", "mixtral", False, more),
        [(delta, 1.0)],
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_transformers_reads_both_layouts_as_one_model(tmp_path: Path, family: str, caplog: Any) -> None:
    """A delta per expert on a fused Instruct: what transformers loads equals the graft in the old layout."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, tie_word_embeddings=False, **SIZES, **CONFIGS[family])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    shifted(tmp_path / "base", tmp_path / "instruct", 0.001, seed=1)
    shifted(tmp_path / "base", tmp_path / "tuned", 0.01, seed=2)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "instruct")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert any(n.endswith("experts.gate_up_proj") for n in open_checkpoint(tmp_path / "fused").names)
    assert any(".experts.0." in n for n in open_delta(tmp_path / "delta").names)
    states = []
    for layout in ("instruct", "fused"):
        graft(tmp_path / layout, [(tmp_path / "delta", 1.0)], tmp_path / "out")
        loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
        states.append(loaded.state_dict())
        shutil.rmtree(tmp_path / "out")
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(
        states[0]["model.layers.0.mlp.experts.down_proj"], model.state_dict()["model.layers.0.mlp.experts.down_proj"]
    )
