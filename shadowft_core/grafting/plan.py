"""Decides what happens to each tensor of the Instruct. Makes every check that does not need the sums."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shadowft_core.delta import DeltaSource, open_delta
from shadowft_core.errors import GraftError, MisfitError, QuantisedError, ZeroDeltaError
from shadowft_core.grafting.match import Match
from shadowft_core.grafting.options import Options, Scope
from shadowft_core.grafting.similarity import require_related
from shadowft_core.weights import (
    FLOATS,
    Checkpoint,
    Ignored,
    Runs,
    note_unknown,
    open_checkpoint,
    require_equal,
    require_met,
)
from shadowft_core.weights.families.experts import fused_name

OUTPUTS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Piece:
    """A tensor of a delta, or rows of it, to be added to one tensor of the Instruct."""

    tensor: str
    scale: float
    runs: Runs | None
    """the rows, see weights.Runs; None: all rows, one to one"""


@dataclass(frozen=True)
class Source:
    """What one delta adds to one tensor of the Instruct: one whole tensor, or pieces that do not overlap."""

    delta: DeltaSource
    pieces: list[Piece]


@dataclass(frozen=True)
class Plan:
    """What happens to each tensor of the Instruct. All checks that need no sums have passed."""

    instruct: Checkpoint
    deltas: list[tuple[DeltaSource, float]]
    options: Options
    sources: dict[str, list[Source]]
    """per grafted tensor, in the order of the deltas"""
    untouched: dict[str, str]
    """the reason for each tensor of the Instruct that nothing is added to"""
    left_out: list[str]
    """delta tensors excluded by the scope, or without a counterpart in the Instruct and ignored by pattern"""
    dtype: dict[str, str]
    """of each tensor of the result"""
    tokens: dict[str, dict[str, Any]]
    """the `weights.account` of each tensor that was matched by token"""
    unapplied: list[tuple[DeltaSource, str, float]]
    """tensors of deltas that are not added (left out or at scale 0), with the delta's scale"""
    ignored: Ignored
    """tensors that only one side has, by reason and side"""

    @property
    def recast(self) -> bool:
        return any(dtype != self.instruct.info(name).dtype for name, dtype in self.dtype.items())


def make_plan(instruct: Path, deltas: Sequence[tuple[Path | DeltaSource, float]], options: Options) -> Plan:
    """Open the model and the deltas, and decide. Raises what `graft` raises, except errors that only the sums show."""
    model = open_checkpoint(instruct)
    if model.config.get("quantization_config"):
        raise QuantisedError(f"{instruct}: config.json has a quantization_config; graft on the unquantised Instruct")
    require_equal(model)
    note_unknown(model)
    if options.dtype != "instruct" and options.dtype not in OUTPUTS:
        raise GraftError(f"dtype {options.dtype!r}; expected one of instruct, {', '.join(OUTPUTS)}")
    opened = _opened(deltas, options)
    names = sorted({name for delta, _ in opened for name in delta.names})
    shapes = {name: delta.shape(name) for delta, _ in opened for name in delta.names}
    in_scope = _in_scope(shapes, options.scope, model)
    overrides = _overrides(names, options.scale_for)
    found: dict[str, list[Source]] = {}
    reasons: dict[str, str] = {}
    tokens: dict[str, dict[str, Any]] = {}
    unapplied: list[tuple[DeltaSource, str, float]] = []
    ignored: Ignored = {}
    placeless: set[str] = set()
    for delta, own in opened:
        match = Match(model, delta, options.ignore)
        match.require_numbers()
        match.require_one_sided(options.ignore)
        lost = {name for name in delta.names if match.is_ignored(name)}
        if not in_scope & set(delta.names) - lost:
            raise ZeroDeltaError(
                f"{delta.path}: the scope matches none of the delta's {len(delta.names)} tensors; widen the scope"
            )
        scales = {name: overrides.get(name, own) for name in delta.names}
        match.require_same_experts()
        targets = {name: match.targets(name) for name in delta.names if name in in_scope - lost}
        match.require_same_tensors()
        require_related(match, options)
        unapplied += [(delta, name, own) for name in delta.names if name not in targets or not scales[name]]
        placeless |= lost
        _join(ignored, match.ignored)
        _join(ignored, delta.ignored)
        _require_heads_alike(match, targets, scales)
        given: dict[str, list[Piece]] = {}
        for name, places in targets.items():
            for target, runs in places.items():
                if scales[name]:
                    given.setdefault(target, []).append(Piece(name, scales[name], runs))
                reasons[target] = "scale 0"
        for target, pieces in given.items():
            found.setdefault(target, []).append(Source(delta, pieces))
        tokens |= match.tokens
    carried = {pattern for delta, _ in opened if delta.is_stored for pattern in delta.ignore}
    require_met([p for p in options.ignore if p not in carried], ignored, f"the deltas and {instruct}")
    left_out = [name for name in names if name not in in_scope - placeless]
    kept = {fused_name(name) for name in left_out}
    output = OUTPUTS.get(options.dtype)
    return Plan(
        instruct=model,
        deltas=opened,
        options=options,
        sources=found,
        untouched={
            n: "out of scope" if fused_name(n) in kept else reasons.get(n, "no delta")
            for n in model.names
            if n not in found
        },
        left_out=left_out,
        dtype={n: output if output and model.info(n).dtype in FLOATS else model.info(n).dtype for n in model.names},
        tokens=tokens,
        unapplied=unapplied,
        ignored=ignored,
    )


def _opened(deltas: Sequence[tuple[Path | DeltaSource, float]], options: Options) -> list[tuple[DeltaSource, float]]:
    opened = [(open_delta(d) if isinstance(d, Path) else d, _finite(d, scale)) for d, scale in deltas]
    _require_distinct(opened)
    if options.merge.rule == "dare" and not all(delta.is_stored for delta, _ in opened):
        raise GraftError("merge rule dare needs a stored delta's digest; extract the difference and pass its folder")
    if options.merge.rule == "ties" and len(opened) < 2:
        raise GraftError(f"merge rule ties needs two deltas or more, found {len(opened)}; pass several or use sum")
    return opened


def _finite(delta: Path | DeltaSource, scale: float) -> float:
    if not math.isfinite(scale):
        path = delta if isinstance(delta, Path) else delta.path
        raise GraftError(f"{path}: scale {scale}; expected a finite number")
    return float(scale)


def _require_distinct(deltas: Sequence[tuple[DeltaSource, float]]) -> None:
    seen: dict[str, DeltaSource] = {}
    for delta, _ in deltas:
        if delta.digest in seen:
            raise GraftError(
                f"{delta.path}: the same delta as {seen[delta.digest].path}; pass it once, with the sum of the scales"
            )
        seen[delta.digest] = delta


def _matching(names: list[str], pattern: str, what: str) -> set[str]:
    matched = {name for name in names if fnmatchcase(name, pattern)}
    if not matched:
        raise GraftError(
            f"{what} pattern {pattern!r} matches none of the delta's {len(names)} tensors; "
            "a pattern is a glob of whole names, such as '*.mlp.*'; correct it"
        )
    return matched


def _overrides(names: list[str], scale_for: Sequence[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pattern, scale in scale_for:
        found |= dict.fromkeys(_matching(names, pattern, "scale"), float(scale))
    return found


def _in_scope(shapes: Mapping[str, tuple[int, ...]], scope: Scope, model: Checkpoint) -> set[str]:
    """Delta tensors to apply. Raises GraftError when the scope, or one of its patterns, matches none."""
    if scope == "all":
        return set(shapes)
    if scope == "linear":
        found = {name for name, shape in shapes.items() if model.family.is_linear(name, shape)}
        if not found:
            raise GraftError(f"scope `linear` matches none of the {len(shapes)} delta tensors; pass patterns or `all`")
        return found
    patterns = [scope] if isinstance(scope, str) else scope
    return set().union(*(_matching(sorted(shapes), pattern, "scope") for pattern in patterns))


def _join(ignored: Ignored, more: Ignored) -> None:
    for reason, sides in more.items():
        for side, names in sides.items():
            held = ignored.setdefault(reason, {}).setdefault(side, [])
            held += [name for name in names if name not in set(held)]


def _require_heads_alike(match: Match, targets: dict[str, dict[str, Any]], scales: dict[str, float]) -> None:
    """Raise MisfitError unless a head that the Instruct ties is added together with its embedding, at one scale."""
    carried = {match.here[name]: name for name in match.delta.names if targets.get(name) != {}}
    for head in (name for name, places in targets.items() if not places):
        embedding = carried.get(match.model.home(match.here[head] or head))
        if embedding not in targets or scales[head] != scales[embedding]:
            raise MisfitError(
                f"{match.delta.path}: {match.model.path} ties {head} to {embedding}, so both need the same scale; "
                "widen the scope or exclude both"
            )
