"""The sum and its one rounding, and the account of what the rounding left of the delta."""

import math
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from shadowft_core.delta import AnyDelta, Difference
from shadowft_core.errors import CastOverflowError, NotFiniteError
from shadowft_core.graft.combine import apart_of, combined, stride_of
from shadowft_core.graft.plan import Plan
from shadowft_core.kernels import bf16
from shadowft_core.weights import CHUNK, DTYPES


def whole(plan: Plan, name: str) -> np.ndarray:
    info = plan.instruct.info(name)
    array = np.empty(info.size, DTYPES[plan.dtype[name]])
    end = 0
    for part in parts(plan, name):
        array[end : end + part.size] = part
        end += part.size
    return array.reshape(info.shape)


Learnt = tuple[str, list[float] | None]
"""digest of the Instruct's tensor, and the sums `bf16.SUMS` names if something was added to it"""


def parts(plan: Plan, name: str) -> Generator[np.ndarray, None, Learnt]:
    """The tensor of the result in flat parts; a part may be overwritten by the next. The arithmetic of the project.

    Returns what the pass has shown, for `learn`.
    """
    info, sources = plan.instruct.info(name), plan.sources.get(name, [])
    target = DTYPES[plan.dtype[name]]
    if not sources and plan.dtype[name] == info.dtype:
        for _, part in plan.instruct.chunks(name, 2 * CHUNK, hashed=True):
            yield part
        return plan.instruct.tensor_digest(name), None
    sums = np.zeros(len(bf16.SUMS))
    stride = stride_of(plan, name)
    ours = plan.instruct.chunks(name, stride, hashed=True)
    room = np.empty(min(stride, info.size), target)
    for (_, weights), delta in zip(ours, combined(plan, name), strict=True):
        result = room[: weights.size]
        with np.errstate(all="ignore"):  # what is not finite is refused by name just below
            found = bf16.add(weights, delta, result)
        if not np.isfinite(found).all():
            formed = delta.formed() if isinstance(delta, bf16.Apart) else delta
            found = _in_float64(plan, name, weights.astype(np.float32), formed)
        sums += found
        yield result
    return plan.instruct.tensor_digest(name), sums.tolist() if sources else None


def learn(plan: Plan, facts: Mapping[str, Learnt]) -> None:
    """Take over what the passes of `parts` returned, by tensor name: they may have run in other processes."""
    plan.instruct.add_digests({name: digest for name, (digest, _) in facts.items()})
    for name, (_, sums) in facts.items():
        if sums is not None:
            plan.receipts[name] = dict(zip(bf16.SUMS, sums, strict=True))


def _in_float64(plan: Plan, name: str, before: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The account of a part whose squares are beyond float32. Raises NotFiniteError, CastOverflowError for values that
    are.
    """
    with np.errstate(all="ignore"):
        after = (before + delta).astype(DTYPES[plan.dtype[name]]).astype(np.float32)
        finite = np.isfinite(after)
    if finite.all():
        return bf16.account(*(x.astype(np.float64) for x in (before, delta, after - before)))
    for whose, values in (("the Instruct's tensor", before), ("the delta's tensor", delta)):
        if not np.isfinite(values).all():
            raise NotFiniteError(f"{plan.instruct.path}: {whose} {name} holds NaN or infinity; use an intact one")
    at = int(np.argmin(finite))
    raise CastOverflowError(
        f"{plan.instruct.path}: tensor {name}: {before[at]:g} + {delta[at]:g} overflows {plan.dtype[name]}; "
        "lower the scale or choose graft.dtype float32"
    )


def receipt(plan: Plan, instruct_digest: str) -> dict[str, Any]:
    """Classes, waivers, rows matched by token, norms, which share of the delta travels, what the cast kept of it."""
    sums = list(plan.receipts.values())
    overall = {key: sum(one[key] for one in sums) for key in bf16.SUMS}
    return {
        "format": 1,
        "onto_base": any(delta.base_digest == instruct_digest for delta, _ in plan.deltas),
        "waivers": sorted(set(plan.options.waivers)),
        "classes": {"grafted": len(plan.sources), "untouched": len(plan.untouched), "left_out": len(plan.left_out)},
        "retention": _retention(overall) if sums else None,
        "grafted": {name: _retention(one) for name, one in sorted(plan.receipts.items())},
        "untouched": plan.untouched,
        "left_out": plan.left_out,
        "travel": _travel(plan),
        "tokens": plan.tokens,
        "ignored": plan.ignored,
    }


def _travel(plan: Plan) -> dict[str, Any] | None:
    """The share of the deltas' energy (squared norms, each delta at its own scale) that is added.

    `energy` is that share, `stays` the shares that are not, by the last word of the tensors' names, largest first, to
    four digits: squares are summed in float32. None
    where every tensor travels, or every delta is at scale 0. Of a difference of checkpoints the tensors that stay are
    read for it.
    """
    stays: dict[str, float] = {}
    for delta, name, own in plan.still:
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        stays[leaf] = stays.get(leaf, 0.0) + (own * delta.norm(name)) ** 2
    still = {(id(delta), name) for delta, name, _ in plan.still}
    total = sum(stays.values()) + sum(
        (own * _norm(plan, delta, name)) ** 2
        for delta, own in plan.deltas
        for name in delta.names
        if stays and own and (id(delta), name) not in still
    )
    if not total:
        return None
    shares = {leaf: float(f"{square / total:.4g}") for leaf, square in sorted(stays.items(), key=lambda i: -i[1])}
    return {"energy": min(round(1 - sum(shares.values()), 6), math.nextafter(1, 0)), "stays": shares}


def _norm(plan: Plan, delta: AnyDelta, name: str) -> float:
    """The unscaled norm of a delta's tensor; of a difference, mostly known from the pass that added it."""
    if isinstance(delta, Difference) and (found := apart_of(plan, name)) is not None and name in plan.receipts:
        piece = found[1]
        if piece.tensor == name:
            return math.sqrt(plan.receipts[name]["delta2"]) / abs(piece.scale)
    return delta.norm(name)


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
