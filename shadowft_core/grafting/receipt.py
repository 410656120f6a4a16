"""receipt.json: what `graft` records about the folder it writes. It is read together with recipe.json."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadowft_core.delta import DeltaSource
from shadowft_core.errors import CheckpointError
from shadowft_core.files import read_json_object
from shadowft_core.files.record import check_record
from shadowft_core.grafting.arithmetic import TensorResult, lazy_source
from shadowft_core.grafting.plan import Plan
from shadowft_core.grafting.recipe import Receipt, Recipe
from shadowft_core.kernels.bf16 import SUMS

RECIPE, RECEIPT = "recipe.json", "receipt.json"
_OF_RECIPE = ("digest", "instruct", "deltas", "scope", "dtype", "merge", "scale_for", "waivers")
Sums = Mapping[str, Mapping[str, float]]
"""the sums, by `bf16.SUMS`, of each tensor that something was added to"""


def build_receipt(plan: Plan, results: Mapping[str, TensorResult], instruct_digest: str) -> dict[str, Any]:
    """The content of receipt.json: classes, waivers, rows matched by token, norms, what was added and what was lost.

    `results` has what `arithmetic.parts` returned for every tensor of the Instruct.
    """
    sums = {name: result.sums for name, result in results.items() if result.sums is not None}
    overall = {key: sum(one[key] for one in sums.values()) for key in SUMS}
    return {
        "format": 1,
        "onto_base": any(delta.base_digest == instruct_digest for delta, _ in plan.deltas),
        "waivers": sorted(set(plan.options.waivers)),
        "classes": {"grafted": len(plan.sources), "untouched": len(plan.untouched), "left_out": len(plan.left_out)},
        "retention": _retention(overall) if sums else None,
        "grafted": {name: _retention(one) for name, one in sorted(sums.items())},
        "untouched": plan.untouched,
        "left_out": plan.left_out,
        "travel": _travel(plan, sums),
        "tokens": plan.tokens,
        "ignored": plan.ignored,
        **({"trained": trained} if (trained := _trained(plan)) else {}),
    }


def _trained(plan: Plan) -> dict[str, Any]:
    """What the files of other trainers say about their trainings, by digest of the delta."""
    return {delta.digest: delta.trainer for delta, _ in plan.deltas if delta.trainer is not None}


def _travel(plan: Plan, sums: Sums) -> dict[str, Any] | None:
    """The share of the deltas' energy (squared norms, each delta at its own scale) that is added.

    `energy` is that share. `stays` has the shares that are not added, by the last word of the tensors' names, largest
    first, to four digits, since squares are summed in float32. None if every tensor is added, or every delta is at
    scale 0. For a difference of checkpoints, this reads the tensors that are not added.
    """
    stays: dict[str, float] = {}
    for delta, name, own in plan.unapplied:
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        stays[leaf] = stays.get(leaf, 0.0) + (own * delta.norm(name)) ** 2
    unapplied = {(id(delta), name) for delta, name, _ in plan.unapplied}
    total = sum(stays.values()) + sum(
        (own * _norm(plan, sums, delta, name)) ** 2
        for delta, own in plan.deltas
        for name in delta.names
        if stays and own and (id(delta), name) not in unapplied
    )
    if not total:
        return None
    shares = {leaf: float(f"{square / total:.4g}") for leaf, square in sorted(stays.items(), key=lambda i: -i[1])}
    return {"energy": min(round(1 - sum(shares.values()), 6), math.nextafter(1, 0)), "stays": shares}


def _norm(plan: Plan, sums: Sums, delta: DeltaSource, name: str) -> float:
    """The unscaled norm of a delta's tensor; reuses the sums of the pass that added it if they suffice."""
    lazy = lazy_source(plan, name)
    if lazy is not None and lazy.delta is delta and lazy.piece.tensor == name and name in sums:
        return math.sqrt(sums[name]["delta2"]) / abs(lazy.piece.scale)
    return delta.norm(name)


def _retention(sums: dict[str, float]) -> dict[str, float]:
    """Norms of weights and delta, and how much of the delta reached the output: cosine, energy and unchanged.

    cosine is that of delta and reached; energy = 1 - |reached - delta|^2 / |delta|^2; unchanged is the share of
    non-zero delta entries that did not change the weight. They are 1, 1 and 0 when nothing is lost.
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


def read_receipt(folder: Path) -> dict[str, Any]:
    """Read what `graft` recorded in a folder; reads no weights.

    Returns `{"format": 1, "path", "digest", "instruct", "deltas", "scope", "dtype", "merge", "scale_for", "waivers",
    "regrafted_from", "onto_base", "classes", "retention", "tensors": [...], "untouched": {reason: [names]},
    "left_out": [names], "travel", "tokens": {name: {...}}, "ignored": {reason: {side: [names]}},
    "trained": {digest of a delta: {...}}}`.

    `retention` (null at scale 0) and every entry of `tensors` have `weight_norm`, `delta_norm`, `relative` (their
    ratio; null for a zero weight) and, for the delta after the cast, `cosine`, `energy` and `unchanged`. Tensors that
    lost most energy come first, then those with the largest relative delta.

    `travel` (null if all of the delta is added, or every scale is 0) has `energy`, the share of the deltas' squared
    norms that is added, and `stays`, the shares that are not, by the last word of the tensors' names. `ignored` has the
    tensors that only one side has, by the reason why that is no error: the class does not load it, or a person waived
    it by name.

    `tokens` has the tensors matched by token: `matched` and `moved` count rows; `instruct_only`, `base_only` and
    `padding` have `rows` and their `ids` as strings like `7` or `7-12`. Rows of padding and of tokens that only the
    Instruct has do not change. `regrafted_from` is null or the digest of the recipe that this one was regrafted from;
    the verdict on that recipe does not apply to this one. `trained` has the deltas of other trainers: `name`, `facts`,
    `not_known` and `unreadable`, as their files tell.

    Raises CheckpointError when the folder was not made by `graft`, or its record is damaged or of another format.
    """
    if missing := [name for name in (RECIPE, RECEIPT) if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder}: has no {missing[0]}; pass a folder made by `graft`")
    recipe, receipt = (read_json_object(folder / name, finite=True) for name in (RECIPE, RECEIPT))
    check_record(recipe, Recipe, folder / RECIPE, "graft again")
    check_record(receipt, Receipt, folder / RECEIPT, "graft again")
    tensors = [{"name": name, **_norms(kept)} for name, kept in receipt["grafted"].items()]
    tensors.sort(key=lambda kept: (kept["energy"], -(kept["relative"] or 0.0), kept["name"]))
    untouched: dict[str, list[str]] = {}
    for name, reason in sorted(receipt["untouched"].items()):
        untouched.setdefault(reason, []).append(name)
    return {
        "format": 1,
        "path": str(folder),
        **{key: recipe[key] for key in _OF_RECIPE if key in recipe},
        "regrafted_from": recipe.get("regrafted_from"),
        **{key: receipt[key] for key in ("onto_base", "classes", "left_out", "tokens")},
        "travel": receipt.get("travel"),
        "ignored": receipt.get("ignored", {}),
        "trained": receipt.get("trained", {}),
        "retention": _norms(receipt["retention"]) if receipt["retention"] else None,
        "tensors": tensors,
        "untouched": untouched,
    }


def _norms(kept: dict[str, float]) -> dict[str, float | None]:
    numbers = {key: float(kept[key]) for key in ("weight_norm", "delta_norm", "cosine", "energy", "unchanged")}
    relative = numbers["delta_norm"] / numbers["weight_norm"] if numbers["weight_norm"] else None
    return {**numbers, "relative": relative}
