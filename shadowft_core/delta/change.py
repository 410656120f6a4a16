"""How an adapter changes one tensor of its Base."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shadowft_core.delta.factors import Factors


@dataclass(frozen=True)
class Change:
    """The tuned tensor as a function of the Base's: `magnitude * (W + factors) / |W + factors|`, each part optional.

    W is the Base's tensor, or `replaced` if the adapter has the whole tensor. `rows` then overwrites rows of the
    result. String fields are keys of the adapter's file.
    """

    factors: Factors | None = None
    stacked: Callable[[int], np.ndarray] | None = None
    """for one tensor of all experts: returns the delta of the expert with that number"""
    magnitude: str | None = None
    """DoRA (Liu et al. 2024): norms of the weight vectors of the outputs"""
    outputs_are_columns: bool = False
    """embeddings and Conv1D: the outputs of the layer are the columns of the stored tensor"""
    replaced: str | None = None
    rows: str | None = None
    indices: tuple[int, ...] = ()
    shift: str | None = None
    """bias of lora_B, added `shift_scaling` times"""
    shift_scaling: float = 0.0

    @property
    def additive(self) -> bool:
        """Whether the delta is the product of the factors and nothing else."""
        return replace(self, factors=None, outputs_are_columns=False) == Change()
