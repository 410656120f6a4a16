"""All options of a graft: scope, dtype, merge rule, scales by pattern, waivers. A recipe records them."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shadowft_core.errors import GraftError
from shadowft_core.files import read_record
from shadowft_core.files.record import check_record
from shadowft_core.grafting.recipe import DeltasFields, OptionsFields, Swept

if TYPE_CHECKING:
    from shadowft_core.params import Graft

Scope = str | Sequence[str]
Delta = TypeVar("Delta")  # a folder or an open source
RULES = ("sum", "ties", "dare")
ONTO_BASE, UNRELATED = "onto-base", "unrelated"
WAIVERS = (ONTO_BASE, UNRELATED)


@dataclass(frozen=True)
class Merge:
    """The rule that merges scaled deltas.

    sum: add them in the given order. ties: keep the `density` share of largest magnitude of each tensor of a delta,
    elect a sign per entry, and average the values that have it (Yadav et al. 2023, arXiv 2306.01708). dare: keep each
    entry with probability `density`, drawn by `seed`, divide it by `density`, and add (Yu et al. 2024, arXiv
    2311.03099, p = 1 - density). Raises GraftError unless the rule has exactly the parameters it needs.
    """

    rule: str = "sum"
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise GraftError(f"merge rule {self.rule!r}; expected one of {', '.join(RULES)}")
        if self.rule == "sum" and self.density is not None:
            raise GraftError(f"merge rule sum takes no density, found {self.density:g}; remove it")
        if self.rule != "sum" and not (self.density is not None and 0 < self.density <= 1):
            raise GraftError(f"merge rule {self.rule} with density {self.density}; expected a share above 0, at most 1")
        if (self.rule == "dare") != (self.seed is not None) or (self.seed or 0) < 0:
            raise GraftError(
                f"merge rule {self.rule} with seed {self.seed}; dare needs a seed of 0 or above, other rules take none"
            )

    def recorded(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Options:
    """The settings of a graft besides its models and the scale of each delta.

    Raises GraftError for an unknown waiver or a scale that is not finite.
    """

    scope: Scope = "all"
    """`all`, `linear` or glob patterns over the delta's tensor names: the tensors to apply"""
    dtype: str = "instruct"
    """of the result: `instruct` (each tensor keeps its own), `float32`, `bfloat16` or `float16`"""
    merge: Merge = Merge()
    scale_for: Sequence[tuple[str, float]] = ()
    """(glob pattern over the delta's tensor names, scale): overrides every delta's own scale; the last match wins"""
    waivers: Collection[str] = ()
    ignore: Sequence[str] = ()
    """glob patterns of tensors that only one side may have, in addition to those of the deltas"""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.waivers) - set(WAIVERS)):
            raise GraftError(f"waiver {unknown[0]!r}; expected one of {', '.join(WAIVERS)}")
        for pattern, scale in self.scale_for:
            if not math.isfinite(scale):
                raise GraftError(f"scale {scale} for {pattern!r}; expected a finite number")

    def recorded(self) -> dict[str, Any]:
        """The recipe's fields; `options_of` reads them back."""
        return {
            "scope": self.scope if isinstance(self.scope, str) else list(self.scope),
            "dtype": self.dtype,
            "merge": self.merge.recorded(),
            "scale_for": [[pattern, scale] for pattern, scale in self.scale_for],
            "waivers": sorted(set(self.waivers)),
            **({"ignore": list(self.ignore)} if self.ignore else {}),
        }


def options_of(recipe: dict[str, Any]) -> Options:
    """The options recorded in a recipe. Raises GraftError when they are damaged or unknown to this version."""
    found = check_record(recipe, OptionsFields, "the recipe's options", "use an intact recipe", error=GraftError)
    return Options(
        scope=found.scope,
        dtype=found.dtype,
        merge=Merge(**vars(found.merge)),
        scale_for=tuple(found.scale_for),
        waivers=tuple(found.waivers),
        ignore=tuple(found.ignore),
    )


def deltas_of(recipe: dict[str, Any], where: Path) -> list[tuple[str, float]]:
    """(digest, scale) of every delta that a recipe adds; `where` is the file that an error names.

    Raises GraftError when an entry is damaged, or is a difference of two checkpoints that was not stored.
    """
    remedy = "pass the recipe.json of a grafted folder"
    found = check_record(recipe, DeltasFields, f"{where}: not a recipe", remedy, error=GraftError).deltas
    for entry in found:
        if entry.digest is None:
            raise GraftError(
                f"{where}: adds {entry.tuned} - {entry.base} without a stored delta, so the model cannot be rebuilt; "
                "run extract and publish, and graft that delta"
            )
    return [(str(entry.digest), entry.scale) for entry in found]


def multiplied(scale: float, factors: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """`Options.scale_for` of a delta at `scale`, where (glob pattern, factor) multiply it for the matching tensors."""
    return tuple((pattern, scale * factor) for pattern, factor in factors)


def chosen(
    deltas: Sequence[tuple[Delta, float | None]],
    options: Options,
    params: "Graft",
    sweep: Path | None = None,
    scale: float | None = None,
    scope: Sequence[str] = (),
) -> tuple[list[tuple[Delta, float]], Options]:
    """Fill in the scales and options that the command line leaves open.

    A delta without a scale gets `scale`, else the number in params, else the scale of the sweep file. The scope is
    `scope`, else that of the sweep file, else that of `options`. The dtype is that of params. The factors of the sweep
    file multiply the delta's scale, wherever it is from; `options.scale_for` precedes them.
    Raises GraftError when a delta has no scale anywhere, or several deltas would share one from params or a sweep, or
    the factors of a sweep.
    """
    swept = (
        Swept(format=1) if sweep is None else read_record(sweep, Swept, "run `shadowft sweep` again", error=GraftError)
    )
    found: float | None = swept.scale
    if params.scale != "sweep":
        found = params.scale
    if scale is not None:
        found = scale
    if any(own is None for _, own in deltas):
        if found is None:
            where = f"{sweep} has none" if sweep else "graft.scale is `sweep` and no sweep file is given"
            raise GraftError(f"no scale: {where}; pass --sweep FILE or --scale NUMBER, or set it in params.yaml")
        if len(deltas) > 1 and scale is None:
            raise GraftError(
                f"no scale for one of {len(deltas)} deltas: params and sweep set the scale of a single delta; pass "
                "--delta DIR@SCALE"
            )
    scaled = [(delta, float(found) if own is None else own) for delta, own in deltas]  # type: ignore[arg-type]
    factors = swept.factors
    if factors and len(deltas) > 1:
        raise GraftError(
            f"{sweep}: has factors for the tensors of one delta, found {len(deltas)} deltas; pass --scale-for, no sweep"
        )
    return scaled, replace(
        options,
        scope=_parse_scope(scope) if scope else options.scope if swept.scope is None else swept.scope,
        dtype=params.dtype,
        scale_for=(*(multiplied(scaled[0][1], factors) if factors else ()), *options.scale_for),
    )


def parse_delta(text: str) -> tuple[Path, float | None]:
    """Parse `DIR` or `DIR@SCALE`. If a folder has the whole text as its name, the text means that folder.

    Raises GraftError when both readings name existing folders.
    """
    folder, at, number = text.rpartition("@")
    try:
        scale = float(number) if at and folder else None
    except ValueError:
        scale = None
    if scale is None or not Path(text).exists():
        return (Path(text), None) if scale is None else (Path(folder), scale)
    if Path(folder).exists():
        raise GraftError(f"{text}: {folder} and {text} both exist; write {text}@SCALE for the latter, or rename it")
    return Path(text), None


def parse_scale_for(text: str) -> tuple[str, float]:
    """Parse `PATTERN=SCALE`. Raises GraftError for anything else."""
    pattern, _, number = text.rpartition("=")
    try:
        if pattern:
            return pattern, float(number)
    except ValueError:
        pass
    raise GraftError(f"--scale-for {text}: expected PATTERN=SCALE, for instance '*mlp*=0.5'")


def _parse_scope(words: Sequence[str]) -> Scope:
    if len(words) == 1 and words[0] in ("all", "linear"):
        return words[0]
    if mixed := [word for word in words if word in ("all", "linear")]:
        raise GraftError(
            f"--scope {mixed[0]} cannot be combined, found {len(words)} scopes; pass it alone, or only patterns"
        )
    return list(words)
