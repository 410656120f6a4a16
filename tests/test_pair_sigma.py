"""sigma: a full pass against a float64 reference, a sample against the full pass, groups and the three aggregations."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.errors import CheckpointError, NotFiniteError, SameModelError, UnrelatedError
from shadowft_core.pair import check_pair, compare_models
from shadowft_core.pair.sigma import MOST_RANGES, RANGE, RANGES
from shadowft_core.weights import Checkpoint, open_checkpoint
from tests.fixtures.models import Pair, save_tokenizer, write_model

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
Tensors = dict[str, np.ndarray]
Q, DOWN, NORM = (f"model.layers.0.{part}.weight" for part in ("self_attn.q_proj", "mlp.down_proj", "input_layernorm"))


def oracle(base: Tensors, instruct: Tensors, *names: str) -> float:
    wide = [(base[n].astype(np.float64), instruct[n].astype(np.float64)) for n in names or base]
    return float(sum(np.abs(b - i).sum() for b, i in wide) / sum(np.abs(b).sum() + np.abs(i).sum() for b, i in wide))


def read(folder: Path) -> Tensors:
    model = open_checkpoint(folder)
    return {name: model.read(name) for name in model.names}


def large(tmp_path: Path, dtype: np.dtype = BF16, distance: float = 0.02) -> Pair:
    """Tensors of more than one block, with a distance that grows along the rows, so that a lazy sample is wrong."""
    noise = np.random.default_rng(3)
    shapes = {Q: (700, 613), DOWN: (997, 400), NORM: (613,), "lm_head.weight": (640, 613)}
    base = {name: (0.02 * noise.standard_normal(shape)).astype(F32) for name, shape in shapes.items()}
    instruct = {
        n: b
        + distance * np.linspace(0.5, 1.5, b.size, dtype=F32).reshape(b.shape) * 0.02 * noise.standard_normal(b.shape)
        for n, b in base.items()
    }
    pair = Pair(tmp_path / "base", tmp_path / "instruct")
    for folder, tensors in ((pair.base, base), (pair.instruct, instruct)):
        write_model(folder, {name: array.astype(dtype) for name, array in tensors.items()}, shards=2)
        save_tokenizer(folder, template=folder == pair.instruct)
    return pair


def whole(pair: Pair) -> dict[str, Any]:
    return compare_models(open_checkpoint(pair.base), open_checkpoint(pair.instruct), full=True)


def sampled(pair: Pair, **options: bool) -> dict:
    return compare_models(open_checkpoint(pair.base), open_checkpoint(pair.instruct), full=False, **options)


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_a_full_pass_equals_the_oracle(tmp_path: Path, dtype: np.dtype) -> None:
    pair = large(tmp_path, dtype)
    base, instruct = read(pair.base), read(pair.instruct)
    found = check_pair(pair.base, pair.instruct)
    assert found["sampled"] is False
    sigma = found["sigma"]
    assert sigma["overall"] == pytest.approx(oracle(base, instruct), rel=1e-7)
    for name in base:
        assert sigma["tensors"][name] == pytest.approx(oracle(base, instruct, name), rel=1e-7)
    assert sigma["layers"] == {"0": pytest.approx(oracle(base, instruct, Q, DOWN, NORM), rel=1e-7)}
    assert sigma["weights"] == {"read": sum(a.size for a in base.values()), "of": sum(a.size for a in base.values())}
    assert "sum|B - I| / (sum|B| + sum|I|)" in sigma["definition"]
    assert found["base"]["digest"] == open_checkpoint(pair.base).digest()


def test_digests_do_not_change_the_figure_and_their_absence_hashes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = large(tmp_path)
    with_digests = check_pair(pair.base, pair.instruct)
    monkeypatch.setattr(Checkpoint, "tensor_digest", lambda *_: pytest.fail("hashed"))
    without = whole(pair)
    assert without["sigma"] == with_digests["sigma"]
    assert without["base"] == {}


def test_two_dtypes_are_compared_as_numbers(tmp_path: Path) -> None:
    pair = large(tmp_path)
    base = {name: array.astype(F32) for name, array in read(pair.base).items()}
    wide = write_model(tmp_path / "wide", base)
    assert check_pair(wide, pair.instruct)["sigma"]["overall"] == pytest.approx(
        oracle(base, read(pair.instruct)), rel=1e-7
    )


def test_a_sample_is_small_and_near_the_full_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = large(tmp_path)
    asked: list[tuple[str, int, int]] = []
    part = Checkpoint.part

    def counted(self: Checkpoint, name: str, start: int, count: int) -> np.ndarray:
        asked.append((name, start, count))
        return part(self, name, start, count)

    monkeypatch.setattr(Checkpoint, "part", counted)
    found = sampled(pair)
    full = whole(pair)["sigma"]
    sigma = found["sigma"]
    assert found["sampled"] is True
    assert found["base"] == {}
    assert sigma["weights"]["read"] == 3 * RANGES * RANGE + 613
    assert sigma["weights"]["of"] == full["weights"]["of"]
    assert sigma["overall"] == pytest.approx(full["overall"], rel=0.02)
    for name, value in full["tensors"].items():
        assert sigma["tensors"][name] == pytest.approx(value, rel=0.05), name
    assert sigma["tensors"][NORM] == full["tensors"][NORM], "a small tensor is read whole"
    eighths = {start // (700 * 613 // 8) for name, start, _ in asked if name == Q}
    assert sorted(eighths) == [0, 2, 4, 6], "ranges are spread"
    assert sampled(pair)["sigma"] == sigma, "the same ranges every time"


def test_a_sample_counts_every_tensor_by_its_size(tmp_path: Path) -> None:
    """The same number of weights is read of both, but the tensor of ten times the size counts ten times."""
    shapes = {Q: (64, RANGE), DOWN: (640, RANGE)}
    base = {name: np.ones(shape, BF16) for name, shape in shapes.items()}
    instruct = {Q: base[Q] * BF16.type(1.5), DOWN: base[DOWN] * BF16.type(1.0625)}
    pair = Pair(write_model(tmp_path / "b", base), write_model(tmp_path / "i", instruct))
    save_tokenizer(pair.instruct)
    found = sampled(pair)["sigma"]
    assert found["weights"]["read"] == 2 * RANGES * RANGE
    expected = (0.5 + 10 * 0.0625) / (2.5 + 10 * 2.0625)
    assert found["overall"] == found["layers"]["0"] == pytest.approx(expected, rel=1e-6)


def test_a_sample_of_many_tensors_is_bounded(tmp_path: Path) -> None:
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": np.full((20, RANGE // 8), 0.5, BF16) for n in range(1500)}
    assert 1500 * RANGES > MOST_RANGES
    pair = Pair(write_model(tmp_path / "b", tensors), tmp_path / "i")
    write_model(pair.instruct, {name: array + BF16.type(0.0625) for name, array in tensors.items()})
    save_tokenizer(pair.base, template=False)
    save_tokenizer(pair.instruct)
    sigma = sampled(pair)["sigma"]
    assert sigma["weights"] == {"read": 1500 * 2 * RANGE, "of": 1500 * 5 * RANGE // 2}
    assert sigma["overall"] == pytest.approx(0.0625 / (0.5 + 0.5625), rel=1e-6)


def test_constant_weights_lose_nothing_in_the_sums(tmp_path: Path) -> None:
    """Equal addends are the worst case of a float32 sum: every rounding goes the same way."""
    base = {Q: np.full((1 << 11, 1 << 10), 1.0078125, F32)}
    instruct = {Q: base[Q] + F32.type(2**-9)}
    pair = Pair(write_model(tmp_path / "b", base), write_model(tmp_path / "i", instruct))
    save_tokenizer(pair.instruct)
    assert check_pair(pair.base, pair.instruct)["sigma"]["overall"] == pytest.approx(oracle(base, instruct), rel=1e-6)


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    big = np.full(12_000_000, 0.5, F32)
    pair = Pair(write_model(tmp_path / "b", {"w": big}), write_model(tmp_path / "i", {"w": big + F32.type(0.02)}))
    del big
    save_tokenizer(pair.instruct)
    tracemalloc.start()
    try:
        check_pair(pair.base, pair.instruct)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000, f"{peak} bytes for two tensors of 48 MB"


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, place: int) -> None:
    pair = large(tmp_path)
    tensors = read(pair.instruct)
    tensors[Q].reshape(-1)[place] = value
    tensors[NORM][3] = value
    for file in pair.instruct.glob("*.safetensors*"):
        file.unlink()
    rewritten = write_model(tmp_path / "again", tensors)
    save_tokenizer(rewritten)
    with pytest.raises(NotFiniteError, match=f"{Q} of .*again holds NaN or infinity"):
        check_pair(pair.base, rewritten)
    with pytest.raises(NotFiniteError, match=f"{NORM} of .*again holds NaN or infinity"):
        sampled(Pair(pair.base, rewritten))


def test_independent_models_are_unrelated(tmp_path: Path) -> None:
    pair = large(tmp_path)
    other = write_model(tmp_path / "other", {name: array[::-1] for name, array in read(pair.instruct).items()})
    save_tokenizer(other)
    for check in (lambda: check_pair(pair.base, other), lambda: sampled(Pair(pair.base, other))):
        with pytest.raises(UnrelatedError, match=r"sigma 0\.70\d\d.* is above 0.5; pass the Base this Instruct"):
            check()


def test_a_sample_without_any_difference_is_the_same_model(tmp_path: Path) -> None:
    pair = large(tmp_path, distance=0.0)
    with pytest.raises(SameModelError, match=r"are the same model: none of [0-9]+ sampled weights differs"):
        sampled(pair)
    wide = write_model(tmp_path / "wide", {n: a.astype(F32) for n, a in read(pair.base).items()})
    with pytest.raises(SameModelError, match="none of all weights differs"):
        check_pair(wide, pair.instruct)


def test_a_file_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    pair = large(tmp_path)
    base, instruct = open_checkpoint(pair.base), open_checkpoint(pair.instruct)
    for shard in pair.instruct.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 8])
    for full in (False, True):
        with pytest.raises(CheckpointError, match=r"expected \d+"):
            compare_models(base, instruct, full=full)


def test_the_three_aggregations_are_named_and_differ(tiny_llama_pair: Pair) -> None:
    base, instruct = read(tiny_llama_pair.base), read(tiny_llama_pair.instruct)
    for full in (False, True):
        sigma = compare_models(
            *map(open_checkpoint, (tiny_llama_pair.base, tiny_llama_pair.instruct)), full=full, aggregations=True
        )["sigma"]
        figures = sigma["aggregations"]
        inside = [oracle(base, instruct, name) for name in base if name.startswith("model.layers.")]
        assert figures["mean_over_layer_tensors"]["value"] == pytest.approx(np.mean(inside), rel=1e-7)
        assert figures["ratio_over_all_tensors"]["value"] == pytest.approx(oracle(base, instruct), rel=1e-7)
        assert figures["ratio_over_language_model"]["value"] == figures["ratio_over_all_tensors"]["value"]
        assert all(figure["definition"] and figure["source"] for figure in figures.values())
        assert "aggregations" not in sampled(tiny_llama_pair)["sigma"]


def test_a_report_has_the_facts_of_both_models(family_pair: Callable[..., Pair]) -> None:
    pair = family_pair("llama")
    facts = sampled(pair)["facts"]
    for role, folder in (("base", pair.base), ("instruct", pair.instruct)):
        tensors = read(folder)
        assert facts[role] == {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "tensors": len(tensors),
            "weights": sum(array.size for array in tensors.values()),
            "dtypes": ["BF16"],
            "tied": False,
            "tokens": 53,
            "chat_template": role == "instruct",
            "rope": {"rope_theta": 10000.0, "rope_type": "default"},
        }
