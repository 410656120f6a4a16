"""The stage: where scale and scope come from when the command line leaves them open."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shadowft_core.delta import Difference
from shadowft_core.errors import GraftError
from shadowft_core.files import read_json_object
from shadowft_core.graft.options import Scope
from shadowft_core.graft.writer import graft
from shadowft_core.params import Graft


def graft_stage(
    instruct: Path,
    deltas: Sequence[tuple[Path | Difference, float | None]],
    sweep: Path | None,
    scale: float | None,
    params: Graft,
    out: Path,
    scope: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Graft, and return the recipe. `options` are those of `graft`.

    A delta without a scale of its own gets `scale`, then the number in params, then the one of the sweep file, which
    also gives the scope when `scope` is empty. Raises GraftError when no scale is to be had, and as `graft` does.
    """
    found = read_json_object(sweep) if sweep is not None else {}
    chosen: Any = found.get("scale")
    if params.scale != "sweep":
        chosen = params.scale
    if scale is not None:
        chosen = scale
    if any(own is None for _, own in deltas):
        if not isinstance(chosen, int | float) or isinstance(chosen, bool):
            where = f"{sweep} says {chosen!r}" if sweep else "graft.scale is `sweep` and no sweep file is given"
            raise GraftError(f"no scale: {where}; pass --sweep FILE or --scale NUMBER, or set it in params.yaml")
        if len(deltas) > 1 and scale is None:
            raise GraftError(
                f"no scale for one of {len(deltas)} deltas: params and sweep choose for one delta alone; pass "
                "--delta DIR@SCALE"
            )
    scaled = [(path, float(chosen) if own is None else own) for path, own in deltas]
    return graft(instruct, scaled, out, _scope(scope) if scope else found.get("scope", "all"), params.dtype, **options)


def parse_delta(text: str) -> tuple[Path, float | None]:
    """`DIR` or `DIR@SCALE`. A folder that exists under the whole text is that folder.

    Raises GraftError when the text can be read both ways.
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
    """`PATTERN=SCALE`. Raises GraftError for anything else."""
    pattern, _, number = text.rpartition("=")
    try:
        if pattern:
            return pattern, float(number)
    except ValueError:
        pass
    raise GraftError(f"--scale-for {text}: PATTERN=SCALE is wanted, for instance '*mlp*=0.5'")


def _scope(words: Sequence[str]) -> Scope:
    if len(words) == 1 and words[0] in ("all", "linear"):
        return words[0]
    if mixed := [word for word in words if word in ("all", "linear")]:
        raise GraftError(f"--scope {mixed[0]} stands alone, {len(words)} are given; pass it or patterns")
    return list(words)
