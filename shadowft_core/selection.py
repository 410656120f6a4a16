"""The rule that chooses on dev items: a scale for each route (sweep), then one candidate among all routes (select)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from shadowft_core.errors import EvaluationError
from shadowft_core.files import read_json_object, write_json_atomically

EPSILON = 1e-9  # two means this close differ only by float rounding


def choose(
    curve: Sequence[Mapping[str, Any]], instruct: Mapping[str, Any], tolerance: float, tie: float
) -> tuple[float, str]:
    """Choose the scale to graft with; return it and the reason as a sentence.

    Considers the scales with a guard loss (Instruct minus grafted, mean over the guard tasks) of at most `tolerance`.
    Domain scores within `tie` of the highest count as equal to it; the smallest scale among them is chosen. If no scale
    is within the tolerance, the one with the smallest guard loss is chosen; of equal ones, the smallest.
    """

    def loss(at: Mapping[str, Any]) -> float:
        return 0.0 if at["guards"] is None else instruct["guards"] - at["guards"]

    points = sorted(curve, key=lambda at: at["scale"])
    kept = [at for at in points if loss(at) <= tolerance + EPSILON]
    before = f"the Instruct has {instruct['domain']:.4g}"
    if not kept:
        least = min(loss(at) for at in points)
        taken = next(at for at in points if loss(at) <= least + EPSILON)
        return taken["scale"], (
            f"No scale keeps the mean guard loss within {tolerance:g} on the dev items; scale {taken['scale']:g} costs "
            f"least, {loss(taken):.4g}, with a domain score of {taken['domain']:.4g} ({before})."
        )
    best = max(kept, key=lambda at: at["domain"])
    taken = next(at for at in kept if at["domain"] >= best["domain"] - tie - EPSILON)
    guard = (
        "there are no guard tasks"
        if instruct["guards"] is None
        else f"mean guard loss {loss(taken):.4g}, {len(kept)} of {len(points)} scales keep it within {tolerance:g}"
    )
    if taken["scale"] == best["scale"]:
        return taken["scale"], (
            f"Scale {taken['scale']:g} has the highest domain score on the dev items, {taken['domain']:.4g} "
            f"({before}); {guard}."
        )
    return taken["scale"], (
        f"Scale {taken['scale']:g} scores {taken['domain']:.4g} on the domain's dev items, within one item of the best "
        f"({best['domain']:.4g} at scale {best['scale']:g}), so the smaller scale is taken ({before}); {guard}."
    )


@dataclass(frozen=True)
class Candidate:
    """The arm that is judged on test items, ROUTE_scaled; `arm`, `route` and `scale` are None if nothing is."""

    arm: str | None
    route: str | None
    scale: float | None
    reason: str
    """a sentence"""


@dataclass(frozen=True)
class _Point:
    """One scale of one route on the dev items. `loss` is the mean guard loss against the Instruct, 0 without guards."""

    route: str
    scale: float
    domain: float
    guards: float | None
    loss: float
    kept: bool
    """whether `loss` is within the tolerance"""
    chosen: bool
    """whether this is the scale of the arm ROUTE_scaled"""

    @property
    def arm(self) -> str:
        return f"{self.route}_scaled"


class _At(BaseModel):
    """POINT of docs/architecture.md."""

    scale: FiniteFloat
    domain: FiniteFloat
    guards: FiniteFloat | None
    tasks: dict[str, Any] = {}


class _Sweep(BaseModel):
    """A sweep file. Files of older versions have neither `tie` nor `items`; then only equal scores tie."""

    format: Literal[1]
    route: str
    scale: FiniteFloat
    curve: list[_At] = Field(min_length=1)
    instruct: _At
    tie: FiniteFloat = Field(0.0, ge=0)
    items: str | None = None

    @model_validator(mode="after")
    def _guards_everywhere_or_nowhere(self) -> Self:
        if len({at.guards is None for at in (*self.curve, self.instruct)}) > 1:
            raise ValueError("some points have guards and others none")
        return self

    def questions(self) -> dict[str, Any]:
        """What must agree between sweeps: role, metric and number of items of each task."""
        fields = ("role", "metric", "n")
        return {name: [task.get(field) for field in fields] for name, task in self.instruct.tasks.items()}


class _Candidate(BaseModel):
    """A candidate.json, as far as its readers need it."""

    format: Literal[1]
    arm: str | None
    route: str | None
    scale: FiniteFloat | None
    reason: str

    @model_validator(mode="after")
    def _one_arm_or_none(self) -> Self:
        if self.arm != (self.route and f"{self.route}_scaled") or (self.arm is None) != (self.scale is None):
            raise ValueError(f"arm {self.arm}, route {self.route} and scale {self.scale} contradict each other")
        return self


def read_candidate(path: Path) -> Candidate:
    """Read a candidate.json. Raises EvaluationError if it is damaged or of another format, CheckpointError if it is
    missing."""
    found = _read(path, _Candidate, "select")
    return Candidate(found.arm, found.route, found.scale, found.reason)


def select(sweeps: Path, routes: Iterable[str], tolerance: float, out: Path, fixed: float | None = None) -> Candidate:
    """Choose one candidate among the arms ROUTE_scaled of all routes; write candidate.json (docs/architecture.md).

    `sweeps` has ROUTE.json of every route. The scale of an arm is the one that its sweep chose, or `fixed`, a number in
    graft.scale. Considered are the arms with a guard loss of at most `tolerance`, and the Instruct at scale 0. Domain
    scores within one item of the best count as equal to it; of these the smallest scale is taken, then the smallest
    guard loss, then the first name. So an arm that beats the Instruct by at most one item is no candidate.

    Raises EvaluationError if a sweep file is damaged, if `fixed` was not swept, or if the sweeps did not score the same
    dev items; CheckpointError if a file is missing.
    """
    found = {route: _read(sweeps / f"{route}.json", _Sweep, "sweep") for route in routes}
    first, reference = next(iter(found.items()))
    points = []
    for route, one in sorted(found.items()):
        path = sweeps / f"{route}.json"
        if one.route != route:
            raise EvaluationError(f"{path}: is of route {one.route!r}, expected {route!r}; run `shadowft sweep` again")
        if one.questions() != reference.questions() or len({one.items, reference.items} - {None}) > 1:
            raise EvaluationError(
                f"{path} and {sweeps / f'{first}.json'}: were not measured on the same dev items; run `shadowft sweep` "
                "again for both"
            )
        points += _points(path, one, tolerance, fixed)
    taken, reason = _taken(points, reference.instruct, tolerance, max(one.tie for one in found.values()), fixed)
    candidate = Candidate(None, None, None, reason)
    if taken is not None:
        candidate = Candidate(taken.arm, taken.route, taken.scale, reason)
    write_json_atomically(
        out,
        {
            "format": 1,
            **asdict(candidate),
            "instruct": reference.instruct.model_dump(),
            "points": [asdict(point) for point in points],
        },
    )
    return candidate


def _points(path: Path, found: _Sweep, tolerance: float, fixed: float | None) -> list[_Point]:
    """The points of a curve in order of scale, without scale 0, which is the Instruct."""
    own = found.scale if fixed is None else fixed
    scales = sorted({at.scale for at in found.curve} | {0.0})
    if own not in scales:
        source, remedy = "the chosen scale", "run `shadowft sweep` again"
        if fixed is not None:
            source, remedy = "graft.scale", "add it to sweep.scales, or set graft.scale to sweep"
        listed = ", ".join(f"{scale:g}" for scale in scales)
        raise EvaluationError(f"{path}: {source} is {own:g}, the curve has {listed}; {remedy}")
    points = []
    for at in sorted(found.curve, key=lambda at: at.scale):
        loss = 0.0 if at.guards is None or found.instruct.guards is None else found.instruct.guards - at.guards
        if at.scale:
            kept, chosen = loss <= tolerance + EPSILON, at.scale == own
            points.append(_Point(found.route, at.scale, at.domain, at.guards, loss, kept, chosen))
    return points


def _taken(
    points: Sequence[_Point], instruct: _At, tolerance: float, tie: float, fixed: float | None
) -> tuple[_Point | None, str]:
    """The point of the candidate, None if there is none, and the reason as a sentence.

    The best is that of all scales which an arm could have, so that the tie within a route, which `choose` has allowed
    already, does not count twice.
    """
    arms = [point for point in points if point.chosen]
    kept = [point for point in (points if fixed is None else arms) if point.kept]
    if not arms:
        return None, "Every route is grafted at scale 0, so no arm differs from the Instruct."
    if not kept:
        return None, f"No scale of any route keeps the mean guard loss within {tolerance:g} on the dev items."
    best = max(kept, key=lambda point: point.domain)
    if instruct.domain >= best.domain - tie - EPSILON:
        close = ", which is within one item" if best.domain > instruct.domain + EPSILON else ""
        return None, (
            f"Nothing beats the Instruct on the dev items: it has a domain score of {instruct.domain:.4g}, the best "
            f"that keeps the guards, {best.route} at scale {best.scale:g}, has {best.domain:.4g}{close}."
        )
    equal = [point for point in arms if point.kept and point.domain >= best.domain - tie - EPSILON]
    taken = min(equal, key=lambda point: (point.scale, round(point.loss, 9), point.route))
    before = f"the Instruct has {instruct.domain:.4g}"
    within = sum(point.kept for point in arms)
    guard = (
        "there are no guard tasks"
        if instruct.guards is None
        else f"mean guard loss {taken.loss:.4g}, {within} of {len(arms)} arms keep it within {tolerance:g}"
    )
    if taken.domain >= best.domain - EPSILON:
        return taken, (
            f"{taken.arm}, at scale {taken.scale:g}, has the highest domain score on the dev items, {taken.domain:.4g} "
            f"({before}); {guard}."
        )
    return taken, (
        f"{taken.arm}, at scale {taken.scale:g}, scores {taken.domain:.4g} on the domain's dev items, within one item "
        f"of the best ({best.domain:.4g}, {best.route} at scale {best.scale:g}), so the smaller scale is taken "
        f"({before}); {guard}."
    )


_File = TypeVar("_File", bound=BaseModel)


def _read(path: Path, form: type[_File], verb: str) -> _File:
    try:
        return form.model_validate(read_json_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise EvaluationError(
            f"{path}: {where}: {first['msg']} (found {first['input']!r:.60}); run `shadowft {verb}` again"
        ) from None
