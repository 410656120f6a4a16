"""The low-rank form of a tensor's delta: `scaling * left right`, two float32 factors."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_ROWS = 512  # rows of a factor converted to float64 at a time: 512 KiB at rank 128


@dataclass(frozen=True)
class Factors:
    """The delta of one (rows, columns) matrix. The arrays are float32 and are read when needed."""

    rank: int
    scaling: float
    left: Callable[[], np.ndarray]
    """(rows, rank); B of a linear layer"""
    right: Callable[[], np.ndarray]
    """(rank, columns); A of a linear layer"""

    def product_norm(self) -> float:
        """Frobenius norm of the delta, without the product: |L R|^2 = sum(L'L * R R')."""
        return self._norm(self.left(), self.right())

    def right_and_norm(self) -> tuple[np.ndarray, float]:
        """`right()` and `product_norm()`, reading `right` once."""
        right = self.right()
        return right, self._norm(self.left(), right)

    def _norm(self, left: np.ndarray, right: np.ndarray) -> float:
        return abs(self.scaling) * math.sqrt(max(0.0, float(np.sum(_gram(left) * _gram(right.T)))))


def _gram(tall: np.ndarray) -> np.ndarray:
    """tall' tall in float64, of a (length, rank) float32 matrix, a few rows at a time."""
    gram = np.zeros((tall.shape[1],) * 2)
    for start in range(0, len(tall), _ROWS):
        wide = tall[start : start + _ROWS].astype(np.float64)
        gram += wide.T @ wide
    return gram
