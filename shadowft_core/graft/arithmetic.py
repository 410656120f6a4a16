"""The sum and its one rounding, and the account of what the rounding left of the delta."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from shadowft_core.checkpoint import CHUNK, DTYPES
from shadowft_core.delta import step
from shadowft_core.errors import CastOverflow, NotFinite
from shadowft_core.graft.combine import combined
from shadowft_core.graft.plan import Plan

_SUMS = ("weight2", "delta2", "reached2", "product", "error2", "moves", "lost")  # over the entries of a tensor


def whole(plan: Plan, name: str) -> np.ndarray:
    info = plan.instruct.info(name)
    array = np.empty(info.size, DTYPES[plan.dtype[name]])
    end = 0
    for part in parts(plan, name):
        array[end : end + part.size] = part
        end += part.size
    return array.reshape(info.shape)


def parts(plan: Plan, name: str) -> Iterator[np.ndarray]:
    """The tensor of the result in flat parts; a part may be overwritten by the next. The arithmetic of the project."""
    info, sources = plan.instruct.info(name), plan.sources.get(name, [])
    target = DTYPES[plan.dtype[name]]
    if not sources and plan.dtype[name] == info.dtype:
        for _, part in plan.instruct.chunks(name, 2 * CHUNK, hashed=True):
            yield part
        return
    sums = np.zeros(len(_SUMS))
    stride = step(info.shape)
    ours = plan.instruct.chunks(name, stride, hashed=True)
    kept = _Kept(min(stride, info.size), target)
    for (_, weights), delta in zip(ours, combined(plan, name), strict=True):
        if weights.size < kept.before.size:  # the last part
            kept = _Kept(weights.size, target)
        with np.errstate(all="ignore"):  # what is not finite is refused by name just below
            np.copyto(kept.before, weights)
            np.add(kept.before, delta, out=kept.spare)
            np.copyto(kept.result, kept.spare, casting="unsafe")
            np.copyto(kept.reached, kept.result)
            np.subtract(kept.reached, kept.before, out=kept.reached)
            found = _sums(kept, kept.before, delta, kept.reached)
        if not all(map(math.isfinite, found)):  # a value that is not, or squares beyond float32
            reached = kept.result.astype(np.float32)
            if not np.isfinite(reached).all():
                _refuse(plan, name, kept.before, delta, reached)
            found = _sums(kept, *(x.astype(np.float64) for x in (kept.before, delta, kept.reached)))
        sums += found
        yield kept.result
    if sources:
        plan.receipts[name] = dict(zip(_SUMS, sums.tolist(), strict=True))


class _Kept:
    """The arrays of one tensor's pass, used again for every part: fresh memory costs more than the arithmetic in it."""

    def __init__(self, size: int, target: np.dtype[Any]) -> None:
        self.before, self.reached, self.spare = (np.empty(size, np.float32) for _ in range(3))
        self.result = np.empty(size, target)
        self.moves, self.arrives = np.empty(size, np.bool_), np.empty(size, np.bool_)


def _sums(kept: _Kept, before: np.ndarray, delta: np.ndarray, reached: np.ndarray) -> tuple[float, ...]:
    """What `_SUMS` names, of one part, summed in the type of the arrays."""
    np.not_equal(delta, 0, out=kept.moves)
    np.not_equal(reached, 0, out=kept.arrives)
    moves = int(np.count_nonzero(kept.moves))
    arrived = int(np.count_nonzero(np.logical_and(kept.moves, kept.arrives, out=kept.arrives)))
    gap = np.subtract(reached, delta, out=kept.spare if reached.dtype == np.float32 else None)
    squares = (_square(before), _square(delta), _square(reached))
    return *squares, float(np.dot(delta, reached)), _square(gap), moves, moves - arrived


def _square(x: np.ndarray) -> float:
    return float(np.dot(x, x))


def _refuse(plan: Plan, name: str, before: np.ndarray, delta: np.ndarray, reached: np.ndarray) -> None:
    for whose, values in (("the Instruct's tensor", before), ("the delta's tensor", delta)):
        if not np.isfinite(values).all():
            raise NotFinite(f"{plan.instruct.path}: {whose} {name} holds NaN or infinity; use an intact one")
    at = int(np.argmin(np.isfinite(reached)))
    raise CastOverflow(
        f"{plan.instruct.path}: tensor {name}: {before[at]:g} + {delta[at]:g} overflows {plan.dtype[name]}; "
        "lower the scale or choose graft.dtype float32"
    )


def receipt(plan: Plan, instruct_digest: str) -> dict[str, Any]:
    """Classes, waivers, rows matched by token, norms, and what the cast left of the delta."""
    sums = list(plan.receipts.values())
    overall = {key: sum(one[key] for one in sums) for key in _SUMS}
    return {
        "format": 1,
        "onto_base": any(delta.base_digest == instruct_digest for delta, _ in plan.deltas),
        "waivers": sorted(set(plan.options.waivers)),
        "classes": {"grafted": len(plan.sources), "untouched": len(plan.untouched), "left_out": len(plan.left_out)},
        "retention": _retention(overall) if sums else None,
        "grafted": {name: _retention(one) for name, one in sorted(plan.receipts.items())},
        "untouched": plan.untouched,
        "left_out": plan.left_out,
        "tokens": plan.tokens,
    }


def _retention(sums: dict[str, float]) -> dict[str, float]:
    """Norms of weights and delta; of the delta that reached the output: cosine, energy share, share of lost entries.

    energy = 1 - |reached - delta|^2 / |delta|^2; unchanged = share of non-zero delta entries that left the weight as
    it was. They are 1, 1 and 0 when nothing is lost.
    """
    delta2, reached2, product = sums["delta2"], sums["reached2"], sums["product"]
    numbers = {
        "weight_norm": math.sqrt(sums["weight2"]),
        "delta_norm": math.sqrt(delta2),
        "cosine": product / math.sqrt(delta2 * reached2) if delta2 and reached2 else float(delta2 == reached2),
        "energy": 1 - sums["error2"] / delta2 if delta2 else 1.0,
        "unchanged": sums["lost"] / sums["moves"] if sums["moves"] else 0.0,
    }
    return {key: float(f"{value:.6g}") for key, value in numbers.items()}
