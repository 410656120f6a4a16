"""The training methods on a tiny model: what each trains, what it hands over, and what is refused before loading."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shadowft_core.delta import extract, require_extractable
from shadowft_core.errors import ShadowError, TrainError
from shadowft_core.grafting import ONTO_BASE, Options, graft
from shadowft_core.params import Lora, Osf, Render, Train
from shadowft_core.train import train
from shadowft_core.weights import open_checkpoint
from tests.fixtures.training import SETTINGS, run, tree

LAYER = "model.layers.0"
STEPS = SETTINGS.model_copy(update={"max_steps": 6, "lora": Lora(rank=4, alpha=8)})


def lora(**changes: Any) -> Train:
    return STEPS.model_copy(update={"lora": Lora(rank=4, alpha=8, **changes)})


def tuned(place: Path, out: Path, settings: Train, model: str = "base") -> dict[str, Any]:
    """Train and extract; the adapter or model is in out/tuned, the delta in out/delta."""
    train(place / model, place / "instruct", place / "data", settings, out / "tuned", require_extractable)
    return extract(place / model, out / "tuned", out / "delta")


def onto_base(place: Path, out: Path, model: str = "base") -> dict[str, np.ndarray]:
    """The starting model plus the delta, in float32."""
    graft(place / model, [(out / "delta", 1.0)], out / "grafted", Options(waivers=(ONTO_BASE,), dtype="float32"))
    return load_file(out / "grafted/model.safetensors")


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    with torch.no_grad():
        found: np.ndarray = model.eval()(input_ids=torch.arange(4, 20)[None]).logits.numpy()
    return found


@pytest.fixture(scope="module")
def stored(place: Path) -> Path:
    """The Base in bfloat16, as models are published."""
    import ml_dtypes

    shutil.copytree(place / "base", place / "half")
    tensors = load_file(place / "base/model.safetensors")
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    save_file(half, place / "half/model.safetensors", {"format": "pt"})
    config = json.loads((place / "half/config.json").read_text()) | {"dtype": "bfloat16"}
    (place / "half/config.json").write_text(json.dumps(config))
    return place / "half"


@pytest.mark.parametrize(
    "changes",
    [
        {"rslora": True},
        {"dora": True},
        {"dropout": 0.3},
        {"targets": ("q_proj", "mlp.up_proj")},
        {"modules_to_save": ("embed_tokens",)},
        {"modules_to_save": ("lm_head", "model.norm")},
        {"dora": True, "rslora": True, "modules_to_save": ("input_layernorm",)},
    ],
    ids="-".join,
)
def test_the_delta_of_each_adapter_is_the_trained_model(place: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """The head is tied to the embedding. Base and delta must compute what Base and adapter compute."""
    plain = run(place, tmp_path / "plain", lora())
    tuned(place, tmp_path, lora(**changes))
    facts = json.loads((tmp_path / "tuned/train.json").read_text())
    assert facts["last_loss"] < 0.9 * facts["first_loss"]
    assert facts["last_loss"] != plain["last_loss"], "the setting has no effect"
    onto_base(place, tmp_path)
    ours, theirs = logits(tmp_path / "grafted"), logits(place / "base", tmp_path / "tuned/adapter")
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert np.abs(theirs - logits(place / "base")).max() > 0.01
    if named := changes.get("targets"):
        factors = load_file(tmp_path / "tuned/adapter/adapter_model.safetensors")
        assert {re.search(r"\w+_proj", name)[0] for name in factors} == {"q_proj", "up_proj"}  # type: ignore[index]
        assert len(factors) == 2 * 2 * len(named)
    again = tmp_path / "again"
    train(place / "base", place / "instruct", place / "data", lora(**changes), again)
    assert tree(again) == tree(tmp_path / "tuned")


def test_saved_modules_train_apart_from_each_other_where_they_are_not_tied(place: Path, tmp_path: Path) -> None:
    """A head of its own: it changes, the embedding does not."""
    shutil.copytree(place / "base", tmp_path / "base")
    tensors = load_file(tmp_path / "base/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    save_file(tensors, tmp_path / "base/model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "base/config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    for kind in ("instruct", "data"):
        (tmp_path / kind).symlink_to(place / kind)
    tuned(tmp_path, tmp_path, lora(modules_to_save=("lm_head",)))
    after = onto_base(tmp_path, tmp_path)
    assert (after["model.embed_tokens.weight"] == tensors["model.embed_tokens.weight"]).all()
    assert (after["lm_head.weight"] != tensors["lm_head.weight"]).any()
    wanted = logits(tmp_path / "base", tmp_path / "tuned/adapter")
    assert np.abs(logits(tmp_path / "grafted") - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_osf_is_merged_in_float32_and_leaves_all_else_bit_for_bit(place: Path, stored: Path, tmp_path: Path) -> None:
    settings = STEPS.model_copy(update={"method": "osf"})
    found = tuned(place, tmp_path / "one", settings, "half")
    assert (found["kind"], found["tensors"]) == ("dense", {"frames": 14})  # 7 linear layers in each of 2 blocks
    before, after = open_checkpoint(stored), open_checkpoint(tmp_path / "one/tuned/model")
    assert before.names == after.names, "the tied head is not written"
    assert {after.info(name).dtype for name in after.names} == {"F32"}
    assert json.loads((tmp_path / "one/tuned/model/config.json").read_text())["dtype"] == "float32"
    for name in before.names:
        same = (before.read(name).astype(np.float32) == after.read(name)).all()
        assert same == (not re.search(r"_proj\.weight$", name)), name
    grafted = onto_base(place, tmp_path / "one", "half")
    assert all((grafted[name] == after.read(name)).all() for name in after.names)
    train(stored, place / "instruct", place / "data", settings, tmp_path / "two")
    assert tree(tmp_path / "two") == tree(tmp_path / "one/tuned")


def test_osf_without_a_step_gives_the_starting_model(place: Path, stored: Path, tmp_path: Path) -> None:
    still = STEPS.model_copy(update={"method": "osf", "learning_rate": 1e-30, "max_steps": 1})
    train(stored, place / "instruct", place / "data", still, tmp_path / "out")
    before, after = open_checkpoint(stored), open_checkpoint(tmp_path / "out/model")
    assert all((before.read(name).astype(np.float32) == after.read(name)).all() for name in before.names)


def test_gradients_of_osf_are_orthogonal_to_what_is_preserved(place: Path, tmp_path: Path) -> None:
    """In the trainer, before each step: PEFT's hooks act. `preserved` is a share of the smaller dimension.

    AdamW then scales each coordinate, so part of the step returns to the preserved directions; docs/training.md says
    how much.
    """
    import torch
    from transformers import TrainerCallback

    from shadowft_core.rendering import load_renderer
    from shadowft_core.train.encode import encode_file
    from shadowft_core.train.methods import with_method
    from shadowft_core.train.models import load_model
    from shadowft_core.train.trainer import make_trainer

    settings = STEPS.model_copy(update={"method": "osf", "osf": Osf(preserved=0.25), "max_steps": 2})
    renderer = load_renderer(place / "instruct", Render())
    rows = encode_file(place / "data/train.parquet", renderer, 40)
    network = with_method(load_model(place / "base", renderer.tokenizer, params=settings), settings)
    layers = {name: module for name, module in network.named_modules() if hasattr(module, "osf_svd_params")}
    assert len(layers) == 14
    seen = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            for layer in layers.values():
                left, _, right = torch.linalg.svd(layer.base_layer.weight.double(), full_matrices=False)
                kept, low = layer.effective_rank["default"], layer.osf_svd_params["default"]
                assert kept == min(layer.base_layer.weight.shape) // 4 > 0
                for free, grad in (
                    (left[:, :kept].T, low["U_low"].grad.double()),
                    (right[:kept], low["V_low"].grad.double().T),
                ):
                    seen.append(float((free @ grad).norm() / grad.norm()))

    trainer = make_trainer(network, renderer.tokenizer, rows, settings, tmp_path)
    trainer.add_callback(Watch())
    trainer.train()
    assert len(seen) == 2 * 2 * 14
    assert max(seen) < 1e-4


REFUSED = {
    "targets near": (lora(targets=("qproj",)), r"targets: no layer is named qproj; did you mean q_proj or"),
    "targets far": (lora(targets=("xyz",)), r"targets: no layer is named xyz; there are act_fn, .*q_proj"),
    "one of two": (lora(targets=("q_proj", "proj")), r"targets: no layer is named proj;"),
    "targets the head": (lora(targets=("q_proj", "lm_head")), r"targets: lm_head is the head.*modules_to_save"),
    "targets tied": (lora(targets=("embed_tokens",)), r"targets: model\.embed_tokens is the head or tied to it"),
    "targets a norm": (lora(targets=("input_layernorm",)), r"what train\.lora names: Target module LlamaRMSNorm"),
    "saved": (lora(modules_to_save=("head",)), r"modules_to_save: no module is named head; did you mean lm_head\?"),
    "saved by half a word": (
        lora(modules_to_save=("norm",)),
        r"modules_to_save: norm also matches model\.layers\.0\.input_layernorm; write more of the name",
    ),
    "nothing preserved": (
        STEPS.model_copy(update={"method": "osf", "osf": Osf(preserved=0.01)}),
        r"train\.osf\.preserved 0\.01 keeps none of the 32 singular directions of .*; set it to at least 0\.031",
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_names_and_shares_that_fit_no_layer_are_refused(
    place: Path, tmp_path: Path, settings: Train, message: str
) -> None:
    with pytest.raises(TrainError, match=message):
        run(place, tmp_path / "out", settings)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_adds_nothing_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = STEPS.model_copy(update={"max_steps": 1, "lora": Lora(rank=100, targets=("q_proj",))})
    run(place, tmp_path / "out", settings)
    said = "train.lora.rank 100 is above the smaller dimension of 2 of 2 matrices (the least is "
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "osf", "launch": {"strategy": "fsdp"}},
            r"train\.method osf does not run with .* fsdp; set it to ddp",
        ),
        ({"method": "qlora", "launch": {"strategy": "fsdp"}}, r"bitsandbytes|train\.method qlora does not run with"),
        ({"optimizer": "adamw_8bit"}, r"adamw_8bit, which needs a CUDA device; there is none, set it to adamw"),
    ],
)
def test_what_cannot_run_here_is_refused_before_anything_is_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    import torch

    if changes.get("optimizer") and torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    missing = tmp_path / "missing"
    with pytest.raises(TrainError, match=message):
        train(missing, missing, missing, Train.model_validate(changes), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "setting", "message"),
    [
        ({"method": "osf"}, "train", r"osf cannot train rows of tokens; set render\.template_tokens: from_instruct"),
        ({"lora": Lora(rank=4, modules_to_save=("embed_tokens",))}, "from_instruct", r"could hold the Instruct's rows"),
    ],
)
def test_untrained_tokens_that_a_method_cannot_treat_are_refused(
    place: Path, tmp_path: Path, changes: dict[str, Any], setting: str, message: str
) -> None:
    base = shutil.copytree(place / "base", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][[2, 3]] = 0  # <|im_start|>, <|im_end|>
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainError, match=message):
        train(
            base,
            place / "instruct",
            place / "data",
            STEPS.model_copy(update=changes),
            tmp_path / "out",
            render=Render(template_tokens=setting),
        )


def test_the_instructs_rows_are_not_in_the_delta_of_osf(place: Path, tmp_path: Path) -> None:
    base = shutil.copytree(place / "base", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][[2, 3]] = 0
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    settings = STEPS.model_copy(update={"method": "osf"})
    train(base, place / "instruct", place / "data", settings, tmp_path / "out", require_extractable)
    after = load_file(tmp_path / "out/model/model.safetensors")
    assert (after["model.embed_tokens.weight"] == tensors["model.embed_tokens.weight"]).all()


def test_an_adapter_that_extract_refuses_and_that_cannot_be_merged_is_refused(place: Path, tmp_path: Path) -> None:
    from shadowft_core.errors import AdapterError

    def accept(model: Path, planned: Any) -> None:
        raise (AdapterError if isinstance(planned, Path) else ShadowError)(f"no {type(planned).__name__}")

    for settings in (lora(), lora(modules_to_save=("embed_tokens",))):
        with pytest.raises(AdapterError, match=r"no \w*Path"):
            train(place / "base", place / "instruct", place / "data", settings, tmp_path / "out", accept)
    assert not (tmp_path / "out").exists()
