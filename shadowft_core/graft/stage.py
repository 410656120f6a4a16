"""The stage: takes scale and scope from params.yaml or the sweep where the command line gives none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shadowft_core.delta import DeltaSource
from shadowft_core.errors import GraftError
from shadowft_core.files import read_json_object
from shadowft_core.graft.options import Options, Scope
from shadowft_core.graft.writer import graft
from shadowft_core.params import Graft


def graft_stage(
    instruct: Path,
    deltas: Sequence[tuple[Path | DeltaSource, float | None]],
    out: Path,
    params: Graft,
    options: Options,
    sweep: Path | None = None,
    scale: float | None = None,
    scope: Sequence[str] = (),
) -> dict[str, Any]:
    """Graft with `options`, and return the recipe.

    A delta without a scale gets `scale`, else the number in params, else the scale of the sweep file. The scope is
    `scope`, else that of the sweep file, else that of `options`. The dtype is that of params.
    Raises GraftError when no scale is given anywhere, and what `graft` raises.
    """
    swept = read_json_object(sweep) if sweep is not None else {}
    chosen: Any = swept.get("scale")
    if params.scale != "sweep":
        chosen = params.scale
    if scale is not None:
        chosen = scale
    if any(own is None for _, own in deltas):
        if not isinstance(chosen, int | float) or isinstance(chosen, bool):
            where = f"{sweep} has {chosen!r}" if sweep else "graft.scale is `sweep` and no sweep file is given"
            raise GraftError(f"no scale: {where}; pass --sweep FILE or --scale NUMBER, or set it in params.yaml")
        if len(deltas) > 1 and scale is None:
            raise GraftError(
                f"no scale for one of {len(deltas)} deltas: params and sweep choose for a single delta; pass "
                "--delta DIR@SCALE"
            )
    scaled = [(delta, float(chosen) if own is None else own) for delta, own in deltas]
    found = _parse_scope(scope) if scope else swept.get("scope", options.scope)
    return graft(instruct, scaled, out, replace(options, scope=found, dtype=params.dtype))


def parse_delta(text: str) -> tuple[Path, float | None]:
    """Parse `DIR` or `DIR@SCALE`. If a folder has the whole text as its name, that folder is meant.

    Raises GraftError when the text has both meanings.
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
        raise GraftError(f"--scope {mixed[0]} cannot be combined, found {len(words)}; pass it alone, or patterns")
    return list(words)
