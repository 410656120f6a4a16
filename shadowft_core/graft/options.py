"""How deltas become one sum: rule, scales by pattern, waivers. A recipe records it, so that it can be repeated."""

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
    kept with probability `density`, by `seed`, and divided by it (Yu et al. 2024, arXiv 2311.03099, p = 1 - density).
    Raises GraftError for a rule without the numbers it needs, or with others.
    """

    rule: str = "sum"
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise GraftError(f"merge rule {self.rule!r}; known are {', '.join(RULES)}")
        if self.rule == "sum" and self.density is not None:
            raise GraftError(f"merge rule sum takes all of a delta, density {self.density:g} is given; leave it out")
        if self.rule != "sum" and not (self.density is not None and 0 < self.density <= 1):
            raise GraftError(
                f"merge rule {self.rule} with density {self.density}; a share above 0, at most 1 is wanted"
            )
        if (self.rule == "dare") != (self.seed is not None) or (self.seed or 0) < 0:
            raise GraftError(f"merge rule {self.rule} with seed {self.seed}; dare wants a natural number, others none")

    def recorded(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Options:
    """All that shapes a graft besides its models and the scale of each delta."""

    scope: Scope = "all"
    dtype: str = "instruct"
    merge: Merge = Merge()
    scale_for: tuple[tuple[str, float], ...] = ()
    """(glob pattern over the delta's tensor names, scale): replaces every delta's own scale; the last match wins"""
    waivers: Collection[str] = ()
    ignore: Sequence[str] = ()
    """glob patterns of tensors that only one side may hold, besides those of the deltas"""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.waivers) - set(WAIVERS)):
            raise GraftError(f"waiver {unknown[0]!r}; known are {', '.join(WAIVERS)}")
        for pattern, scale in self.scale_for:
            if not math.isfinite(scale):
                raise GraftError(f"scale {scale} for {pattern!r}; a finite number is wanted")

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


def options_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """What to pass to `graft` besides models and deltas to repeat a recipe.

    Raises GraftError when the recipe's options are damaged or unknown here.
    """
    try:
        return {
            "scope": recipe["scope"],
            "dtype": recipe["dtype"],
            "merge": Merge(**recipe.get("merge", {})),
            "scale_for": tuple((str(pattern), float(scale)) for pattern, scale in recipe.get("scale_for", [])),
            "waivers": tuple(recipe.get("waivers", [])),
            "ignore": tuple(recipe.get("ignore", [])),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise GraftError(f"the recipe's options are damaged ({error!r:.200}); take an intact recipe") from None


def deltas_of(recipe: dict[str, Any], where: Path) -> list[tuple[str, float]]:
    """(digest, scale) of every delta that a recipe adds; `where` is the file that an error names.

    Raises GraftError when an entry is damaged, or is the difference of two checkpoints, of which no delta was kept.
    """
    try:
        for entry in recipe["deltas"]:
            if "digest" not in entry and "tuned" in entry:
                raise GraftError(
                    f"{where}: adds {entry['tuned']} - {entry['base']} in one pass and no delta was kept, so nobody "
                    "could rebuild it; run extract, publish, and graft from that delta"
                )
        return [(str(entry["digest"]), float(entry["scale"])) for entry in recipe["deltas"]]
    except (KeyError, TypeError, ValueError) as error:
        raise GraftError(f"{where}: no recipe ({error!r:.200}); pass the recipe.json of a grafted folder") from None
