"""Writes a difference as a dense delta, part by part."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shadowft_core.delta.format import DENSE, rounded, step
from shadowft_core.delta.frames import encode, longest
from shadowft_core.errors import NotFiniteError, say
from shadowft_core.files import in_order
from shadowft_core.kernels import bf16
from shadowft_core.kernels.scratch import scratch
from shadowft_core.weights import Bytes, append_safetensors

Storage = Literal["compressed", "bfloat16", "float32"]

SMALL = 1 << 14  # elements; tensors up to this size are written first, because a store sends them together
TOGETHER = 4  # parts of a tensor that a worker encodes in one task

Part = Callable[[str, int], tuple[np.ndarray, float]]
"""`part(name, number)` returns a flat float32 part of a tensor's delta, `step(shape)` elements, which the next call may
overwrite, and the sum of squares of the Base's weights in that part, or 0 if it was not computed"""


def write_dense(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    part: Part,
    storage: Storage = "compressed",
    check: Callable[[str, float, float], None] | None = None,
) -> dict[str, Any]:
    """Write dense.safetensors; returns the certificate's entries.

    `compressed` and `bfloat16` are frames (frames.py), with and without entropy coding; `float32` is a plain tensor
    that any safetensors library reads. All are exact. `check(name, square, weight)` receives the sums of squares of
    each tensor's delta and weights, over the parts for which `part` summed the weights. Raises NotFiniteError naming
    the tensor, and what `check` raises.
    """
    shapes = dict(sorted(shapes.items(), key=lambda item: math.prod(item[1]) > SMALL))
    squares = {name: np.zeros(3) for name in shapes}
    work = [
        (name, range(_parts(shape))[first : first + TOGETHER])
        for name, shape in shapes.items()
        for first in range(0, _parts(shape), TOGETHER)
    ]

    def encoded(item: tuple[str, range]) -> tuple[np.ndarray, memoryview]:
        (name, numbers), sums, end = item, np.zeros(3), 0
        room = scratch.array("frames", len(numbers) * longest(step(shapes[name])), np.uint8)
        for number in numbers:
            values, weight = part(name, number)
            if storage == "float32":
                square = bf16.rounded(values, scratch.array("words", values.size, "<u2"))[1]
                room[end : end + values.nbytes] = values.view(np.uint8)
                end += values.nbytes
            else:
                length, square = encode(values, storage == "compressed", room[end:])
                end += length
            if not math.isfinite(square):
                raise NotFiniteError(
                    f"tensor {name}: its delta is not finite; the training diverged or a weight is damaged"
                )
            sums += (square, square if weight else 0.0, weight)
        return sums, room[:end].data

    def pieces() -> Iterator[tuple[str, Bytes]]:
        for count, ((name, _), (sums, piece)) in enumerate(zip(work, in_order(encoded, work), strict=True), 1):
            squares[name] += sums
            if count % 250 == 0:
                say(f"extract: {count / len(work):.0%} of {len(shapes)} tensors")
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
