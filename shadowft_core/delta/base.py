"""A small sample of the Base, stored with a delta, so that `graft` can check the Instruct without the Base."""

from pathlib import Path

import numpy as np

from shadowft_core.delta.format import BASE, MARKS, SAMPLE, sample_positions
from shadowft_core.weights import FLOATS, Checkpoint, build_header, token_marks, write_safetensors


def sampled(base: Checkpoint) -> dict[str, np.ndarray]:
    """Up to 64 flat values of every float tensor, by name, in its own dtype, at `sample_positions`."""
    infos = {name: base.info(name) for name in sorted(base.names)}
    return {
        name: base.sample(name, sample_positions(info.size))
        for name, info in infos.items()
        if info.dtype in FLOATS and info.size
    }


def write_base(base: Checkpoint, folder: Path) -> None:
    """Write base.safetensors: the sample of every float tensor, and the token marks."""
    sample = sampled(base)
    arrays = {SAMPLE + name: values for name, values in sample.items()}
    layout = {SAMPLE + name: (base.info(name).dtype, values.shape) for name, values in sample.items()}
    marks = token_marks(base.path)
    if marks is not None:
        arrays[MARKS], layout[MARKS] = marks, ("U64", marks.shape)
    write_safetensors(folder / BASE, build_header(layout), lambda name: iter([arrays[name]]))
