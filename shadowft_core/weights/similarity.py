"""How similar two models are: the metrics, and all thresholds that tell a related model from an unrelated one.

sigma is the distance between two models, sum|B - I| / (sum|B| + sum|I|): 0 for equal, 0.7 for independent, 1 for
opposite weights. Definition: Shadow-FT (arXiv 2505.12716), section 3.
"""

from dataclasses import dataclass

import numpy as np

SIGMA = "sum|B - I| / (sum|B| + sum|I|), the sums over all weights of the group"

SIGMA_LOW = 0.001
"""sigma of a pair; below, `pair` warns that the two hardly differ: published pairs lie between 0.003 and 0.1"""
SIGMA_HIGH = 0.1
"""sigma of a pair; above, `pair` warns that the two are far apart: no published pair is"""
SIGMA_UNRELATED = 0.5
"""sigma of a pair, of one matrix read in full, or of a delta's sample of its Base; above, refused: independent weights
are at 0.7, single matrices of published pairs up to 0.35"""
SIGMA_UNRELATED_MATRIX = 0.55
"""sigma of one matrix in a delta's sample of its Base; above, refused: 64 values estimate sigma to 0.035"""
SAMPLE_SIZE = 64
"""values that a delta samples from a tensor of its Base; `SIGMA_UNRELATED_MATRIX` judges no matrix with fewer"""
CHANGE_UNRELATED = 1.0
"""|tuned - Base| / |Base| of a matrix; above, refused: training changes it by a few percent,
that of an unrelated model by 1.4"""
LEARNT_UNRELATED = 0.5
"""|delta| / (|scaling B A| + |P|) of an adapter initialised from P, a part of the Base (PiSSA, OLoRA); above, refused:
training moves the factors by a few percent, those of another Base are at 0.7"""
ROW_ZERO = 0.05
"""Norm of a token's row of embedding or head, divided by the norm of a usual row. At or below, the row was never
trained. Unused rows of Llama 3 have 3e-21, tokens that a model cannot use reliably less than 0.11, and the rarest
control token that it trained 0.3."""
ROW_EQUAL = 0.03
"""|a - b| / |a| of two rows of embedding or head. At or below, neither was trained. Rows of new tokens, set to the mean
of all rows, differ by 0.0001; near synonyms in a model of 221 words differ by 0.045."""
TOKENS_UNRELATED = 0.5
"""share of the smaller vocabulary that both models have; below, refused: the two tokenizers mostly differ"""


@dataclass
class Sums:
    """The terms of sigma: sum|B - I|, sum|B| + sum|I|, and the number of weights."""

    apart: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, other: "Sums", factor: float = 1.0) -> None:
        self.apart += factor * other.apart
        self.total += factor * other.total
        self.count += other.count

    def exceeds(self, limit: float) -> bool:
        return self.apart > limit * self.total

    @property
    def sigma(self) -> float:
        """Rounded to nine digits, which are equal on every machine; 0 when all weights are."""
        return float(f"{self.apart / self.total:.9g}") if self.total else 0.0


def sums_of(ours: np.ndarray, theirs: np.ndarray) -> Sums:
    """The sums over two flat float32 arrays. NaN counts as 0: non-finite weights are refused where they are read."""
    with np.errstate(invalid="ignore"):
        apart = float(np.nansum(np.abs(ours - theirs), dtype=np.float64))
        total = float(np.nansum(np.abs(ours), dtype=np.float64) + np.nansum(np.abs(theirs), dtype=np.float64))
    return Sums(apart, total, len(ours))
