"""Decides which weights of the Base are compared with which of the Instruct, for any layout of their files.

Weights are matched as in weights/match.py. Tensors that only one side has are refused, waived, or left out with a
warning.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shadowft_core.errors import PairError, ShapeMismatchError
from shadowft_core.pair.tokens import Vocabularies
from shadowft_core.weights import EXPERT_NAMES, Checkpoint, by_reason, remedy, require_met, require_one_sided
from shadowft_core.weights.families.experts import View, all_experts
from shadowft_core.weights.match import layout_of_experts, split_experts

_WHOLE = np.array([[0, 0, 1]])  # one run: all of a tensor


@dataclass(frozen=True)
class Span:
    """A run of corresponding weights: tensor and first flat element on each side, and the number of weights."""

    base: str
    base_start: int
    instruct: str
    instruct_start: int
    size: int


@dataclass(frozen=True)
class Match:
    """The weights measured under one name. The experts of a layer are one match, `experts.*`."""

    name: str
    spans: list[Span]
    matrix: bool

    @property
    def size(self) -> int:
        return sum(span.size for span in self.spans)


def match(
    base: Checkpoint,
    instruct: Checkpoint,
    vocabularies: Vocabularies,
    ignore: Sequence[str] = (),
    standing: Sequence[str] = (),
) -> tuple[list[Match], list[str], list[str]]:
    """All matches, reasons to refuse, and warnings. Reads no weights.

    `ignore` are patterns from the command line for tensors that only one side has; `standing` are those of params.yaml,
    which may match nothing, or a tensor of both sides. Raises InputError for a pattern of `ignore` that does either,
    PairError when the experts are stored in two layouts and no conversion is known.
    """
    ours, theirs = _views(base), _views(instruct)
    ours = {_renamed(name, base, instruct, theirs): view for name, view in ours.items()}
    warned = _drop_heads(base, ours, instruct, theirs)
    ways = layout_of_experts(ours), layout_of_experts(theirs)
    if None not in ways and ways[0] != ways[1]:
        ours, theirs = (_split(side, instruct) for side in (ours, theirs))
        warned.append(f"the experts are stored {ways[0]} in the Base, {ways[1]} in the Instruct; compared by expert")
    refused, ignored = _one_sided(base, ours, instruct, theirs, ignore, standing)
    warned += ignored
    spans: dict[str, list[Span]] = {}
    matrices: dict[str, bool] = {}
    misshapen: list[str] = []
    for name, their in theirs.items():
        our = ours.get(name)
        if our is None:
            continue
        token_rows = instruct.family.has_token_rows(name, their.shape)
        if our.shape == their.shape and (not token_rows or vocabularies.equal):
            runs, unit = _WHOLE, their.size
        elif token_rows and our.shape[1:] == their.shape[1:]:
            runs, unit = vocabularies.runs(our.shape[0], their.shape[0]), math.prod(their.shape[1:])
            if our.shape != their.shape:
                warned.append(
                    f"{name} has {our.shape[0]} rows in the Base, {their.shape[0]} in the Instruct; "
                    f"{their.shape[0] - runs[:, 2].sum()} rows have no counterpart and keep the Instruct's values"
                )
        else:
            misshapen.append(name)
            continue
        key = all_experts(name)
        matrices[key] = len(their.shape) > 1
        spans.setdefault(key, []).extend(
            Span(our.tensor, our.start + b * unit, their.tensor, their.start + i * unit, count * unit)
            for i, b, count in runs.tolist()
        )
    if misshapen:
        name = misshapen[0]
        shapes = f"{ours[name].shape} in the Base, {theirs[name].shape} in the Instruct"
        refused.append(f"{len(misshapen)} shapes differ, the first is {name}: {shapes}")
    return [Match(name, parts, matrices[name]) for name, parts in spans.items()], refused, warned


def head(model: Checkpoint) -> str | None:
    """The name of the head, if it is stored and not tied to the embedding."""
    return next((name for name in model.names if model.family.is_head(name) and model.home(name) == name), None)


def _views(model: Checkpoint) -> dict[str, View]:
    """Every tensor but tied copies, by name; one that represents tied tensors has the embedding's name."""
    own = [name for name in model.names if model.home(name) == name and not model.family.ignores(name)]
    names: dict[str, str] = {}
    for alias, home in model.ties.items():
        names[home] = min(filter(model.family.is_embedding, (alias, home, names.get(home, home))), default=home)
    return {names.get(name, name): View(name, 0, model.info(name).shape) for name in own}


def _renamed(name: str, base: Checkpoint, instruct: Checkpoint, theirs: Mapping[str, View]) -> str:
    """The Instruct's name for a tensor of the Base, if the two models were saved with different names."""
    here = None if name in theirs else instruct.named(name, base.family)
    return here if here is not None and here in theirs else name


def _drop_heads(base: Checkpoint, ours: dict[str, View], instruct: Checkpoint, theirs: dict[str, View]) -> list[str]:
    """Remove the head if one side has a separate head and the other ties it; return a warning about that."""
    heads = [next(filter(model.family.is_head, side), None) for model, side in ((base, ours), (instruct, theirs))]
    if (heads[0] is None) == (heads[1] is None):
        return []
    tied, own, without = ("Instruct", "Base", instruct) if heads[0] else ("Base", "Instruct", base)
    if not without.ties:
        return []  # its head is missing, which is refused by name
    for side, name in zip((ours, theirs), heads, strict=True):
        if name:
            del side[name]
    return [f"the head is tied to the embedding in the {tied}, not in the {own}; sigma excludes it"]


def _split(side: Mapping[str, View], instruct: Checkpoint) -> dict[str, View]:
    kind = str(instruct.config.get("model_type"))
    if kind not in EXPERT_NAMES:
        raise PairError(
            f"one side stores its experts one by one, the other fused, and for model_type {kind!r} no conversion is "
            "known; save both with the same version of transformers"
        )
    try:
        return split_experts(side, EXPERT_NAMES[kind])
    except ShapeMismatchError as error:
        raise PairError(str(error)) from None


def _one_sided(
    base: Checkpoint,
    ours: Mapping[str, View],
    instruct: Checkpoint,
    theirs: Mapping[str, View],
    ignore: Sequence[str],
    standing: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Reasons to refuse tensors that only one side has, and warnings about those that are waived."""
    both, where = ours.keys() & theirs.keys(), f"{base.path} and {instruct.path}"
    require_one_sided(ignore, both, where)
    only = {"Base": [n for n in ours if n not in both], "Instruct": [n for n in theirs if n not in both]}
    left, ignored = by_reason(only, [*ignore, *standing], lambda _: False, instruct.family.title)
    unloaded = {
        role: [n for n in m.names if m.family.ignores(n)] for role, m in (("Base", base), ("Instruct", instruct))
    }
    require_met(ignore, ignored | {"": unloaded}, where)
    warned = [
        f"{len(names)} tensors are only in the {side}, {reason}"
        for reason, sides in ignored.items()
        for side, names in sides.items()
    ]
    refused = []
    for side, names in left.items():
        waiver = remedy(left, both) if side == list(left)[-1] else ""
        refused.append(f"{len(names)} tensors are only in the {side}, the first is {names[0]}{waiver}")
    return refused, warned
