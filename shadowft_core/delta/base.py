"""What a delta keeps of its Base: enough to tell, without the Base, whether another model is a near relative."""

from pathlib import Path

import numpy as np

from shadowft_core.checkpoint import FLOATS, Checkpoint, build_header, token_marks, write_safetensors
from shadowft_core.delta.folder import BASE, MARKS, SAMPLE, sample_positions


def write_base(base: Checkpoint, folder: Path) -> None:
    """Write base.safetensors: up to 64 values of every float tensor in its own dtype, and the token marks."""
    arrays: dict[str, np.ndarray] = {}
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in sorted(base.names):
        info = base.info(name)
        if info.dtype in FLOATS and info.size:
            arrays[SAMPLE + name] = base.sample(name, sample_positions(info.size))
            layout[SAMPLE + name] = (info.dtype, arrays[SAMPLE + name].shape)
    marks = token_marks(base.path)
    if marks is not None:
        arrays[MARKS], layout[MARKS] = marks, ("U64", marks.shape)
    write_safetensors(folder / BASE, build_header(layout), lambda name: iter([arrays[name]]))
