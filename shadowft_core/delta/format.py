"""The delta folder's format: file names, parts, samples. docs/delta-format.md is the specification."""

import numpy as np

from shadowft_core.weights import CHUNK

FORMAT = 2
CERTIFICATE, DENSE, FACTORS, BASE = "delta.json", "dense.safetensors", "factors.safetensors", "base.safetensors"
LARGEST = float(np.finfo(np.float32).max)
MARKS, SAMPLE = "token_marks", "sample."
"""names in base.safetensors: of the token marks; prefix of the sample of a tensor"""
SAMPLED = 64
"""elements in the sample of a tensor, or all if it has fewer"""


def step(shape: tuple[int, ...]) -> int:
    """Elements per part of a tensor: whole rows, about `CHUNK`. The bits of a product of factors depend on it."""
    row = shape[-1] if len(shape) > 1 else 1
    return max(1, CHUNK // max(row, 1)) * max(row, 1)


def sample_positions(size: int) -> np.ndarray:
    """Flat positions to sample from `size` elements: all if at most 64, else four evenly spread runs of 16."""
    if size <= SAMPLED:
        return np.arange(size)
    starts = np.linspace(0, size - 16, 4).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(16))


def rounded(norm: float) -> float:
    """Round to nine digits, which agree on every machine: the delta's digest covers the norms."""
    return float(f"{norm:.9g}")
