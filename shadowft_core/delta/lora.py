"""Factors: the low-rank form of a tensor's delta, `scaling * left right`, written as factors.safetensors."""

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.delta.folder import FACTORS, rounded
from shadowft_core.weights import build_header, write_shards

_ROWS = 512  # of a factor that are float64 at a time: 512 KiB at rank 128


@dataclass(frozen=True)
class Factors:
    """The delta of one (rows, columns) matrix; the arrays are float32 and come when asked for, so few are held."""

    rank: int
    scaling: float
    left: Callable[[], np.ndarray]
    """(rows, rank); B of a linear layer"""
    right: Callable[[], np.ndarray]
    """(rank, columns); A of a linear layer"""

    def product_norm(self) -> float:
        """Frobenius norm of the delta without forming it: |L R|^2 = sum(L'L * R R')."""
        return self._norm(self.left(), self.right())

    def right_and_norm(self) -> tuple[np.ndarray, float]:
        """`right()` and `product_norm()` from one reading."""
        right = self.right()
        return right, self._norm(self.left(), right)

    def _norm(self, left: np.ndarray, right: np.ndarray) -> float:
        return abs(self.scaling) * math.sqrt(max(0.0, float(np.sum(_gram(left) * _gram(right.T)))))


def _gram(tall: np.ndarray) -> np.ndarray:
    """tall' tall in float64, of a (length, rank) float32 matrix; few rows are wide at a time."""
    gram = np.zeros((tall.shape[1],) * 2)
    for start in range(0, len(tall), _ROWS):
        wide = tall[start : start + _ROWS].astype(np.float64)
        gram += wide.T @ wide
    return gram


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
