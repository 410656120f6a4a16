"""What is known before training: losses and gradients of both models on the rows of the first optimizer step.

The gradients are those of the weights that the method trains, with the same first weights of the adapter on both sides.
A cosine near 1 says that a first step moves Base and Instruct in the same direction. Whether that, or sigma, predicts
what a graft keeps of a training is open: docs/evidence.md compares them with outcomes.
"""

import errno
import gc
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from shadowft_core.errors import TrainError, say
from shadowft_core.files import read_json_object, write_json_atomically
from shadowft_core.params import Launch, Render, Train
from shadowft_core.rendering import load_renderer, shows_images
from shadowft_core.train.device import require_available, set_up
from shadowft_core.train.memory import WORDS
from shadowft_core.train.methods import with_method
from shadowft_core.train.models import load_to_train
from shadowft_core.train.rows import data_digest, encoded_rows, split_files
from shadowft_core.train.sources import SOURCES
from shadowft_core.train.tokens import borrow_rows, trained_rows, untrained_in_rows
from shadowft_core.train.trainer import make_trainer
from shadowft_core.weights import module_of, open_checkpoint

SIDES = ("base", "instruct")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK = 1 << 22  # elements of a gradient in float64 at once


def preflight(pair: Path, data: Path, params: Train, out: Path, render: Render, *, replay: bool = True) -> None:
    """Measure both models of `pair`, a folder made by `fetch`, and write `out`, preflight.json.

    `loss` is that of the first step of training with the first seed, in nats per learned token. `cosine` is over all
    weights that `method` trains, `modules` by kind of module; a LoRA's A has no gradient yet, so these are gradients of
    its B. `norm` is before clipping. `sigma` is copied from pair.json. docs/architecture.md has the file.

    One model is in memory at a time, with its gradients, as in training; those of the Base wait on the disk, in
    float32. Nothing is trained. The loss of a preference is the same for every model at first, so with `objective: dpo`
    nothing is measured, nor if memory or disk do not suffice; the file then says why.

    Raises what `train` raises for settings and rows that it refuses.
    """
    told: dict[str, Any] = {"format": 1, "seed": params.seed, "method": params.method, "data_digest": data_digest(data)}
    sigma = read_json_object(pair / "pair.json").get("sigma") or {}
    told["sigma"] = {name: sigma.get(name) for name in ("overall", "modules")}
    if params.command is not None:
        told |= {"method": None, "not_measured": "train.command trains; the rows of its first step are not known"}
    elif params.objective != "sft":
        told["not_measured"] = "the rows are preferences, whose loss is the same for every model before training"
    else:
        try:
            with tempfile.TemporaryDirectory(prefix=".gradients-", dir=out.resolve().parent) as scratch:
                told |= _measured(pair, data, params, render, replay, Path(scratch))
        except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError) as error:
            text = " ".join(str(error).split())
            if type(error) is RuntimeError and not any(words in text for words in WORDS):
                raise
            if isinstance(error, OSError) and error.errno not in FULL:
                raise
            told["not_measured"] = f"memory or disk did not suffice: {text:.200}"
    if "not_measured" in told:
        say(f"preflight: gradients were not measured: {told['not_measured']}")
    write_json_atomically(out, told)


def _measured(pair: Path, data: Path, params: Train, render: Render, replay: bool, scratch: Path) -> dict[str, Any]:
    # one process has all micro-batches of a step
    params = params.model_copy(update={"launch": Launch()})
    images = any(map(shows_images, split_files(data, params, replay)))
    require_available(params, images)
    set_up(params)
    losses: dict[str, float] = {}
    first = _Gradients(scratch)
    found: dict[str, Any] = {}
    for side in SIDES:
        began = time.monotonic()
        network, found["sequences"], losses[side] = _loss(pair, side, data, params, render, replay, images, scratch)
        gradients = [(name, weight.grad) for name, weight in network.named_parameters() if weight.grad is not None]
        if side == SIDES[0]:
            first.keep(gradients)
        else:
            found |= first.compared(gradients)
        del network, gradients
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        said = f"loss {losses[side]:.4f} on the first {found['sequences']} sequences"
        say(f"preflight: {side}: {said}, {time.monotonic() - began:.0f} s")
    return {"loss": losses, **found}


def _loss(
    pair: Path, side: str, data: Path, params: Train, render: Render, replay: bool, images: bool, scratch: Path
) -> tuple[Any, int, float]:
    """The model with the gradients of the first optimizer step, the number of its sequences, and its loss."""
    starting, teacher = open_checkpoint(pair / side), open_checkpoint(pair / "instruct")
    renderer = load_renderer(pair / "instruct", render)
    processor = renderer.processor if images else None
    rows, _, _ = encoded_rows(data, renderer, params, replay, images)
    untrained = untrained_in_rows(starting, teacher, renderer, rows)
    network = load_to_train(starting, renderer.tokenizer, params, images, vocabulary=not untrained)
    borrowed = borrow_rows(network, untrained, teacher) if render.template_tokens == "from_instruct" else []
    adds_rows = params.method != "full" and render.template_tokens == "train"
    network = with_method(network, params, trained_rows(network, untrained) if adds_rows else None, bool(borrowed))
    trainer: Any = make_trainer(network, renderer.tokenizer, rows, params, scratch / "trl", processor)
    transformers.set_seed(params.seed)
    if params.gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    network.train()
    batches = iter(trainer.get_train_dataloader())
    taken, learned = trainer.get_batch_samples(batches, params.accumulation, trainer.args.device)
    total, sequences = 0.0, 0
    for batch in taken:
        batch.pop(SOURCES, None)
        inputs = trainer._prepare_inputs(batch)
        with torch.autocast(trainer.args.device.type, torch.bfloat16, enabled=trainer.args.bf16):
            loss = trainer.compute_loss(network, inputs, num_items_in_batch=learned)
        loss = loss / (len(taken) if learned is None else 1)
        loss.backward()
        total += float(loss.detach())
        sequences += len(inputs["input_ids"])
    return network, sequences, total


class _Gradients:
    """The gradients of one model on the disk, as float32."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def keep(self, gradients: list[tuple[str, torch.Tensor]]) -> None:
        for number, (name, gradient) in enumerate(gradients):
            self._places[name] = self._folder / str(number)
            values = gradient.detach().float().cpu().contiguous().numpy()
            self._shapes[name] = values.shape
            with self._places[name].open("wb") as file:  # numpy's own writer does not tell that a disk is full
                file.write(values.data)

    def compared(self, gradients: list[tuple[str, torch.Tensor]]) -> dict[str, Any]:
        """Cosine, over all weights and by kind of module, and norms. Cosines of zero gradients are left out.

        Raises TrainError if the two models do not have the same weights.
        """
        others = dict(gradients)
        if differing := sorted(others.keys() ^ self._places.keys()):
            raise TrainError(
                f"{differing[0]}: only one model of the pair trains it; check the pair with `shadowft pair`"
            )
        sums: dict[str, np.ndarray[Any, Any]] = {}
        for name, gradient in gradients:
            shape, other = self._shapes[name], gradient.detach().float().cpu().numpy()
            if shape != other.shape:
                raise TrainError(f"{name}: {shape} in the Base and {other.shape} in the Instruct, which must match")
            mine = np.memmap(self._places[name], dtype=np.float32, mode="r")
            products = sum(_products(mine, other.reshape(-1)), np.zeros(3))
            sums[_kind(name)] = sums.get(_kind(name), np.zeros(3)) + products
        whole = sum(sums.values(), np.zeros(3))
        modules = {kind: cosine for kind in sorted(sums) if (cosine := _cosine(sums[kind])) is not None}
        norms = dict(zip(SIDES, np.sqrt(whole[1:]).tolist(), strict=True))
        return {"cosine": _cosine(whole), "modules": modules, "norm": norms}


def _products(mine: Any, other: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Of each part of two gradients: their product, and the squares of both."""
    for at in range(0, mine.size, CHUNK):
        a, b = (np.asarray(one[at : at + CHUNK], dtype=np.float64) for one in (mine, other))
        yield np.array([a @ b, a @ a, b @ b])


def _cosine(sums: Any) -> float | None:
    product, mine, other = map(float, sums)
    return product / (mine * other) ** 0.5 if mine > 0 and other > 0 else None


def _kind(parameter: str) -> str:
    """The kind of module that a weight belongs to, such as q_proj; of an adapter, the module that it adapts."""
    path = re.split(r"\.(?:lora_|osf_|token_adapter|modules_to_save)", parameter.removeprefix("base_model.model."))[0]
    return module_of(path if path.endswith((".weight", ".bias")) else f"{path}.weight")
