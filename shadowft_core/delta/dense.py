"""The difference of two checkpoints becomes a dense delta, tensor by tensor, in float32."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.checkpoint import FLOATS, Checkpoint, build_header, open_checkpoint, write_safetensors
from shadowft_core.delta.folder import DENSE, rounded, step
from shadowft_core.errors import (
    CheckpointError,
    NotFinite,
    Quantised,
    ShapeMismatch,
    TensorMissing,
    Unrelated,
    ZeroDelta,
)

FAR = 0.5  # sum|T - B| / (sum|T| + sum|B|): training moves a matrix by a few percent, unrelated ones lie at 0.7

Parts = Callable[[str], Iterator[np.ndarray]]


def extract_dense(before: Checkpoint, source: Path, folder: Path) -> dict[str, Any]:
    """Write the difference `source - before` of every tensor that changed; returns the certificate's entries."""
    after = open_checkpoint(source)
    names = own_tensors(before)
    _require_same_layout(before, names, after)
    changed = [name for name in names if _changed(before, after, name)]
    if not changed:
        raise ZeroDelta(
            f"{after.path}: every tensor equals {before.path}, the delta is zero; tune it or pass another folder"
        )

    def difference(name: str) -> Iterator[np.ndarray]:
        stride = step(before.info(name).shape)
        apart = weight = 0.0
        pairs = zip(before.chunks(name, stride, hashed=True), after.chunks(name, stride), strict=True)
        for (_, old), (_, new) in pairs:
            part, was = new.astype(np.float32), old.astype(np.float32)
            weight += float(np.abs(part).sum(dtype=np.float64)) + float(np.abs(was).sum(dtype=np.float64))
            with np.errstate(all="ignore"):  # what is not finite is refused by name where it is written
                part -= was
            apart += float(np.abs(part).sum(dtype=np.float64))
            yield part
        if len(before.info(name).shape) > 1 and apart > FAR * weight:
            raise Unrelated(
                f"tensor {name}: {after.path} is {apart / weight:.2f} from {before.path} (0: equal, 0.7: unrelated, "
                f"limit {FAR}); pass the model that was tuned, its matrices not transposed"
            )

    return write_dense(folder, {name: before.info(name).shape for name in changed}, difference)


def write_dense(folder: Path, shapes: Mapping[str, tuple[int, ...]], parts: Parts) -> dict[str, Any]:
    """Write dense.safetensors from flat float32 parts of `step(shape)` elements; returns the certificate's entries.

    Raises NotFinite naming the tensor.
    """
    norms: dict[str, float] = {}

    def checked(name: str) -> Iterator[np.ndarray]:
        total = 0.0
        for part in parts(name):
            if not np.isfinite(part).all():
                raise NotFinite(f"tensor {name}: its delta is not finite; the training diverged or a weight is damaged")
            total += float(np.sum(np.square(part, dtype=np.float64)))
            yield part
        norms[name] = rounded(math.sqrt(total))

    header = build_header({name: ("F32", shape) for name, shape in shapes.items()})
    digests = write_safetensors(folder / DENSE, header, checked, label="extract")
    return {
        name: {"form": "plain", "shape": list(shape), "norm": norms[name], "digest": digests[name]}
        for name, shape in shapes.items()
    }


def own_tensors(model: Checkpoint) -> list[str]:
    """Names without a head that is tied and yet stored; it must then equal the embedding."""
    tied = model.tied
    if tied is None or tied[0] not in model:
        return model.names
    head, embedding = tied
    if model.tensor_digest(head) != model.tensor_digest(embedding):
        raise CheckpointError(
            f"{model.path}: config.json ties {head} to {embedding}, yet they differ; set tie_word_embeddings"
        )
    return [name for name in model.names if name != head]


def _require_same_layout(before: Checkpoint, names: list[str], after: Checkpoint) -> None:
    theirs = own_tensors(after)
    dropped, extra = sorted(set(names) - set(theirs)), sorted(set(theirs) - set(names))
    if dropped or extra:
        both = [
            f"only {path} has {odd[0]} ({len(odd)} in all)"
            for path, odd in ((before.path, dropped), (after.path, extra))
            if odd
        ]
        raise TensorMissing(f"{' and '.join(both)}; pass the model that was tuned, its tensors under the same names")
    for name in names:
        old, new = before.info(name), after.info(name)
        if old.shape != new.shape:
            raise ShapeMismatch(
                f"tensor {name}: {before.path} has {old.shape}, {after.path} {new.shape}; pass the model that was tuned"
            )


def _changed(before: Checkpoint, after: Checkpoint, name: str) -> bool:
    old, new = before.info(name), after.info(name)
    graftable = old.dtype in FLOATS and new.dtype in FLOATS
    stride = step(old.shape)
    for (_, x), (_, y) in zip(before.chunks(name, stride), after.chunks(name, stride), strict=True):
        if not np.array_equal(x.astype(np.float32), y.astype(np.float32)) if graftable else not np.array_equal(x, y):
            if not graftable:
                raise Quantised(
                    f"tensor {name} is {old.dtype} in {before.path}, {new.dtype} in {after.path}, and changed; "
                    "dequantise both"
                )
            return True
    return False
