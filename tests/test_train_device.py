"""Settings that depend on the machine: refused before anything is loaded, or in effect and said in train.json."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shadowft_core.errors import TrainError
from shadowft_core.params import Render
from shadowft_core.rendering import load_renderer
from shadowft_core.train import device
from shadowft_core.train.device import require_available
from shadowft_core.train.encode import encode_file
from shadowft_core.train.methods import with_method
from shadowft_core.train.models import load_to_train
from shadowft_core.train.trainer import make_trainer
from shadowft_core.weights import open_checkpoint
from tests.fixtures.training import SETTINGS, run, tree, write_model

SHORT = SETTINGS.model_copy(update={"max_steps": 3})
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="refused only without CUDA")


@CPU_ONLY
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "flash_attention_2"}, "train.attention: flash_attention_2 needs a CUDA device"),
        ({"liger": True}, "train.liger: true needs a CUDA device"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_before_the_model_is_read(
    place: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    with pytest.raises(TrainError, match=message):  # there is no base and no instruct
        run(tmp_path, tmp_path / "out", SETTINGS.model_copy(update=change))


def test_a_missing_package_names_the_extra_and_a_missing_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mock: a CUDA device that is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(TrainError, match=r"needs flash_attn; install it: pip install 'shadowft\[flash\]'"):
        require_available(SETTINGS.model_copy(update={"attention": "flash_attention_2"}), False)
    with pytest.raises(TrainError, match=r"needs liger_kernel; install it: pip install 'shadowft\[gpu\]'"):
        require_available(SETTINGS.model_copy(update={"liger": True}), False)
    require_available(SETTINGS.model_copy(update={"compile": True}), False)
    assert not device.is_deterministic(SETTINGS)
    assert device.is_deterministic(SETTINGS.model_copy(update={"deterministic": True}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TrainError, match="needs a C\\+\\+ compiler"):
        require_available(SETTINGS.model_copy(update={"compile": True}), False)


def test_a_deterministic_training_asks_cublas_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.delenv(name, raising=False)
    device.set_up(SETTINGS.model_copy(update={"deterministic": False}))
    assert name not in os.environ
    device.set_up(SETTINGS.model_copy(update={"deterministic": True}))
    assert os.environ[name] == ":4096:8"


def test_images_and_packing_are_refused() -> None:
    with pytest.raises(TrainError, match="cannot pack rows with images"):
        require_available(SETTINGS.model_copy(update={"packing": True}), True)
    require_available(SETTINGS, True)


def test_the_effective_values_are_in_train_json(place: Path, tmp_path: Path) -> None:
    facts = run(place, tmp_path / "one", SHORT)
    assert (facts["deterministic"], facts["attention"], facts["packing"]) == (True, "sdpa", None)
    assert torch.are_deterministic_algorithms_enabled()
    loose = run(place, tmp_path / "two", SHORT.model_copy(update={"deterministic": False, "attention": "eager"}))
    assert (loose["deterministic"], loose["attention"]) == (False, "eager")
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert loose["last_loss"] == pytest.approx(facts["last_loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_keeps_less_and_changes_no_bit(place: Path, tmp_path: Path, method: str) -> None:
    saved = {}
    for checkpointing in (False, True):
        settings = SHORT.model_copy(update={"method": method, "gradient_checkpointing": checkpointing})
        out = tmp_path / str(checkpointing)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run(place, out, settings)
        saved[checkpointing] = sum(sizes.values())
        (out / "train.json").unlink()  # has the setting
    assert tree(tmp_path / "True") == tree(tmp_path / "False")
    assert saved[True] < saved[False]


@pytest.mark.slow
def test_compiled_training_has_nearly_the_same_losses(place: Path, tmp_path: Path) -> None:
    """In a process of its own: torch's compiler warns about parts of torch, and here warnings are errors."""
    facts = run(place, tmp_path / "one", SHORT)
    code = (
        "import sys, torch; from pathlib import Path; from tests.test_train_device import SHORT, run\n"
        "run(Path(sys.argv[1]), Path(sys.argv[2]), SHORT.model_copy(update={'compile': True}))\n"
        "assert torch._dynamo.utils.counters['frames']['ok'] > 0"
    )
    subprocess.run([sys.executable, "-c", code, place, tmp_path / "two"], check=True)
    compiled = json.loads((tmp_path / "two/train.json").read_text())
    assert compiled["settings"]["compile"]
    assert compiled["last_loss"] == pytest.approx(facts["last_loss"], rel=1e-4)


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self.elements = max(self.elements, *(t.numel() for t in made if isinstance(t, torch.Tensor)), 0)
        return out


@pytest.mark.parametrize("packing", [False, True])
def test_the_logits_never_exist_as_a_whole(copied: Path, tmp_path: Path, packing: bool) -> None:
    """TRL projects in tiles of 32,768 columns: with an adapter, 16-bit weights, and packs, too."""
    words = 100_000
    shutil.rmtree(copied / "base")
    write_model(copied / "base", 1, vocabulary=words)
    renderer = load_renderer(copied / "instruct", Render())
    rows = encode_file(copied / "data/train.parquet", renderer, 40)
    settings = SHORT.model_copy(update={"packing": packing, "max_steps": 1, "batch_size": 100})
    network = with_method(
        load_to_train(open_checkpoint(copied / "base"), renderer.tokenizer, settings, False, True), settings
    )
    trainer = make_trainer(network, renderer.tokenizer, rows, settings, tmp_path / "scratch")
    called = []
    network.get_output_embeddings().register_forward_hook(lambda *_: called.append(1))
    with Largest() as largest:
        trainer.train()
    positions = sum(map(len, rows.input_ids)) - len(rows.input_ids)
    assert not called
    assert largest.elements < 0.5 * positions * words
    assert json.dumps(trainer.state.log_history[0]["loss"])
