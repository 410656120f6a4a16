"""The difference of two checkpoints becomes a dense delta, part by part, in float32."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shadowft_core.checkpoint import Bytes, append_safetensors, in_order, kernel, scratch
from shadowft_core.delta.folder import DENSE, rounded, step
from shadowft_core.delta.frames import encode
from shadowft_core.errors import NotFinite

Storage = Literal["compressed", "bfloat16", "float32"]

Part = Callable[[str, int], tuple[np.ndarray, float]]
"""`part(name, number)`: a flat float32 part, `step(shape)` elements, of a tensor's delta, which the next one may reuse;
and the sum of squares of the weights that it was taken from, 0 where that is not asked"""


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
    every tensor's delta and weights, over the parts whose weight is known. Raises NotFinite naming the tensor, and what
    `check` raises.
    """
    squares = {name: np.zeros(3) for name in shapes}
    work = [(name, number) for name, shape in shapes.items() for number in range(_parts(shape))]

    def encoded(item: tuple[str, int]) -> tuple[tuple[float, float, float], Bytes]:
        values, weight = part(*item)
        if storage == "float32":
            piece, square = values.tobytes(), kernel.rounded(values, scratch.array("words", values.size, "<u2"))[1]
        else:
            piece, square = encode(values, storage == "compressed")
        if not math.isfinite(square):
            raise NotFinite(f"tensor {item[0]}: its delta is not finite; the training diverged or a weight is damaged")
        return (square, square if weight else 0.0, weight), piece

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
        square, weighed, weight = (float(total) for total in squares[name])
        if check:
            check(name, weighed, weight)
        entries[name] = {
            "form": form,
            "shape": list(shape),
            "norm": rounded(math.sqrt(square)),
            "digest": digests[name],
        }
    return entries


def _parts(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // step(shape))
