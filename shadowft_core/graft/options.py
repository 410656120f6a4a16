"""All options of a graft: scope, dtype, merge rule, scales by pattern, waivers. A recipe records them."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import GraftError

Scope = str | Sequence[str]
RULES = ("sum", "ties", "dare")
ONTO_BASE, UNRELATED = "onto-base", "unrelated"
WAIVERS = (ONTO_BASE, UNRELATED)


@dataclass(frozen=True)
class Merge:
    """The rule by which scaled deltas become one.

    sum: added in the given order. ties: of every delta's tensor the `density` share of largest magnitude, then a sign
    per entry, then the mean of those that agree with it (Yadav et al. 2023, arXiv 2306.01708). dare: every entry is
    kept with probability `density`, drawn by `seed`, and divided by `density` (Yu et al. 2024, arXiv 2311.03099,
    p = 1 - density).
    Raises GraftError unless a rule has exactly the numbers it needs.
    """

    rule: str = "sum"
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise GraftError(f"merge rule {self.rule!r}; known are {', '.join(RULES)}")
        if self.rule == "sum" and self.density is not None:
            raise GraftError(f"merge rule sum takes no density, found {self.density:g}; leave it out")
        if self.rule != "sum" and not (self.density is not None and 0 < self.density <= 1):
            raise GraftError(f"merge rule {self.rule} with density {self.density}; expected a share above 0, at most 1")
        if (self.rule == "dare") != (self.seed is not None) or (self.seed or 0) < 0:
            raise GraftError(
                f"merge rule {self.rule} with seed {self.seed}; dare needs one, 0 or above, the other rules take none"
            )

    def recorded(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Options:
    """What determines a graft besides its models and the scale of each delta. Raises GraftError for unknown waivers."""

    scope: Scope = "all"
    """`all`, `linear` or glob patterns over the delta's tensor names: the tensors to apply"""
    dtype: str = "instruct"
    """of the result: `instruct` (that of each tensor), `float32`, `bfloat16` or `float16`"""
    merge: Merge = Merge()
    scale_for: Sequence[tuple[str, float]] = ()
    """(glob pattern over the delta's tensor names, scale): replaces every delta's own scale; the last match wins"""
    waivers: Collection[str] = ()
    ignore: Sequence[str] = ()
    """glob patterns of tensors that only one side may hold, in addition to those of the deltas"""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.waivers) - set(WAIVERS)):
            raise GraftError(f"waiver {unknown[0]!r}; known are {', '.join(WAIVERS)}")
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
    """The options that repeat a recipe. Raises GraftError when they are damaged or unknown to this version."""
    try:
        return Options(
            scope=recipe["scope"],
            dtype=recipe["dtype"],
            merge=Merge(**recipe.get("merge", {})),
            scale_for=tuple((str(pattern), float(scale)) for pattern, scale in recipe.get("scale_for", [])),
            waivers=tuple(recipe.get("waivers", [])),
            ignore=tuple(recipe.get("ignore", [])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise GraftError(f"the recipe's options are damaged ({error!r:.200}); take an intact recipe") from None


def deltas_of(recipe: dict[str, Any], where: Path) -> list[tuple[str, float]]:
    """(digest, scale) of every delta that a recipe adds; `where` is the file that an error names.

    Raises GraftError when an entry is damaged, or is a difference of two checkpoints that was not stored.
    """
    try:
        for entry in recipe["deltas"]:
            if "digest" not in entry and "tuned" in entry:
                raise GraftError(
                    f"{where}: adds {entry['tuned']} - {entry['base']} without a stored delta, so it cannot be "
                    "rebuilt; run extract and publish, and graft that delta"
                )
        return [(str(entry["digest"]), float(entry["scale"])) for entry in recipe["deltas"]]
    except (KeyError, TypeError, ValueError) as error:
        raise GraftError(f"{where}: no recipe ({error!r:.200}); pass the recipe.json of a grafted folder") from None
