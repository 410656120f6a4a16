"""The difference of two checkpoints becomes a dense delta, part by part, in float32."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shadowft_core.checkpoint import Bytes, append_safetensors, in_order, scratch
from shadowft_core.delta.folder import DENSE, rounded, step
from shadowft_core.delta.frames import encode
from shadowft_core.errors import NotFinite

Storage = Literal["compressed", "bfloat16", "float32"]

Part = Callable[[str, int], tuple[np.ndarray, float]]
"""`part(name, number)`: a flat float32 part, `step(shape)` elements, of a tensor's delta, which the next one may reuse;
and the sum of squares of the weights that it was taken from"""


def write_dense(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    part: Part,
    storage: Storage = "compressed",
    check: Callable[[str, float, float], None] | None = None,
) -> dict[str, Any]:
    """Write dense.safetensors; returns the certificate's entries.

    `compressed` and `bfloat16` are frames (frames.py), with and without entropy coding, `float32` is a plain tensor
    that any reader of safetensors understands; all are exact. `check(name, square, weight)` gets the sums of squares of
    every tensor's delta and weights. Raises NotFinite naming the tensor, and what `check` raises.
    """
    squares = {name: np.zeros(2) for name in shapes}
    work = [(name, number) for name, shape in shapes.items() for number in range(_parts(shape))]

    def encoded(item: tuple[str, int]) -> tuple[tuple[float, float], bytes]:
        values, weight = part(*item)
        square = _square(item[0], values)
        return (square, weight), values.tobytes() if storage == "float32" else encode(values, storage == "compressed")

    def pieces() -> Iterator[tuple[str, Bytes]]:
        for count, ((name, _), (sums, piece)) in enumerate(zip(work, in_order(encoded, work), strict=True), 1):
            squares[name] += sums
            if count % 1000 == 0:
                print(f"extract: {count / len(work):.0%} of {len(shapes)} tensors", file=sys.stderr)
            yield name, piece

    plain = storage == "float32"
    layout = {name: ("F32", shape) if plain else ("U8", None) for name, shape in shapes.items()}
    digests = append_safetensors(folder / DENSE, layout, pieces())
    form = "plain" if plain else "frames"
    entries: dict[str, Any] = {}
    for name, shape in shapes.items():
        square, weight = (float(total) for total in squares[name])
        if check:
            check(name, square, weight)
        entries[name] = {
            "form": form,
            "shape": list(shape),
            "norm": rounded(math.sqrt(square)),
            "digest": digests[name],
        }
    return entries


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
