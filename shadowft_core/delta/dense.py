"""The difference of two checkpoints becomes a `dense` delta, tensor by tensor, in float32."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.checkpoint import FLOATS, Checkpoint, build_header, open_checkpoint, write_safetensors
from shadowft_core.delta.folder import WEIGHTS, rounded, step
from shadowft_core.errors import DeltaError


def extract_dense(before: Checkpoint, source: Path, folder: Path) -> dict[str, Any]:
    after = open_checkpoint(source)
    names = _own_tensors(before)
    if odd := sorted(set(names) ^ set(_own_tensors(after))):
        holder = before.path if odd[0] in before else after.path
        raise DeltaError(f"tensor {odd[0]} ({len(odd)} in all) stands only in {holder}; pass the model that was tuned")
    for name in names:
        old, new = before.info(name), after.info(name)
        if old.shape != new.shape:
            raise DeltaError(
                f"tensor {name}: {before.path} has {old.shape}, {after.path} {new.shape}; pass the model that was tuned"
            )
    changed = [name for name in names if _changed(before, after, name)]
    if not changed:
        raise DeltaError(
            f"{after.path}: every tensor equals {before.path}, the delta is zero; tune it or pass another folder"
        )
    norms: dict[str, float] = {}

    def difference(name: str) -> Iterator[np.ndarray]:
        stride = step(before.info(name).shape)
        total = 0.0
        pairs = zip(before.chunks(name, stride, hashed=True), after.chunks(name, stride), strict=True)
        for (_, old), (_, new) in pairs:
            part = new.astype(np.float32)
            with np.errstate(all="ignore"):  # what is not finite is refused by name just below
                part -= old.astype(np.float32)
            if not np.isfinite(part).all():
                raise DeltaError(f"tensor {name}: {after.path} - {before.path} is not finite; the training diverged")
            total += float(np.sum(np.square(part, dtype=np.float64)))
            yield part
        norms[name] = rounded(math.sqrt(total))

    header = build_header({name: ("F32", before.info(name).shape) for name in changed})
    digests = write_safetensors(folder / WEIGHTS, header, difference, label="extract")
    return {
        name: {"shape": list(before.info(name).shape), "dtype": "F32", "norm": norms[name], "digest": digests[name]}
        for name in changed
    }


def _own_tensors(model: Checkpoint) -> list[str]:
    """Names without a head that is tied and yet stored; it must then equal the embedding."""
    tied = model.tied
    if tied is None or tied[0] not in model:
        return model.names
    head, embedding = tied
    if model.tensor_digest(head) != model.tensor_digest(embedding):
        raise DeltaError(
            f"{model.path}: config.json ties {head} to {embedding}, yet they differ; set tie_word_embeddings"
        )
    return [name for name in model.names if name != head]


def _changed(before: Checkpoint, after: Checkpoint, name: str) -> bool:
    old, new = before.info(name), after.info(name)
    graftable = old.dtype in FLOATS and new.dtype in FLOATS
    stride = step(old.shape)
    for (_, x), (_, y) in zip(before.chunks(name, stride), after.chunks(name, stride), strict=True):
        if not np.array_equal(x.astype(np.float32), y.astype(np.float32)) if graftable else not np.array_equal(x, y):
            if not graftable:
                raise DeltaError(
                    f"tensor {name} is {old.dtype} in {before.path}, {new.dtype} in {after.path}, and changed; "
                    "dequantise both"
                )
            return True
    return False
