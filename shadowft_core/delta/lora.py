"""Writes the factors of a delta as factors.safetensors."""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.delta.factors import Factors
from shadowft_core.delta.format import FACTORS, LARGEST, rounded
from shadowft_core.errors import NotFiniteError
from shadowft_core.weights import build_header, write_shards


def write_factors(folder: Path, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Factors]) -> dict[str, Any]:
    """Write factors.safetensors; returns the certificate's entries."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    owners: dict[str, Factors] = {}
    for name, factors in sorted(found.items()):
        rows, columns = shapes[name]
        owners |= {f"{name}.lora_A": factors, f"{name}.lora_B": factors}
        layout |= {
            f"{name}.lora_A": ("F32", (factors.rank, columns)),
            f"{name}.lora_B": ("F32", (rows, factors.rank)),
        }

    def produce(key: str) -> Generator[np.ndarray, None, float | None]:
        norm = None
        if key.endswith(".lora_A"):
            array, norm = owners[key].right_and_norm()
            if not norm <= LARGEST:  # the norm is at least the largest entry
                raise NotFiniteError(
                    f"tensor {key.removesuffix('.lora_A')}: its delta has the norm {norm:g}, more than "
                    "float32 holds; the training diverged, or the scaling of the adapter is wrong"
                )
        else:
            array = owners[key].left()
        yield np.ascontiguousarray(array).reshape(-1)
        return norm

    written = write_shards({folder / FACTORS: build_header(layout)}, produce)
    return {
        name: {
            "shape": list(shapes[name]),
            "form": "factors",
            "rank": factors.rank,
            "scaling": factors.scaling,
            "norm": rounded(written[f"{name}.lora_A"].fact),
            "digest_a": written[f"{name}.lora_A"].digest,
            "digest_b": written[f"{name}.lora_B"].digest,
        }
        for name, factors in sorted(found.items())
    }
