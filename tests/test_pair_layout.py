"""Which weights correspond: experts in either layout, rows of embeddings by token, heads that one side ties."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.errors import PairError
from shadowft_core.pair import check_pair, compare_models
from shadowft_core.weights import open_checkpoint, write_checkpoint
from tests.fixtures.models import Pair, shifted

BF16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
Tensors = dict[str, np.ndarray]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def read(folder: Path) -> Tensors:
    model = open_checkpoint(folder)
    return {name: model.read(name) for name in model.names}


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    tensors = read(folder)
    change(tensors)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    write_checkpoint(folder, tensors.items())


def edit(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def copied(pair: Pair, folder: Path) -> Pair:
    copy = Pair(folder / "base", folder / "instruct")
    shutil.copytree(pair.base, copy.base)
    shutil.copytree(pair.instruct, copy.instruct)
    return copy


def both(pair: Pair) -> list[dict[str, Any]]:
    """The full check and the sampled one; both read all of a tiny model."""
    models = [open_checkpoint(folder) for folder in (pair.base, pair.instruct)]
    return [check_pair(pair.base, pair.instruct), compare_models(*models, full=False)]


# experts


def fuse(folder: Path) -> None:
    """Save the model again as in memory, with the experts of a layer in one tensor."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(folder, save_original_format=False)


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe"])
def layouts(
    request: pytest.FixtureRequest, family_pair: Callable[..., Pair], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Pair]:
    """The same pair four times: experts one by one on both sides, fused on both, and both mixtures."""
    whole = family_pair(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    fused = copied(whole, folder)
    fuse(fused.base)
    fuse(fused.instruct)
    assert any(name.endswith("experts.gate_up_proj") for name in read(fused.base))
    assert any(".experts.0." in name for name in read(whole.base))
    return {
        "one by one": whole,
        "fused": fused,
        "base fused": Pair(fused.base, whole.instruct),
        "instruct fused": Pair(whole.base, fused.instruct),
    }


def test_experts_are_compared_across_layouts(layouts: dict[str, Pair]) -> None:
    found = {name: both(pair) for name, pair in layouts.items()}
    plain = found["one by one"][0]["sigma"]
    assert plain["overall"] > 0.01
    for name, results in found.items():
        for result in results:
            assert result["sigma"]["overall"] == pytest.approx(plain["overall"], rel=1e-6), name
            assert result["sigma"]["weights"] == plain["weights"], "nothing is skipped"
            assert result["sigma"]["layers"] == pytest.approx(plain["layers"], rel=1e-6)
    for name in ("base fused", "instruct fused"):
        assert found[name][0]["verdict"] == "warn"
        assert "the experts are stored" in found[name][0]["reasons"][0]
        experts = {n: v for n, v in found[name][0]["sigma"]["tensors"].items() if ".experts." in n}
        expected = {n.replace("block_sparse_moe", "mlp"): v for n, v in plain["tensors"].items() if ".experts." in n}
        assert experts == pytest.approx(expected, rel=1e-6), "every projection against its own"
    assert found["one by one"][0]["verdict"] == found["fused"][0]["verdict"] == "ok"


def test_a_swapped_projection_across_layouts_is_refused(layouts: dict[str, Pair], tmp_path: Path) -> None:
    """Gate and up in the wrong order would be read as two unrelated matrices, not as a small difference."""
    pair = copied(layouts["instruct fused"], tmp_path)

    def swap(tensors: Tensors) -> None:
        for name, array in tensors.items():
            if name.endswith("gate_up_proj"):
                tensors[name] = np.concatenate(np.split(array, 2, axis=1)[::-1], axis=1)

    rewrite(pair.instruct, swap)
    with pytest.raises(PairError, match=r"experts.*above 0.5"):
        check_pair(pair.base, pair.instruct)


@pytest.mark.parametrize("mix", ["one by one", "fused", "instruct fused", "base fused"])
def test_a_dropped_expert_is_refused_by_name(layouts: dict[str, Pair], mix: str, tmp_path: Path) -> None:
    pair = copied(layouts[mix], tmp_path)

    def drop(tensors: Tensors) -> None:
        for name in list(tensors):
            if ".experts.2." in name:
                del tensors[name]
            elif name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                tensors[name] = tensors[name][:2]

    rewrite(pair.instruct, drop)
    message = r"shapes differ, .*experts.*\(3, .*\(2, " if mix == "fused" else r"only in the Base, .*experts\.2\."
    with pytest.raises(PairError, match=message):
        check_pair(pair.base, pair.instruct)


def test_experts_of_a_model_without_a_known_conversion_are_refused(layouts: dict[str, Pair], tmp_path: Path) -> None:
    pair = copied(layouts["instruct fused"], tmp_path)
    for folder in (pair.base, pair.instruct):
        edit(folder / "config.json", lambda c: c.update(model_type="mystery_moe"))
    with pytest.raises(
        PairError, match=r"one side stores its experts one by one, .* 'mystery_moe' no conversion is known"
    ):
        check_pair(pair.base, pair.instruct)


# rows by token


def oracle(base: Tensors, instruct: Tensors, name: str, rows: list[tuple[int, int]]) -> float:
    b, i = base[name].astype(np.float64), instruct[name].astype(np.float64)
    apart = sum(np.abs(b[x] - i[y]).sum() for x, y in rows)
    return float(apart / sum(np.abs(b[x]).sum() + np.abs(i[y]).sum() for x, y in rows))


ROWS = ("model.embed_tokens.weight", "lm_head.weight")


def test_permuted_ids_are_matched_by_token(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    pair = copied(tiny_llama_pair, tmp_path)
    order = np.arange(64)
    order[10:50] = order[10:50][::-1]

    def permute_rows(tensors: Tensors) -> None:
        for name in ROWS:
            tensors[name] = tensors[name][order]

    def permute_ids(tokenizer: Any) -> None:
        tokenizer["model"]["vocab"] = {w: int(order[i]) for w, i in tokenizer["model"]["vocab"].items()}

    rewrite(pair.instruct, permute_rows)
    edit(pair.instruct / "tokenizer.json", permute_ids)
    plain = check_pair(tiny_llama_pair.base, tiny_llama_pair.instruct)["sigma"]
    for result in both(pair):
        assert result["verdict"] == "warn"
        assert result["reasons"] == [
            "40 tokens have another id, the first is 'word44': 49 in the Base, 10 in the Instruct; "
            "their rows are matched by token"
        ]
        assert result["sigma"]["tensors"] == pytest.approx(plain["tensors"], rel=1e-6)
        assert result["sigma"]["weights"] == plain["weights"]


def test_more_rows_and_added_tokens_are_warnings_with_counts(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    pair = copied(tiny_llama_pair, tmp_path)
    noise = np.random.default_rng(0)

    def grow(tensors: Tensors) -> None:
        for name in ROWS:
            more = (0.02 * noise.standard_normal((8, 32))).astype(BF16)
            tensors[name] = np.concatenate([tensors[name], more])

    def add(tokenizer: Any) -> None:
        like = tokenizer["added_tokens"][0]
        tokenizer["added_tokens"] += [{**like, "id": 64 + n, "content": f"<|tool{n}|>"} for n in range(3)]

    rewrite(pair.instruct, grow)
    edit(pair.instruct / "tokenizer.json", add)
    base, instruct = read(pair.base), read(pair.instruct)
    for result in both(pair):
        text = " ".join(result["reasons"])
        assert "3 token ids are only in the Instruct, the first is 64 '<|tool0|>'" in text
        for name in ROWS:
            reason = f"{name} has 64 rows in the Base, 72 in the Instruct; 8 rows have no counterpart"
            assert reason in text
            shared = oracle(base, instruct, name, [(n, n) for n in range(64)])
            assert result["sigma"]["tensors"][name] == pytest.approx(shared, rel=1e-6)


def test_fewer_rows_and_no_base_tokenizer_match_by_number(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    pair = copied(tiny_llama_pair, tmp_path)
    (pair.base / "tokenizer.json").unlink()
    rewrite(pair.instruct, lambda tensors: tensors.update({name: tensors[name][:60] for name in ROWS}))
    result = check_pair(pair.base, pair.instruct)
    base, instruct = read(pair.base), read(pair.instruct)
    expected = oracle(base, instruct, ROWS[0], [(n, n) for n in range(60)])
    assert result["sigma"]["tensors"][ROWS[0]] == pytest.approx(expected, rel=1e-6)
    assert "64 rows in the Base, 60 in the Instruct; 0 rows" in " ".join(result["reasons"])


def test_other_row_counts_of_a_matrix_outside_the_vocabulary_are_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    pair = copied(tiny_llama_pair, tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(pair.instruct, lambda tensors: tensors.update({name: tensors[name][:40]}))
    with pytest.raises(PairError, match=r"up_proj.weight: \(48, 32\) in the Base, \(40, 32\) in the Instruct"):
        check_pair(pair.base, pair.instruct)


def test_a_vocabulary_that_mostly_differs_is_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    pair = copied(tiny_llama_pair, tmp_path)

    def rename(tokenizer: Any) -> None:
        vocab = tokenizer["model"]["vocab"]
        tokenizer["model"]["vocab"] = {f"other{i}" if i >= 20 else word: i for word, i in vocab.items()}

    edit(pair.base / "tokenizer.json", rename)
    with pytest.raises(PairError, match="mostly differ: 20 tokens in common, 53 in the Base, 53 in the Instruct"):
        check_pair(pair.base, pair.instruct)


# heads


@pytest.mark.parametrize("tied", ["base", "instruct"])
def test_a_head_that_one_side_ties_is_a_warning(
    tiny_llama_pair: Pair, tiny_llama_tied_pair: Pair, tied: str, tmp_path: Path
) -> None:
    """The file of the tied side has no head, or one that its config ignores."""
    pair = copied(tiny_llama_pair, tmp_path)
    folder = getattr(pair, tied)
    edit(folder / "config.json", lambda c: c.update(tie_word_embeddings=True))
    other = "Instruct" if tied == "base" else "Base"
    for _ in range(2):
        for result in both(pair):
            assert result["reasons"] == [
                f"the head is tied to the embedding in the {tied.capitalize()}, not in the {other}; sigma excludes it"
            ]
            assert "lm_head.weight" not in result["sigma"]["tensors"]
            assert result["facts"][tied]["tied"]
            assert not result["facts"]["base" if tied == "instruct" else "instruct"]["tied"]
        if "lm_head.weight" in open_checkpoint(folder):
            rewrite(folder, lambda tensors: tensors.__delitem__("lm_head.weight"))
    result = check_pair(tiny_llama_tied_pair.base, tiny_llama_tied_pair.instruct)
    assert result["verdict"] == "ok", "two tied models are an ordinary pair"


def test_a_lost_or_renamed_head_is_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    pair = copied(tiny_llama_pair, tmp_path)
    rewrite(pair.base, lambda tensors: tensors.__delitem__("lm_head.weight"))
    with pytest.raises(PairError, match=r"1 tensors are only in the Instruct, the first is lm_head.weight"):
        check_pair(pair.base, pair.instruct)
    shutil.copy(tiny_llama_pair.base / "model.safetensors", pair.base)
    rewrite(pair.instruct, lambda tensors: tensors.update(head=tensors.pop("lm_head.weight")))
    with pytest.raises(PairError, match="only in the Instruct, the first is head"):
        check_pair(pair.base, pair.instruct)


def test_a_scrambled_expert_is_unrelated(family_pair: Callable[..., Pair], tmp_path: Path) -> None:
    pair = Pair(family_pair("mixtral").base, tmp_path / "instruct")
    shifted(pair.base, pair.instruct, 0.001, seed=9)
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(family_pair("mixtral").instruct / name, pair.instruct / name)
    name = "model.layers.1.block_sparse_moe.experts.1.w3.weight"
    rewrite(pair.instruct, lambda tensors: tensors.update({name: tensors[name][::-1]}))
    with pytest.raises(PairError, match=r"sigma of model.layers.1.block_sparse_moe.experts.1.w3.weight is 0\.[67]"):
        check_pair(pair.base, pair.instruct)
