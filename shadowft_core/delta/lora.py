"""Factors: the low-rank form of a tensor's delta, `scaling * left right`, written as factors.safetensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.checkpoint import build_header, write_safetensors
from shadowft_core.delta.folder import FACTORS, rounded


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
        left, right = self.left().astype(np.float64), self.right().astype(np.float64)
        return abs(self.scaling) * math.sqrt(max(0.0, float(np.sum((left.T @ left) * (right @ right.T)))))


def write_factors(folder: Path, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Factors]) -> dict[str, Any]:
    """Write factors.safetensors; returns the certificate's entries."""
    wanted: dict[str, Callable[[], np.ndarray]] = {}
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    entries: dict[str, Any] = {}
    for name, factors in sorted(found.items()):
        rows, columns = shapes[name]
        wanted |= {f"{name}.lora_A": factors.right, f"{name}.lora_B": factors.left}
        layout |= {
            f"{name}.lora_A": ("F32", (factors.rank, columns)),
            f"{name}.lora_B": ("F32", (rows, factors.rank)),
        }
        entries[name] = {
            "shape": [rows, columns],
            "form": "factors",
            "rank": factors.rank,
            "scaling": factors.scaling,
            "norm": rounded(factors.product_norm()),
        }
    digests = write_safetensors(
        folder / FACTORS, build_header(layout), lambda name: iter([np.ascontiguousarray(wanted[name]()).reshape(-1)])
    )
    for name, entry in entries.items():
        entry |= {"digest_a": digests[f"{name}.lora_A"], "digest_b": digests[f"{name}.lora_B"]}
    return entries
