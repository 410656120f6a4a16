"""The weight delta: taken exactly from what training left, kept as a folder with a birth certificate.

Two kinds. `lora`: the factors themselves, float32; the delta of a tensor is `scaling * B A` with scaling alpha/rank (Hu
et al. 2021) or alpha/sqrt(rank) (rsLoRA, Kalajdzievski 2023). `dense`: the float32 difference tuned - base of every
tensor that changed. An adapter that replaces or rescales weights is neither and is refused: merged into the Base first,
its checkpoint gives an exact dense delta.
"""

from shadowft_core.delta.folder import Delta, open_delta, sample_positions, step
from shadowft_core.delta.stage import extract

__all__ = ["Delta", "extract", "open_delta", "sample_positions", "step"]
