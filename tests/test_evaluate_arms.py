"""Engine hf: arms made by changing the Instruct's parameters in place, and the Instruct's own bits afterwards."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract
from shadowft_core.errors import EvaluationError, NotFiniteError
from shadowft_core.evaluate import load_folder
from shadowft_core.evaluate.engines.hf import Hf
from shadowft_core.evaluate.engines.models import described
from shadowft_core.evaluate.engines.resident import places_of
from shadowft_core.grafting import Options, graft
from shadowft_core.weights import model_digest, open_checkpoint
from tests.fixtures.evaluation import World
from tests.fixtures.models import make_pair, shifted, write_weights

WAIVED = Options(waivers=("onto-base",))


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def state(model: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def require_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    import torch

    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


FAMILIES = [  # family, dtype, tied, fused; whether each tensor of the files is one parameter
    ("llama", "bfloat16", False, False, True),
    ("llama", "float32", True, False, True),
    ("gemma3_text", "bfloat16", True, False, True),
    ("phi3", "float16", False, False, True),
    ("mixtral", "bfloat16", False, False, False),
    ("qwen3_moe", "bfloat16", False, False, False),
    ("qwen3_moe", "bfloat16", False, True, True),
]


@pytest.mark.parametrize(("family", "dtype", "tied", "fused", "in_place"), FAMILIES)
def test_an_arm_has_the_bits_of_the_grafted_folder(
    tmp_path: Path, loads: list[Path], family: str, dtype: str, tied: bool, fused: bool, in_place: bool
) -> None:
    pair = make_pair(tmp_path, family, dtype, tied, fused)
    shifted(pair.base, tmp_path / "tuned", 0.01, seed=3)
    extract(pair.base, tmp_path / "tuned", tmp_path / "delta")
    before = {file: file.read_bytes() for file in pair.instruct.glob("*.safetensors")}
    untouched = state(load_folder(pair.instruct))
    engine = Hf(pair.instruct, tokenizer_of(pair.instruct), 4)
    options = [Options(), Options(dtype="float32"), Options(scope=["*layers.0*"])]
    loads.clear()
    for number, chosen in enumerate(options):
        out = tmp_path / f"out{number}"
        recipe = graft(pair.instruct, [(tmp_path / "delta", 0.7)], out, chosen)
        with engine.arm([(tmp_path / "delta", 0.7)], chosen) as arm:
            grafted = state(arm.lm.model)
            assert arm.digest == recipe["digest"] == open_checkpoint(out).digest()
        with engine.arm([], Options()) as arm:
            require_same(state(arm.lm.model), untouched)
            assert arm.digest == open_checkpoint(pair.instruct).digest()
        loaded = list(loads)
        require_same(grafted, state(load_folder(out)))
        loads[:] = loaded
    assert before == {file: file.read_bytes() for file in pair.instruct.glob("*.safetensors")}, "as on disk"
    assert len(loads) == (1 if in_place else 7), "the Instruct once, or each arm on its own"


def test_what_is_written_has_the_digest_of_the_recipe(world: World) -> None:
    """The parameters themselves, read back and cast to the dtype of the files, have the digest that the arm names."""
    engine = Hf(world.instruct, tokenizer_of(world.instruct), 4)
    checkpoint = open_checkpoint(world.instruct)

    def digest_of(model: Any) -> str:
        held = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        return model_digest({name: described(held[name]) for name in checkpoint.names})

    found = []
    for scale in (0.25, 1.0):
        with engine.arm([(world.delta, scale)], WAIVED) as arm:
            assert digest_of(arm.lm.model) == arm.digest
            found.append(arm.digest)
        with engine.arm([], Options()) as arm:
            assert digest_of(arm.lm.model) == arm.digest == checkpoint.digest()
    assert len({*found, checkpoint.digest()}) == 3


def test_an_arm_that_fails_leaves_the_instruct(world: World, loads: list[Path]) -> None:
    engine = Hf(world.instruct, tokenizer_of(world.instruct), 4)
    opened = engine.arm([(world.delta, 1.0)], WAIVED)
    model = opened.__enter__().lm.model
    assert not opened.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    require_same(state(model), state(load_folder(world.instruct)))
    loads.clear()
    with engine.arm([], Options()) as arm:
        assert arm.lm.model is model
    assert not loads


def test_a_delta_that_breaks_off_is_taken_back(world: World, tmp_path: Path) -> None:
    """The last tensor of the delta is damaged; those before it have been written by then."""
    instruct = open_checkpoint(world.instruct)
    tuned = shutil.copytree(world.instruct, tmp_path / "tuned")
    tensors = {name: instruct.read(name) + np.float32(0.5) for name in instruct.names}
    write_weights(tuned, tensors)
    extract(world.instruct, tuned, tmp_path / "delta", unrelated=True)
    damaged = shutil.copytree(world.instruct, tmp_path / "instruct")
    last = instruct.names[-1]
    tensors = {name: instruct.read(name) for name in instruct.names}
    tensors[last].reshape(-1)[-1] = np.inf
    write_weights(damaged, tensors)
    engine = Hf(damaged, tokenizer_of(world.instruct), 4)
    with engine.arm([], Options()) as arm:
        model, before = arm.lm.model, state(arm.lm.model)
    with pytest.raises(NotFiniteError, match=last):
        engine.arm([(tmp_path / "delta", 1.0)], WAIVED).__enter__()
    require_same(state(model), before)
    with engine.arm([], Options()) as arm:
        assert arm.lm.model is model


@pytest.mark.parametrize("deltas", [True, False])
def test_a_parameter_that_changes_during_an_arm_is_noticed(world: World, loads: list[Path], deltas: bool) -> None:
    """A change that taking the delta back does not undo: here, of the head, which is out of scope."""
    import torch

    engine = Hf(world.instruct, tokenizer_of(world.instruct), 4)
    arguments = ([(world.delta, 1.0)], Options(("*mlp*",), waivers=("onto-base",))) if deltas else ([], Options())
    noticed = pytest.raises(EvaluationError, match=r"parameter lm_head\.weight is not that of the Instruct any more")
    with noticed, engine.arm(*arguments) as arm, torch.no_grad():
        arm.lm.model.lm_head.weight[3, 4] += 1e-3
    loads.clear()
    with engine.arm([], Options()) as arm:
        require_same(state(arm.lm.model), state(load_folder(world.instruct)))
    assert loads, "the engine was closed, and loads the Instruct again"


def test_a_folder_that_changes_during_an_arm_is_noticed(world: World, tmp_path: Path) -> None:
    folder = shutil.copytree(world.instruct, tmp_path / "instruct")
    engine = Hf(folder, tokenizer_of(folder), 4)
    checkpoint = open_checkpoint(folder)
    noticed = pytest.raises(EvaluationError, match=r"model\.safetensors: tensor .* had digest sha256:")
    with noticed, engine.arm([(world.delta, 1.0)], WAIVED):
        write_weights(folder, {name: checkpoint.read(name) + np.float32(1) for name in checkpoint.names})


@pytest.mark.parametrize("equal", [True, False])
def test_files_that_do_not_match_the_parameters_one_to_one_are_not_written_in_place(
    world: World, tmp_path: Path, equal: bool
) -> None:
    """Two tensors of the files share a parameter, or a parameter does not have the values of its tensor."""
    import torch

    folder, checkpoint = shutil.copytree(world.instruct, tmp_path / "instruct"), open_checkpoint(world.instruct)
    assert places_of(load_folder(folder), checkpoint).keys() == set(checkpoint.names)
    if equal:
        tensors = {name: checkpoint.read(name) for name in checkpoint.names}
        write_weights(folder, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
        model = load_folder(folder)
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        model = load_folder(folder)
        with torch.no_grad():
            model.lm_head.weight[3, 4] += 1e-3
    assert places_of(model, open_checkpoint(folder)) == {}


def test_arms_do_not_overlap(world: World) -> None:
    engine = Hf(world.instruct, tokenizer_of(world.instruct), 4)
    with engine.arm([], Options()), pytest.raises(RuntimeError, match="an arm is open"):
        engine.arm([(world.delta, 1.0)], WAIVED).__enter__()
    with engine.arm([(world.delta, 1.0)], WAIVED):
        pass


def test_a_graft_that_is_refused_loads_nothing(world: World, loads: list[Path]) -> None:
    engine = Hf(world.instruct, tokenizer_of(world.instruct), 4)
    with pytest.raises(Exception, match="matches none"):
        engine.arm([(world.delta, 1.0)], Options(("nothing*",), waivers=("onto-base",))).__enter__()
    assert not loads
