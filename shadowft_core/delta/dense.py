"""The difference of two checkpoints becomes a dense delta, part by part, in float32."""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from shadowft_core.checkpoint import (
    DTYPES,
    FLOATS,
    WORKERS,
    Checkpoint,
    append_safetensors,
    open_checkpoint,
    scratch,
)
from shadowft_core.delta.folder import DENSE, rounded, step
from shadowft_core.delta.frames import encode
from shadowft_core.errors import (
    CheckpointError,
    NotFinite,
    Quantised,
    ShapeMismatch,
    TensorMissing,
    Unrelated,
    ZeroDelta,
)

T = TypeVar("T")
R = TypeVar("R")
Storage = Literal["compressed", "bfloat16", "float32"]
FAR = 1.0  # |T - B| / |B|: training moves a matrix by a few percent, an unrelated one lies at 1.4

Part = Callable[[str, int], np.ndarray]
"""`part(name, number)`: a flat float32 part, `step(shape)` elements, of a tensor's delta; the next one may reuse it"""


def extract_dense(before: Checkpoint, source: Path, folder: Path, storage: Storage, unrelated: bool) -> dict[str, Any]:
    """Write the difference `source - before` of every tensor that changed; returns the certificate's entries.

    `unrelated` waives the check that no matrix moved by more than its own norm.
    """
    after = open_checkpoint(source)
    for model in (before, after):
        if model.config.get("quantization_config"):
            raise Quantised(f"{model.path}: config.json has a quantization_config; pass the dequantised checkpoint")
    names = own_tensors(before)
    _require_same_layout(before, names, after)
    changed = [name for name in names if _changed(before, after, name)]
    if not changed:
        raise ZeroDelta(
            f"{after.path}: every tensor equals {before.path}, the delta is zero; tune it or pass another folder"
        )
    weights: dict[tuple[str, int], float] = {}

    def difference(name: str, number: int) -> np.ndarray:
        info, stride = before.info(name), step(before.info(name).shape)
        count = min(stride, info.size - number * stride)
        was, part = (scratch.array(label, count, np.float32) for label in ("was", "part"))
        for model, values in ((before, was), (after, part)):
            stored = scratch.array("stored", count, DTYPES[model.info(name).dtype])
            model.read_into(name, number * stride, stored)
            np.copyto(values, stored)
        with np.errstate(all="ignore"):  # what is not finite is refused by name where it is written
            part -= was
            weights[name, number] = float(np.dot(was, was))
        return part

    entries = write_dense(folder, {name: before.info(name).shape for name in changed}, difference, storage)
    for name, entry in entries.items():
        weight = math.sqrt(sum(weights[name, number] for number in range(_parts(before.info(name).shape))))
        if not unrelated and len(entry["shape"]) > 1 and weight and entry["norm"] > FAR * weight:
            raise Unrelated(
                f"tensor {name}: |difference| is {entry['norm'] / weight:.2f} of |weights| (tuned: below 0.1, "
                f"unrelated or transposed: 1.4); pass the model that was tuned from {before.path}, or --unrelated"
            )
    return entries


def write_dense(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], part: Part, storage: Storage = "compressed"
) -> dict[str, Any]:
    """Write dense.safetensors; returns the certificate's entries.

    `compressed` and `bfloat16` are frames (frames.py), with and without entropy coding, `float32` is a plain tensor
    that any reader of safetensors understands; all are exact. Raises NotFinite naming the tensor.
    """
    squares: dict[str, float] = dict.fromkeys(shapes, 0.0)
    work = [(name, number) for name, shape in shapes.items() for number in range(_parts(shape))]

    def encoded(item: tuple[str, int]) -> tuple[bytes, float]:
        values = part(*item)
        square = _square(item[0], values)
        return values.tobytes() if storage == "float32" else encode(values, storage == "compressed"), square

    def pieces() -> Iterator[tuple[str, bytes]]:
        for count, ((name, _), (piece, square)) in enumerate(zip(work, _in_order(encoded, work), strict=True), 1):
            squares[name] += square
            if count % 1000 == 0:
                print(f"extract: {count / len(work):.0%} of {len(shapes)} tensors", file=sys.stderr)
            yield name, piece

    plain = storage == "float32"
    layout = {name: ("F32", shape) if plain else ("U8", None) for name, shape in shapes.items()}
    digests = append_safetensors(folder / DENSE, layout, pieces())
    form = "plain" if plain else "frames"
    return {
        name: {"form": form, "shape": list(shape), "norm": rounded(math.sqrt(squares[name])), "digest": digests[name]}
        for name, shape in shapes.items()
    }


def _square(name: str, values: np.ndarray) -> float:
    """Sum of squares, in float64: the certificate holds nine digits of the norm, the same on every machine."""
    wide = scratch.array("wide", values.size, np.float64)
    np.copyto(wide, values)
    square = float(np.dot(wide, wide))
    if not math.isfinite(square):
        raise NotFinite(f"tensor {name}: its delta is not finite; the training diverged or a weight is damaged")
    return square


def _parts(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // step(shape))


def _in_order(act: Callable[[T], R], work: list[T]) -> Iterator[R]:
    """Results in the order of the work, with a few of them in memory; the first error ends it."""
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for item in work:
            pending.append(pool.submit(act, item))
            if len(pending) > 2 * WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
