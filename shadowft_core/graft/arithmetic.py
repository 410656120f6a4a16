"""The sum and its one rounding, and what the rounding kept of the delta."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from shadowft_core.errors import CastOverflowError, NotFiniteError
from shadowft_core.graft.combine import combined, stride_of
from shadowft_core.graft.plan import Plan
from shadowft_core.kernels import bf16
from shadowft_core.kernels.bf16 import LazyDifference
from shadowft_core.weights import CHUNK, DTYPES


@dataclass(frozen=True)
class TensorResult:
    """What one pass over a tensor of the Instruct found. Small: it comes back from a worker process."""

    digest: str
    """of the Instruct's tensor"""
    sums: dict[str, float] | None
    """by `bf16.SUMS`, over all entries; None where nothing was added"""


def whole(plan: Plan, name: str) -> np.ndarray:
    """A tensor of the result, in memory."""
    info = plan.instruct.info(name)
    array = np.empty(info.size, DTYPES[plan.dtype[name]])
    end = 0
    for part in parts(plan, name):
        array[end : end + part.size] = part
        end += part.size
    return array.reshape(info.shape)


def parts(plan: Plan, name: str) -> Generator[np.ndarray, None, TensorResult]:
    """Yield a tensor of the result in flat parts, which the next part may overwrite; return what the pass found.

    This is the arithmetic of the project: `cast(instruct_f32 + sum(scale * delta_f32))`.
    Raises NotFiniteError, CastOverflowError, DeltaError, UnrelatedError.
    """
    info, sources = plan.instruct.info(name), plan.sources.get(name, [])
    target = DTYPES[plan.dtype[name]]
    if not sources and plan.dtype[name] == info.dtype:
        for _, part in plan.instruct.chunks(name, 2 * CHUNK, hashed=True):
            yield part
        return TensorResult(plan.instruct.tensor_digest(name), None)
    total = np.zeros(len(bf16.SUMS))
    stride = stride_of(plan, name)
    instruct = plan.instruct.chunks(name, stride, hashed=True)
    room = np.empty(min(stride, info.size), target)
    for (_, weights), delta in zip(instruct, combined(plan, name), strict=True):
        result = room[: weights.size]
        with np.errstate(all="ignore"):  # values that are not finite are refused by name just below
            sums = bf16.add(weights, delta, result)
        if not np.isfinite(sums).all():
            values = delta.compute() if isinstance(delta, LazyDifference) else delta
            sums = _in_float64(plan, name, weights.astype(np.float32), values)
        total += sums
        yield result
    named = dict(zip(bf16.SUMS, total.tolist(), strict=True)) if sources else None
    return TensorResult(plan.instruct.tensor_digest(name), named)


def _in_float64(plan: Plan, name: str, before: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The sums of a part whose squares overflow float32, in float64.

    Raises NotFiniteError, CastOverflowError if a value itself is not finite.
    """
    with np.errstate(all="ignore"):
        after = (before + delta).astype(DTYPES[plan.dtype[name]]).astype(np.float32)
        finite = np.isfinite(after)
    if finite.all():
        return bf16.account(*(x.astype(np.float64) for x in (before, delta, after - before)))
    for side, values in (("the Instruct's tensor", before), ("the delta's tensor", delta)):
        if not np.isfinite(values).all():
            raise NotFiniteError(f"{plan.instruct.path}: {side} {name} holds NaN or infinity; use an intact one")
    at = int(np.argmin(finite))
    raise CastOverflowError(
        f"{plan.instruct.path}: tensor {name}: {before[at]:g} + {delta[at]:g} overflows {plan.dtype[name]}; "
        "lower the scale or choose graft.dtype float32"
    )
