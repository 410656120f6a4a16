"""What is added to one tensor of the Instruct: the scaled sum of its deltas, float32, part by part."""

import math
from collections.abc import Iterator

import numpy as np

from shadowft_core.checkpoint import scratch
from shadowft_core.delta import step
from shadowft_core.graft.plan import Plan


def combined(plan: Plan, name: str) -> Iterator[np.ndarray]:
    """Flat float32 parts, `step(shape)` elements of the Instruct's tensor at a time; a part may be overwritten.

    Zeros for a tensor without a delta. Raises DeltaError as `Delta.chunks` does.
    """
    info, sources = plan.instruct.info(name), plan.sources.get(name, [])
    if not sources:
        stride = step(info.shape)
        zeros = np.zeros(min(stride, info.size), np.float32)
        yield from (zeros[: min(stride, info.size - start)] for start in range(0, math.prod(info.shape), stride))
        return
    streams = [delta.chunks(tensor) for delta, _, tensor in sources]
    for parts in zip(*streams, strict=True):
        total, share = (scratch.array(label, parts[0][1].size, np.float32) for label in ("total", "share"))
        np.multiply(parts[0][1], np.float32(sources[0][1]), out=total)
        for (_, part), (_, scale, _) in zip(parts[1:], sources[1:], strict=True):
            total += np.multiply(part, np.float32(scale), out=share)
        yield total
