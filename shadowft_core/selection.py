"""The rule that chooses on dev items: a scale for each route (sweep), then one candidate among all routes (select)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from shadowft_core.errors import EvaluationError
from shadowft_core.files import Record, read_record, write_json_atomically
from shadowft_core.limits import COUNT, LABEL_CHARACTERS, RECORD_BYTES, SCORE, TASKS

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


def _no_sign(value: float) -> float:
    if math.copysign(1, value) < 0:
        raise ValueError("0 has no sign here")
    return value


_Scale = Annotated[float, Field(ge=0, le=10), AfterValidator(_no_sign)]
_Mean = Annotated[float, Field(ge=-SCORE, le=SCORE)]
_Name = Annotated[str, Field(min_length=1, max_length=LABEL_CHARACTERS)]


class _Task(Record):
    """An entry as in scores.json: what must agree between sweeps, and more, which select passes on."""

    model_config = ConfigDict(extra="allow")

    role: str | None = None
    metric: str | None = None
    n: int | None = Field(None, ge=0, le=COUNT)


class _At(Record):
    """POINT of docs/architecture.md."""

    scale: _Scale
    domain: _Mean
    guards: _Mean | None
    tasks: dict[_Name, _Task] = Field({}, max_length=TASKS)


class Sweep(Record):
    """A sweep file. Files of older versions have neither `tie` nor `items`; then only equal scores tie."""

    format: Literal[1]
    route: _Name
    scope: Literal["all", "linear"] | list[_Name] | None = None
    factors: list[tuple[_Name, float]] = Field([], max_length=TASKS)
    scale: _Scale
    curve: list[_At] = Field(min_length=1, max_length=1000)
    instruct: _At
    tie: float = Field(0.0, ge=0, le=SCORE)
    items: str | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _guards_everywhere_or_nowhere(self) -> Self:
        if len({at.guards is None for at in (*self.curve, self.instruct)}) > 1:
            raise ValueError("some points have guards and others none")
        if len({at.scale for at in self.curve}) < len(self.curve):
            raise ValueError("two points of the curve have one scale")
        return self

    def questions(self) -> dict[str, Any]:
        """What must agree between sweeps: role, metric and number of items of each task."""
        return {name: [task.role, task.metric, task.n] for name, task in self.instruct.tasks.items()}


class _Considered(Record):
    """One scale of one route, as candidate.json lists it."""

    route: _Name
    scale: _Scale
    domain: _Mean
    guards: _Mean | None
    loss: float
    kept: bool
    chosen: bool


class CandidateFile(Record):
    """A candidate.json. One that a person wrote may lack the points."""

    format: Literal[1]
    arm: _Name | None
    route: _Name | None
    scale: _Scale | None
    reason: str
    instruct: _At | None = None
    points: list[_Considered] = Field([], max_length=100_000)

    @model_validator(mode="after")
    def _one_arm_or_none(self) -> Self:
        if self.arm != (self.route and f"{self.route}_scaled") or (self.arm is None) != (self.scale is None):
            raise ValueError(f"arm {self.arm}, route {self.route} and scale {self.scale} contradict each other")
        return self


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file. Raises EvaluationError if it is missing, damaged or of another format."""
    return read_record(path, Sweep, "run `shadowft sweep` again", error=EvaluationError, largest=RECORD_BYTES)


def read_candidate(path: Path) -> Candidate:
    """Read a candidate.json. Raises EvaluationError if it is missing, damaged or of another format."""
    found = read_record(path, CandidateFile, "run `shadowft select` again", error=EvaluationError, largest=RECORD_BYTES)
    return Candidate(found.arm, found.route, found.scale, found.reason)


def select(sweeps: Path, routes: Iterable[str], tolerance: float, out: Path, fixed: float | None = None) -> Candidate:
    """Choose one candidate among the arms ROUTE_scaled of all routes; write candidate.json (docs/architecture.md).

    `sweeps` has ROUTE.json of every route. The scale of an arm is the one that its sweep chose, or `fixed`, a number in
    graft.scale. Considered are the arms with a guard loss of at most `tolerance`, and the Instruct at scale 0. Domain
    scores within one item of the best count as equal to it; of these the smallest scale is taken, then the smallest
    guard loss, then the first name. So an arm that beats the Instruct by at most one item is no candidate.

    Raises EvaluationError if a sweep file is missing or damaged, if `fixed` was not swept, or if the sweeps did not
    score the same dev items.
    """
    found = {route: read_sweep(sweeps / f"{route}.json") for route in routes}
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
            "instruct": reference.instruct.model_dump(exclude_unset=True),
            "points": [asdict(point) for point in points],
        },
    )
    return candidate


def _points(path: Path, found: Sweep, tolerance: float, fixed: float | None) -> list[_Point]:
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
