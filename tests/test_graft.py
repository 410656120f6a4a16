"""Grafting: bit-equal to a small in-memory oracle, complete, and fail-closed."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import (
    CastOverflowError,
    DeltaError,
    GraftError,
    NotFiniteError,
    OntoBaseError,
    QuantisedError,
    ShadowError,
    ShapeMismatchError,
    TensorMissingError,
)
from shadowft_core.files import write_json_atomically
from shadowft_core.grafting import Options, chosen, graft, grafted_tensors
from shadowft_core.params import Graft
from shadowft_core.weights import INDEX, open_checkpoint
from tests.fixtures.models import write_model

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
SHAPES = {
    "model.embed_tokens.weight": (40, 8),
    "model.layers.0.self_attn.q_proj.weight": (300, 700),
    "model.layers.0.mlp.experts.gate_up_proj": (3, 16, 32),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.1.mlp.down_proj.weight": (700, 300),
}
Q = "model.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, np.ndarray]


def noise(seed: int, size: float) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: size * rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def make(dtype: np.dtype[Any], seed: int = 0) -> tuple[Tensors, Tensors, Tensors]:
    """Base, Instruct and tuned Base, all in `dtype`."""
    base = {n: a.astype(dtype) for n, a in noise(seed, 0.02).items()}
    instruct = {n: (a.astype(F32) + noise(seed + 1, 0.001)[n]).astype(dtype) for n, a in base.items()}
    tuned = {n: (a.astype(F32) + noise(seed + 2, 0.001)[n]).astype(dtype) for n, a in base.items()}
    return base, instruct, tuned


def oracle(base: Tensors, instruct: Tensors, tuned: Tensors, scale: float) -> Tensors:
    """The definition, in memory: float32 inside, one rounding at the end."""
    result = {}
    for name, weights in instruct.items():
        delta = tuned[name].astype(np.float32) - base[name].astype(np.float32)
        exact = weights.astype(np.float32) + np.float32(scale) * delta
        result[name] = exact.astype(weights.dtype)
    return result


def bits(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {n: (str(a.dtype), a.shape, np.ascontiguousarray(a).tobytes()) for n, a in tensors.items()}


def tensors_of(folder: Path) -> Tensors:
    model = open_checkpoint(folder)
    return {name: model.read(name) for name in model.names}


def refused(kind: type[ShadowError], message: str, instruct: Path, deltas: Any, **options: Any) -> None:
    out = instruct.parent / "refused"
    with pytest.raises(kind, match=message) as caught:
        graft(instruct, deltas, out, Options(**options))
    assert "\n" not in str(caught.value)
    assert not list(out.parent.glob("*refused*")), "something was written"


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_the_result_equals_the_oracle_bit_for_bit(
    tmp_path: Path, dtype: np.dtype[Any], shards: int, scale: float
) -> None:
    base, instruct, tuned = make(dtype)
    folders = [write_model(tmp_path / str(i), t, shards) for i, t in enumerate((base, instruct, tuned))]
    extract(folders[0], folders[2], tmp_path / "delta")
    recipe = graft(folders[1], [(tmp_path / "delta", scale)], tmp_path / "out")
    expected = bits(oracle(base, instruct, tuned, scale))
    assert bits(tensors_of(tmp_path / "out")) == expected
    in_memory = dict(grafted_tensors(folders[1], [(tmp_path / "delta", scale)]))
    assert bits(in_memory) == expected
    assert list(in_memory) == open_checkpoint(folders[1]).names
    assert recipe["digest"] == open_checkpoint(tmp_path / "out").digest()
    assert recipe["instruct"]["digest"] == open_checkpoint(folders[1]).digest()


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path]:
    """Instruct and delta, bfloat16, two shards."""
    base, instruct, tuned = make(BF16)
    names = ("base", "instruct", "tuned")
    folders = [write_model(tmp_path / n, t, 2) for n, t in zip(names, (base, instruct, tuned), strict=True)]
    extract(folders[0], folders[2], tmp_path / "delta")
    return folders[1], tmp_path / "delta"


def test_several_deltas_sum_before_the_one_rounding(tmp_path: Path) -> None:
    base, instruct, first = make(BF16)
    second = {n: (a.astype(F32) + noise(9, 0.002)[n]).astype(BF16) for n, a in base.items()}
    for name, tensors in {"base": base, "instruct": instruct, "first": first, "second": second}.items():
        write_model(tmp_path / name, tensors)
    for name in ("first", "second"):
        extract(tmp_path / "base", tmp_path / name, tmp_path / f"delta-{name}")
    deltas = [(tmp_path / "delta-first", 0.5), (tmp_path / "delta-second", 0.25)]
    expected = {
        n: (
            a.astype(F32)
            + (
                (first[n].astype(F32) - base[n].astype(F32)) * F32.type(0.5)
                + (second[n].astype(F32) - base[n].astype(F32)) * F32.type(0.25)
            )
        ).astype(BF16)
        for n, a in instruct.items()
    }
    assert bits(dict(grafted_tensors(tmp_path / "instruct", deltas))) == bits(expected)


def test_scale_zero_gives_the_instruct(case: tuple[Path, Path], tmp_path: Path) -> None:
    instruct, delta = case
    recipe = graft(instruct, [(delta, 0.0)], tmp_path / "out")
    assert recipe["digest"] == recipe["instruct"]["digest"]
    for file in instruct.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    assert set(receipt["untouched"].values()) == {"scale 0"}


def test_a_delta_on_its_own_base_gives_the_tuned_model(tmp_path: Path) -> None:
    _, instruct, tuned = make(BF16)
    folder = write_model(tmp_path / "instruct", instruct)
    extract(folder, write_model(tmp_path / "tuned", tuned), tmp_path / "delta")
    refused(OntoBaseError, "the Instruct is the delta's own Base", folder, [(tmp_path / "delta", 1.0)])
    recipe = graft(folder, [(tmp_path / "delta", 1.0)], tmp_path / "out", Options(waivers=["onto-base"]))
    assert recipe["waivers"] == ["onto-base"]
    for name, out in tensors_of(tmp_path / "out").items():
        # Exact but for weights 2^16 times smaller than what they came from: float32 cannot hold both in one difference.
        apart = np.abs(out.astype(F32) - tuned[name].astype(F32))
        assert (apart <= np.abs(instruct[name].astype(F32)) * 2.0**-24).all()
        assert np.mean(apart == 0) > 0.9999
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    assert (receipt["onto_base"], receipt["waivers"]) == (True, ["onto-base"])


def test_scope_selects_the_tensors(case: tuple[Path, Path], tmp_path: Path) -> None:
    instruct, delta = case
    linear = {n for n in SHAPES if "proj" in n}
    for scope, expected in [
        ("all", set(SHAPES)),
        ("linear", linear),
        (["*q_proj*", "*layernorm*"], {n for n in SHAPES if "q_proj" in n or "layernorm" in n}),
    ]:
        before, after = tensors_of(instruct), dict(grafted_tensors(instruct, [(delta, 1.0)], Options(scope)))
        assert {n for n in before if bits({"": before[n]}) != bits({"": after[n]})} == expected
    graft(instruct, [(delta, 1.0)], tmp_path / "out", Options("linear"))
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    assert set(receipt["grafted"]) == linear
    assert receipt["untouched"] == dict.fromkeys(set(SHAPES) - linear, "out of scope")
    assert len(receipt["grafted"]) + len(receipt["untouched"]) == len(SHAPES), "every tensor is accounted for"
    refused(GraftError, r"'\*nowhere\*' matches none", instruct, [(delta, 1.0)], scope=["*q_proj*", "*nowhere*"])


def test_retention_measures_the_rounding(case: tuple[Path, Path], tmp_path: Path) -> None:
    instruct, delta = case
    before, exact = tensors_of(instruct), {n: open_delta(delta).read(n) for n in SHAPES}
    graft(instruct, [(delta, 1.0)], tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    for name in SHAPES:
        want = exact[name].astype(np.float64).ravel()
        got = (after[name].astype(np.float64) - before[name].astype(np.float64)).ravel()
        entry = receipt["grafted"][name]
        assert entry["cosine"] == pytest.approx(want @ got / np.linalg.norm(want) / np.linalg.norm(got), rel=1e-4)
        assert entry["energy"] == pytest.approx(1 - np.sum((got - want) ** 2) / np.sum(want**2), rel=1e-4)
        assert entry["unchanged"] == pytest.approx(np.mean(got[want != 0] == 0), abs=1e-6)
        assert entry["delta_norm"] == pytest.approx(np.linalg.norm(want), rel=1e-4)
    assert 0.9 < receipt["retention"]["energy"] < 1
    graft(instruct, [(delta, 1.0)], tmp_path / "exact", Options(dtype="float32"))
    retention = json.loads((tmp_path / "exact" / "receipt.json").read_bytes())["retention"]
    assert retention["energy"] > 0.999999
    assert retention["unchanged"] < 1e-3


def test_a_sharded_result_has_a_correct_index(case: tuple[Path, Path], tmp_path: Path) -> None:
    instruct, delta = case
    graft(instruct, [(delta, 1.0)], tmp_path / "out", Options(dtype="float32"))
    index = json.loads((tmp_path / "out" / INDEX).read_bytes())
    assert index["metadata"]["total_size"] == sum(4 * a.size for a in tensors_of(tmp_path / "out").values())
    assert index["weight_map"] == json.loads((instruct / INDEX).read_bytes())["weight_map"]


def test_a_recipe_repeats_a_graft(case: tuple[Path, Path], tmp_path: Path) -> None:
    instruct, delta = case
    first = graft(instruct, [(delta, 0.7)], tmp_path / "one")
    options = Options(first["scope"], first["dtype"])
    second = graft(instruct, [(delta, first["deltas"][0]["scale"])], tmp_path / "two", options)
    assert first == second == json.loads((tmp_path / "one" / "recipe.json").read_bytes())
    assert first["deltas"] == [{"digest": open_delta(delta).digest, "scale": 0.7}]
    files = [{f.name: f.read_bytes() for f in (tmp_path / d).iterdir()} for d in ("one", "two")]
    assert files[0] == files[1]


def instruct_with(folder: Path, **changes: Any) -> Path:
    _, instruct, _ = make(BF16)
    shutil.rmtree(folder, ignore_errors=True)
    config = changes.pop("config", {})
    return write_model(folder, {n: a for n, a in (instruct | changes).items() if a is not None}, **config)


@pytest.mark.parametrize("dtype", ["instruct", "float32"])
def test_the_recipe_has_the_digests_of_both_models(case: tuple[Path, Path], tmp_path: Path, dtype: str) -> None:
    recipe = graft(case[0], [(case[1], 1.0)], tmp_path / "out", Options(scope="linear", dtype=dtype))
    digests = [open_checkpoint(folder).digest() for folder in (case[0], tmp_path / "out")]
    assert [recipe["instruct"]["digest"], recipe["digest"]] == digests


def test_tensors_that_do_not_fit_are_refused(case: tuple[Path, Path], tmp_path: Path) -> None:
    delta = [(case[1], 1.0)]
    weights = make(BF16)[1][Q]
    poisoned, huge = weights.copy(), weights.copy()
    poisoned[7, 7], huge[299, 699] = np.nan, 3.38e38
    for changes, kind, message in [
        ({Q: None}, TensorMissingError, "q_proj.weight is missing in .*same family"),
        ({Q: None, "renamed.weight": weights}, TensorMissingError, "q_proj.weight is missing"),
        ({Q: weights.T}, ShapeMismatchError, r"\(300, 700\), .*\(700, 300\)"),
        ({Q: np.ones((300, 700), np.int8)}, QuantisedError, "q_proj.weight: .* as I8"),
        ({Q: weights.astype(ml_dtypes.float8_e4m3fn)}, QuantisedError, "as F8_E4M3"),
        ({Q: poisoned}, NotFiniteError, "the Instruct's tensor .*q_proj.weight has NaN"),
        ({"config": {"quantization_config": {"bits": 4}}}, QuantisedError, "quantization_config"),
    ]:
        refused(kind, message, instruct_with(tmp_path / "other", **changes), delta)
    refused(GraftError, "scale nan", case[0], [(case[1], float("nan"))])
    refused(GraftError, "dtype 'int8'", case[0], delta, dtype="int8")
    refused(DeltaError, "no delta.json", case[0], [(case[0], 1.0)])
    with pytest.raises(TensorMissingError, match="is missing"):
        grafted_tensors(instruct_with(tmp_path / "other", **{Q: None}), delta)


def test_overflow_is_refused_with_both_values(tmp_path: Path) -> None:
    base, instruct, tuned = make(F16)
    tuned[Q][3, 5], base[Q][3, 5], instruct[Q][3, 5] = 60000, 40000, 60000
    for name, tensors in {"base": base, "instruct": instruct, "tuned": tuned}.items():
        write_model(tmp_path / name, tensors)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    message = r"q_proj.weight: 60000 \+ 20000 overflows F16; lower the scale"
    refused(CastOverflowError, message, tmp_path / "instruct", [(tmp_path / "delta", 1.0)])
    graft(tmp_path / "instruct", [(tmp_path / "delta", 1.0)], tmp_path / "out", Options(dtype="float32"))
    assert tensors_of(tmp_path / "out")[Q][3, 5] == 80000


def test_a_damaged_delta_is_refused(case: tuple[Path, Path]) -> None:
    instruct, delta = case
    file = delta / "dense.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    refused(DeltaError, r"delta\.json has sha256:", instruct, [(delta, 1.0)])


def test_inputs_are_never_replaced(case: tuple[Path, Path]) -> None:
    instruct, delta = case
    for out in (instruct, delta, instruct / ".." / "instruct"):
        with pytest.raises(GraftError, match="contains the input"):
            graft(instruct, [(delta, 1.0)], out)
    assert open_delta(delta).names


def test_the_stage_finds_its_scale(case: tuple[Path, Path], tmp_path: Path) -> None:
    instruct, delta = case
    sweep = tmp_path / "sweep.json"
    write_json_atomically(sweep, {"format": 1, "scale": 0.5, "scope": "linear"})

    def recipe(file: Path | None, scale: float | None, params: Graft) -> Any:
        scaled, options = chosen([(delta, None)], Options(), params, file, scale)
        graft(instruct, scaled, tmp_path / "out", options)
        made = json.loads((tmp_path / "out" / "recipe.json").read_bytes())
        return made["deltas"][0]["scale"], made["scope"]

    assert recipe(sweep, None, Graft()) == (0.5, "linear")
    assert recipe(sweep, None, Graft(scale=0.25)) == (0.25, "linear")
    assert recipe(sweep, 2.0, Graft(scale=0.25)) == (2.0, "linear")
    assert recipe(None, 0.75, Graft()) == (0.75, "all")
    with pytest.raises(GraftError, match=r"no sweep file is given; pass --sweep FILE or --scale NUMBER"):
        recipe(None, None, Graft())
    write_json_atomically(sweep, {"format": 1, "scale": None, "scope": "all"})
    with pytest.raises(GraftError, match=r"sweep\.json has none"):
        recipe(sweep, None, Graft())
