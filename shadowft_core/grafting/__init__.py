"""Instruct + scale * delta: every tensor accounted for, added in float32, rounded once, streamed.

grafted = cast(instruct_f32 + sum(scale * delta_f32)), as in Shadow-FT (W_I+ = W_I + (W_B+ - W_B)), rounded to nearest
even. Every tensor of the Instruct is grafted, or untouched with a reason. A tensor that does not match is an error
before anything is written. Rows of embeddings and heads are matched by token, experts by number in either layout. Two
workers process whole tensors; memory holds a few chunks, regardless of the model's size.
"""

from shadowft_core.grafting.options import (
    ONTO_BASE,
    UNRELATED,
    Merge,
    Options,
    chosen,
    deltas_of,
    multiplied,
    options_of,
    parse_delta,
    parse_scale_for,
)
from shadowft_core.grafting.writer import graft, grafted_tensors

__all__ = [
    "ONTO_BASE",
    "UNRELATED",
    "Merge",
    "Options",
    "chosen",
    "deltas_of",
    "graft",
    "grafted_tensors",
    "multiplied",
    "options_of",
    "parse_delta",
    "parse_scale_for",
]
