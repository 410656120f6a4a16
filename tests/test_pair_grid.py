"""A dequantised model is reported, for every quantisation and every dtype; other weights are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.pair import compare_models
from shadowft_core.pair.grid import FOUR_BITS, PIECE, count_levels
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair, save_tokenizer, write_model

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
NF4 = np.array(  # the levels of bitsandbytes (QLoRA, Dettmers et al. 2023, appendix E)
    [
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)
Change = Callable[[np.ndarray], np.ndarray]


def in_blocks(size: int, quantised: Change) -> Change:
    return lambda w: quantised(w.reshape(-1, size or w.shape[1])).reshape(w.shape)


def absmax(levels: int) -> Change:
    def change(blocks: np.ndarray) -> np.ndarray:
        scale = np.abs(blocks).max(axis=1, keepdims=True) / levels
        return np.round(blocks / scale) * scale

    return change


def zero_point(blocks: np.ndarray) -> np.ndarray:
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / 15
    return np.round((blocks - low) / scale) * scale + low


def nf4(blocks: np.ndarray) -> np.ndarray:
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    return NF4[np.abs((blocks / scale)[..., None] - NF4).argmin(axis=-1)] * scale


def mxfp4(blocks: np.ndarray) -> np.ndarray:
    scale = 2.0 ** (np.floor(np.log2(np.abs(blocks).max(axis=1, keepdims=True))) - 2)
    return (blocks / scale).astype(ml_dtypes.float4_e2m1fn).astype(float) * scale


def nvfp4(blocks: np.ndarray) -> np.ndarray:
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / 6).astype(ml_dtypes.float8_e4m3fn).astype(float)
    return (blocks / scale).astype(ml_dtypes.float4_e2m1fn).astype(float) * scale


def fp8(kind: Any, largest: float) -> Change:
    def change(w: np.ndarray) -> np.ndarray:
        scale = np.abs(w).max() / largest
        return (w / scale).astype(kind).astype(float) * scale

    return change


def in_tiles(side: int, quantised: Change) -> Change:
    def change(w: np.ndarray) -> np.ndarray:
        out = w.copy()
        for row in range(0, w.shape[0], side):
            for column in range(0, w.shape[1], side):
                tile = np.s_[row : row + side, column : column + side]
                out[tile] = quantised(w[tile])
        return out

    return change


def transposed(quantised: Change) -> Change:
    return lambda w: quantised(np.ascontiguousarray(w.T)).T


E4M3, E5M2 = fp8(ml_dtypes.float8_e4m3fn, 448.0), fp8(ml_dtypes.float8_e5m2, 57344.0)
QUANTISED: dict[str, Change] = {
    "int8, a scale a row (LLM.int8)": in_blocks(0, absmax(127)),
    "int8, a scale a column": transposed(in_blocks(0, absmax(127))),
    "int8, one scale": absmax(127),
    "int8 in blocks of 64": in_blocks(64, absmax(127)),
    "int8 in blocks of 32 (Q8_0)": in_blocks(32, absmax(127)),
    "fp8 E4M3, one scale": E4M3,
    "fp8 E4M3 in tiles of 128": in_tiles(128, E4M3),
    "fp8 E4M3 without a scale": lambda w: w.astype(ml_dtypes.float8_e4m3fn).astype(float),
    "fp8 E5M2, one scale": E5M2,
    "int4 in groups of 32": in_blocks(32, absmax(7)),
    "int4 in groups of 64": in_blocks(64, absmax(7)),
    "int4 in groups of 128": in_blocks(128, absmax(7)),
    "int4 with a zero point (GPTQ, Q4_1)": in_blocks(128, zero_point),
    "int4 in groups down the columns": transposed(in_blocks(32, zero_point)),
    "nf4 in blocks of 64": in_blocks(64, nf4),
    "mxfp4": in_blocks(32, mxfp4),
    "nvfp4": in_blocks(16, nvfp4),
    "ternary": lambda w: np.sign(w) * (np.abs(w) > 0.01) * 0.0137,
}
noise = np.random.default_rng(1)
SMOOTH: dict[str, Change] = {
    "normal": lambda w: w,
    "normal, tiny": lambda w: 1e-4 * w,
    "uniform": lambda w: noise.uniform(-0.05, 0.05, w.shape),
    "Laplace": lambda w: noise.laplace(size=w.shape) * 0.02,
    "heavy tails": lambda w: noise.standard_t(3, w.shape) * 0.02,
    "pruned": lambda w: w * (noise.random(w.shape) < 0.5),
    "clipped": lambda w: w.clip(-0.02, 0.02),
    "around one": lambda w: 1 + w,
    "narrower than a step of the dtype": lambda w: 1 + 0.01 * w,
    "of rank 4": lambda w: noise.standard_normal((w.shape[0], 4)) @ noise.standard_normal((4, w.shape[1])),
    "bfloat16 before": lambda w: w.astype(BF16).astype(float),
    "around one, bfloat16 before": lambda w: (1 + w).astype(BF16).astype(float),
    "bfloat16 before, then scaled": lambda w: w.astype(BF16).astype(float) * 0.0883,
    "float16 before": lambda w: w.astype(np.float16).astype(float),
    "equal rows": lambda w: np.repeat(w[:1], len(w), axis=0)[:, : w.shape[1]],
    "constant": lambda w: np.full(w.shape, 0.5),
    "zeros": np.zeros_like,
    "a mask": np.tril,
}


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    return 0.02 * np.random.default_rng(0).standard_normal((384, 384))


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_only_a_quantised_matrix_has_levels(matrix: np.ndarray, dtype: np.dtype) -> None:
    for name, change in {**QUANTISED, **SMOOTH}.items():
        stored = change(matrix).astype(F32).astype(dtype).reshape(-1)
        for start in (0, 50_005, 101_111):  # as in a sample, not at the start of a block
            found = count_levels(stored[start : start + PIECE], matrix.shape[1])
            if name in SMOOTH:
                assert found is None, f"{name}: {found} levels"
            else:
                bits = 8 if "8" in name.split()[0] else 4
                assert found, name
                assert (found > FOUR_BITS) == (bits == 8), f"{name}: {found} levels"


def model(folder: Path, tensors: dict[str, np.ndarray], template: bool) -> Path:
    write_model(folder, tensors)
    save_tokenizer(folder, template)
    return folder


def tensors(matrix: np.ndarray, distance: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    apart = lambda: matrix + distance * 0.02 * rng.standard_normal(matrix.shape)  # noqa: E731
    names = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    matrices = {f"model.layers.{layer}.{name}.weight": apart() for layer in (0, 1) for name in names}
    return matrices | {"model.norm.weight": np.ones(64), "model.embed_tokens.weight": apart()[:64]}


@pytest.mark.parametrize("full", [False, True], ids=["sampled", "full"])
@pytest.mark.parametrize("side", ["Base", "Instruct"])
def test_the_side_that_was_dequantised_is_named(matrix: np.ndarray, tmp_path: Path, side: str, full: bool) -> None:
    """Quantised as tools do it: the linear layers, but not embedding and norms."""
    folders = {}
    for name, distance in (("Base", 0.0), ("Instruct", 0.02)):
        weights = tensors(matrix, distance)
        if name == side:
            weights = {n: in_blocks(64, nf4)(w) if "layers" in n else w for n, w in weights.items()}
        typed = {n: w.astype(F32).astype(BF16) for n, w in weights.items()}
        folders[name] = model(tmp_path / name, typed, template=name == "Instruct")
    found = compare_models(*(open_checkpoint(folders[name]) for name in ("Base", "Instruct")), full=full)
    assert found["verdict"] == "warn"
    assert found["sigma"]["modules"]["q_proj"] > 0.04, "what the warning is about: the two are 0.01 apart"
    [reason] = found["reasons"]
    assert reason == (
        f"the {side} was dequantised: 6 of 7 matrices are on a grid of 4 bits or fewer (int4, nf4, mxfp4), the first "
        "is model.layers.0.self_attn.q_proj.weight; sigma measures that grid, and a graft keeps it; use the original "
        "weights"
    )


def test_an_ordinary_pair_gets_no_warning(matrix: np.ndarray, tmp_path: Path, tiny_llama_pair: Pair) -> None:
    """A pair with a small table that happens to look like a grid gets none either."""
    pair = Pair(tmp_path / "base", tmp_path / "instruct")
    for folder, distance in ((pair.base, 0.0), (pair.instruct, 0.02)):
        weights = tensors(matrix, distance)
        weights["model.table.weight"] = np.tile([[0.25, -0.5, 0.75, -0.125]], (64, 64))
        typed = {n: w.astype(F32).astype(BF16) for n, w in weights.items()}
        model(folder, typed, template=folder == pair.instruct)
    for each in (pair, tiny_llama_pair):
        found = compare_models(open_checkpoint(each.base), open_checkpoint(each.instruct), full=False)
        assert (found["verdict"], found["reasons"]) == ("ok", [])
