"""The weight delta: computed exactly from the tuned model or adapter, stored as a folder with a certificate.

Every stored tensor has one of three forms. `factors`: LoRA factors, float32; the delta is `scaling * B A` with scaling
alpha/rank (Hu et al. 2021) or alpha/sqrt(rank) (rsLoRA, Kalajdzievski 2023). `frames`: the exact difference
tuned - base in bfloat16 with its exceptions, compressed or not. `plain`: the same difference in float32.
"""

from shadowft_core.delta.dense import Storage
from shadowft_core.delta.difference import Difference
from shadowft_core.delta.folder import Delta, open_delta
from shadowft_core.delta.format import sample_positions, step
from shadowft_core.delta.rehearsal import require_extractable
from shadowft_core.delta.source import DeltaSource
from shadowft_core.delta.stage import extract
from shadowft_core.delta.told import losses
from shadowft_core.delta.trainer import sentence
from shadowft_core.delta.tuned import open_difference, read_tuned

__all__ = [
    "Delta",
    "DeltaSource",
    "Difference",
    "Storage",
    "extract",
    "losses",
    "open_delta",
    "open_difference",
    "read_tuned",
    "require_extractable",
    "sample_positions",
    "sentence",
    "step",
]
