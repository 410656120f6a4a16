"""Grafts that must be refused raise their own class and write nothing; waivers are recorded."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.cli import main
from shadowft_core.delta import extract
from shadowft_core.errors import GraftError, OntoBaseError, PairError, TensorMissingError, UnrelatedError
from shadowft_core.grafting import Options, graft, grafted_tensors
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import write_model
from tests.test_graft import BF16, F32, SHAPES, Q, Tensors, bits, make, noise, refused, tensors_of

NORM = "model.layers.0.input_layernorm.weight"


def save(folder: Path, **models: Tensors) -> dict[str, Path]:
    return {name: write_model(folder / name, tensors, 2) for name, tensors in models.items()}


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Path]:
    """Base, Instruct and tuned Base, with norms near 1, and a delta."""
    models = make(BF16)
    for number, model in enumerate(models):
        model[NORM] = (1 + np.arange(8) / 64 + number / 32).astype(BF16)
    folders = save(tmp_path, base=models[0], instruct=models[1], tuned=models[2])
    extract(folders["base"], folders["tuned"], tmp_path / "delta")
    return folders | {"delta": tmp_path / "delta"}


def test_a_delta_on_its_own_base_needs_a_waiver(case: dict[str, Path], tmp_path: Path) -> None:
    deltas = [(case["delta"], 1.0)]
    refused(OntoBaseError, "or --onto-base", case["base"], deltas)
    refused(OntoBaseError, "or --onto-base", case["base"], deltas, waivers=["unrelated"])
    other_shards = write_model(tmp_path / "whole", tensors_of(case["base"]))
    refused(OntoBaseError, "or --onto-base", other_shards, deltas)
    with pytest.raises(OntoBaseError):
        grafted_tensors(case["base"], deltas)
    recipe = graft(case["base"], deltas, tmp_path / "out", Options(waivers=["onto-base"]))
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    assert (receipt["onto_base"], receipt["waivers"], recipe["waivers"]) == (True, ["onto-base"], ["onto-base"])
    graft(case["instruct"], deltas, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    assert (receipt["onto_base"], receipt["waivers"]) == (False, [])


def test_one_of_several_deltas_on_its_own_base_is_recorded(case: dict[str, Path], tmp_path: Path) -> None:
    extract(case["instruct"], case["tuned"], tmp_path / "other")
    waivers = ["unrelated", "onto-base", "unrelated"]
    for number, deltas in enumerate(([case["delta"], tmp_path / "other"], [tmp_path / "other", case["delta"]])):
        out = tmp_path / f"out{number}"
        graft(case["base"], [(delta, 0.5) for delta in deltas], out, Options(waivers=waivers))
        receipt = json.loads((out / "receipt.json").read_bytes())
        assert (receipt["onto_base"], receipt["waivers"]) == (True, ["onto-base", "unrelated"])


@pytest.mark.parametrize("scale", [float("inf"), float("-inf"), float("nan")])
def test_a_scale_that_is_not_finite_is_refused(case: dict[str, Path], scale: float) -> None:
    refused(GraftError, rf"delta: scale {scale}; expected a finite number", case["instruct"], [(case["delta"], scale)])
    with pytest.raises(GraftError, match=rf"scale {scale} for '\*q\*'; expected a finite number"):
        Options(scale_for=[("*q*", scale)])


def test_one_value_outside_the_sample_makes_another_model(case: dict[str, Path], tmp_path: Path) -> None:
    """Equal samples prove nothing; the digest decides."""
    nearly = tensors_of(case["base"])
    nearly[Q][1, 2] += BF16.type(0.01)
    graft(write_model(tmp_path / "nearly", nearly), [(case["delta"], 1.0)], tmp_path / "out")


def test_an_instruct_of_another_family_is_refused(case: dict[str, Path], tmp_path: Path) -> None:
    stranger = {n: a.astype(BF16) for n, a in noise(77, 0.02).items()}
    stranger[NORM] = tensors_of(case["instruct"])[NORM]  # norms near 1 must not make unrelated models look related
    folder = write_model(tmp_path / "stranger", stranger)
    deltas = [(case["delta"], 0.5)]
    refused(
        UnrelatedError, r"stranger: the Instruct is 0\.[67]\d from the delta's Base.* or --unrelated", folder, deltas
    )
    assert issubclass(UnrelatedError, PairError)
    recipe = graft(folder, deltas, tmp_path / "out", Options(waivers=["unrelated"]))
    assert recipe["waivers"] == ["unrelated"]
    far = {n: (a.astype(F32) + noise(8, 0.01)[n]).astype(BF16) for n, a in tensors_of(case["base"]).items()}
    graft(write_model(tmp_path / "far", far), deltas, tmp_path / "out")  # sigma near 0.25: still related


def test_a_single_exchanged_or_transposed_matrix_is_detected(tmp_path: Path) -> None:
    """The shape fits and the whole model is close, so only the matrix itself shows the error."""
    rng, names = np.random.default_rng(3), [f"model.layers.{n}.self_attn.q_proj.weight" for n in range(12)]
    base = {n: (0.02 * rng.standard_normal((48, 48))).astype(BF16) for n in names}
    instruct = {n: (a.astype(F32) + 0.001 * rng.standard_normal(a.shape)).astype(BF16) for n, a in base.items()}
    tuned = {n: (a.astype(F32) * F32.type(1.25)).astype(BF16) for n, a in base.items()}
    save(tmp_path, base=base, instruct=instruct, tuned=tuned)
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    deltas = [(tmp_path / "delta", 1.0)]
    graft(tmp_path / "instruct", deltas, tmp_path / "out")
    transposed = instruct | {names[3]: instruct[names[3]].T}
    exchanged = instruct | {names[5]: instruct[names[6]], names[6]: instruct[names[5]]}
    for number, (tensors, layer) in enumerate([(transposed, 3), (exchanged, 5)]):
        message = rf"tensor model\.layers\.{layer}\.self_attn\.q_proj\.weight alone 0\.\d+ "
        refused(UnrelatedError, message, write_model(tmp_path / f"other{number}", tensors), deltas)


def test_every_tensor_of_both_models_is_accounted_for(case: dict[str, Path], tmp_path: Path) -> None:
    own = tensors_of(case["instruct"])
    still = tensors_of(case["base"]) | {Q: tensors_of(case["tuned"])[Q]}
    extract(case["base"], write_model(tmp_path / "one", still), tmp_path / "only-q")
    deltas = [(tmp_path / "only-q", 1.0)]
    extra = own | {"model.layers.2.mlp.down_proj.weight": own["model.layers.1.mlp.down_proj.weight"]}
    dropped = {n: a for n, a in own.items() if n != NORM}
    renamed = {n.replace("input_layernorm", "norm1"): a for n, a in own.items()}
    for number, (tensors, message) in enumerate(
        [
            (extra, r"the Instruct has model\.layers\.2\..*, the Base does not \(1 in all\)"),
            (dropped, r"the Base has .*input_layernorm.weight, the Instruct does not"),
            (renamed, r"the Base has .*input_layernorm.weight, the Instruct does not"),
        ]
    ):
        refused(TensorMissingError, message, write_model(tmp_path / f"other{number}", tensors), deltas)
    graft(case["instruct"], deltas, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    assert set(receipt["grafted"]) == {Q}
    assert receipt["untouched"] == dict.fromkeys(set(SHAPES) - {Q}, "no delta")


def test_waivers_are_options_of_the_verb(
    case: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shadowft(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["shadowft", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    params = Path(__file__).parent.parent / "params.yaml"
    words = ("graft", "--instruct", case["base"], "--delta", f"{case['delta']}@1", "--out", tmp_path / "out")
    assert shadowft(*words, "--params", params) == OntoBaseError.exit_code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert not (tmp_path / "out").exists()
    assert shadowft(*words, "--params", params, "--onto-base") == 0
    assert shadowft("receipt", tmp_path / "out") == 0
    assert "waived by name: onto-base" in capsys.readouterr().out


def test_an_unknown_waiver_is_refused(case: dict[str, Path]) -> None:
    refused(
        GraftError,
        "waiver 'everything'; expected one of",
        case["instruct"],
        [(case["delta"], 1.0)],
        waivers=["everything"],
    )


def random_model(rng: np.random.Generator, names: list[str], dtype: Any) -> tuple[Tensors, Tensors, Tensors]:
    base, instruct, tuned = {}, {}, {}
    for name in names:
        dimensions = int(rng.integers(1, 4))
        shape = tuple(int(n) for n in rng.integers(1, (200_000, 600, 60)[dimensions - 1], dimensions))
        weights = (0.02 * rng.standard_normal(shape)).astype(F32)
        base[name] = weights.astype(dtype)
        instruct[name] = (weights + 0.001 * rng.standard_normal(shape)).astype(dtype)
        tuned[name] = (weights + 0.002 * rng.standard_normal(shape)).astype(dtype)
    for model in (base, instruct, tuned):  # one matrix large enough to measure the distance
        model["kin.weight"] = (np.linspace(-1, 1, 4096) + len(model) / 1e9).reshape(64, 64).astype(dtype)
    tuned["kin.weight"] = (tuned["kin.weight"].astype(F32) * F32.type(1.125)).astype(dtype)
    instruct["kin.weight"] = (instruct["kin.weight"].astype(F32) * F32.type(0.875)).astype(dtype)
    return base, instruct, tuned


@pytest.mark.parametrize("seed", range(12))
def test_random_grafts_equal_the_definition(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any shapes, dtypes, shard layouts, threads and chunk sizes: equal to the ten-line definition, bit for bit."""
    rng = np.random.default_rng(seed)
    dtype = [BF16, np.dtype(np.float16), F32][seed % 3]
    names = [f"model.layers.{n}.part{n % 3}.weight" for n in range(int(rng.integers(2, 9)))]
    base, instruct, tuned = random_model(rng, names, dtype)
    folders = [
        write_model(tmp_path / str(number), model, int(rng.integers(1, 4)))
        for number, model in enumerate((base, instruct, tuned))
    ]
    monkeypatch.setattr("shadowft_core.files.ordered_map.WORKERS", 1 + seed % 2)
    extract(folders[0], folders[2], tmp_path / "delta")
    scale, other = float(rng.normal()), float(rng.normal())
    scope = "all" if seed % 4 else ["*part0*", "kin*"]
    scale_for = [("*part0*", other)] if seed % 2 else []
    graft(folders[1], [(tmp_path / "delta", scale)], tmp_path / "out", Options(scope, scale_for=scale_for))
    expected = {}
    for name, weights in instruct.items():
        travels = scope == "all" or "part0" in name or "kin" in name
        factor = F32.type(other if scale_for and "part0" in name else scale)
        delta = tuned[name].astype(F32) - base[name].astype(F32)
        expected[name] = (weights.astype(F32) + factor * delta).astype(dtype) if travels else weights
    assert bits(tensors_of(tmp_path / "out")) == bits(expected)
    assert (
        open_checkpoint(tmp_path / "out").digest() == json.loads((tmp_path / "out/recipe.json").read_bytes())["digest"]
    )
