"""Reads score folders, and checks that the arms answered the same questions."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.verdict.scorefiles import Line, Role, read_head, read_lines, read_seeds

CHAMPIONS = ("champion", "best_champion")
"""arms of earlier versions: the one in service and, if it is another, the one that was best on these items"""


@dataclass(frozen=True)
class Arm:
    """The scores of one model. A higher `scores[task][item]` is better; `roles` and `metrics` are keyed by task.

    `clusters[task][item]` names what the item shares with others, of any task; an item without one is its own cluster.
    `about[task]` names what its items are about, shared or not.
    `groups[task]` is the guard that the task is a part of; a task without one is a guard of its own.
    `further` are the same arm of further training seeds, on the same items; this one is of the first, which ships.
    """

    name: str
    scale: float | None
    model_digest: str
    template_digest: str | None
    roles: dict[str, Role]
    metrics: dict[str, str]
    scores: dict[str, dict[str, float]]
    generation: dict[str, Any] | None = None
    clusters: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    about: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    further: tuple["Arm", ...] = ()

    def tasks(self, role: Role) -> list[str]:
        """The task names of one role, sorted."""
        return sorted(task for task, its_role in self.roles.items() if its_role == role)

    def guards(self) -> dict[str, list[str]]:
        """The tasks of each guard, by its name, sorted."""
        found: dict[str, list[str]] = {}
        for task in self.tasks("guard"):
            found.setdefault(self.groups.get(task, task), []).append(task)
        return dict(sorted(found.items()))

    @property
    def runs(self) -> tuple["Arm", ...]:
        """The arm of every seed, the first seed first."""
        return (self, *self.further)


def arm_names(routes: Iterable[str], champions: Iterable[str] = ()) -> dict[str, str]:
    """The group folder of each arm, in the order of the report: the Instruct, champions, direct, further routes, and
    shadow last."""
    arms = {"instruct": "instruct"} | dict.fromkeys(champions, "champion")
    for route in sorted(routes, key=lambda name: (name == "shadow", name != "direct", name)):
        arms |= {route: route, f"{route}_scaled": route}
    return arms


def routes_of(arms: Iterable[str]) -> set[str]:
    """The routes that these arms belong to."""
    return {name.removesuffix("_scaled") for name in arms} - {"instruct", *CHAMPIONS}


def groups_of(arms: Iterable[str]) -> dict[str, str]:
    """The group folder of each of these arms, in the order of the report."""
    present = set(arms)
    found = arm_names(routes_of(present), filter(present.__contains__, CHAMPIONS))
    return {name: group for name, group in found.items() if name in present}


def read_arms(scores: Path, routes: Sequence[str], champions: Sequence[str] = ()) -> dict[str, Arm]:
    """Read the Instruct, the champions and the arms of the routes, and check that they are comparable: same items,
    roles, metrics, template and settings of generation.

    Copies of an item, which older folders list as ITEM, ITEM#1 and so on, count once, with their mean score, because
    they are not separate observations.

    Raises EvaluationError for a missing, damaged or incomplete score folder, or arms that were measured differently.
    """
    arms = {name: read_arm(scores / group / name, name) for name, group in arm_names(routes, champions).items()}
    reference = arms["instruct"]
    for arm in arms.values():
        check_same_questions(reference, arm)
    return arms


def with_further(arms: Mapping[str, Arm], seeds: Path) -> dict[str, Arm]:
    """The arms with those of further training seeds, from `seeds/ROUTE/{seeds.json,SEED/ARM}`.

    Raises EvaluationError if one is missing or damaged, or was not scored on the same items, with the same settings and
    at the scale of the first seed.
    """
    found = {}
    for name, arm in arms.items():
        if not routes_of([name]):
            found[name] = arm
            continue
        place = seeds / name.removesuffix("_scaled")
        told = read_seeds(place / "seeds.json")
        runs = []
        for seed in (one.seed for one in told.further):
            folder = place / str(seed) / name
            run = read_arm(folder, name)
            check_same_questions(arm, run)
            if run.scale != arm.scale:
                raise EvaluationError(
                    f"{folder / 'scores.json'}: scale is {run.scale}, that of the first seed is {arm.scale}; run "
                    "`shadowft seeds` again"
                )
            runs.append(dataclasses.replace(run, seed=seed))
        found[name] = dataclasses.replace(arm, seed=told.first, further=tuple(runs))
    return found


def read_arm(folder: Path, name: str | None = None, take: Callable[[Line], object] | None = None) -> Arm:
    """Read one score folder; `take` is called with each line of items.jsonl.

    Raises EvaluationError if it is missing, damaged, incomplete, or not of the arm `name`.
    """
    head = read_head(folder)
    if name is not None and head.arm != name:
        raise EvaluationError(f"{folder / 'scores.json'}: arm is {head.arm!r}, expected {name!r}; run evaluate again")
    found: dict[str, dict[str, float]] = {task: {} for task in head.tasks}
    copies: dict[str, dict[str, list[float]]] = {task: {} for task in head.tasks}
    clusters: dict[str, dict[str, str]] = {task: {} for task in head.tasks}
    about: dict[str, set[str]] = {task: set() for task in head.tasks}
    path = folder / "items.jsonl"
    for number, line in read_lines(path):
        if line.task not in found:
            raise EvaluationError(f"{path}:{number}: task {line.task!r} is not in scores.json; run evaluate again")
        scores, digest = found[line.task], sys.intern(line.item.partition("#")[0])  # all arms have the same items
        if digest in scores:
            copies[line.task].setdefault(digest, [scores[digest]]).append(line.score)
        else:
            scores[digest] = line.score
        if line.cluster:
            clusters[line.task][digest] = sys.intern(line.cluster)
        if subject := line.about or line.cluster:
            about[line.task].add(sys.intern(subject))
        if take is not None:
            take(line)
    for task, summary in head.tasks.items():
        items = [*found[task].values(), *(score for several in copies[task].values() for score in several[1:])]
        mean = math.fsum(items) / len(items) if items else math.nan
        if len(items) != summary.n or not math.isclose(mean, summary.mean, rel_tol=1e-6, abs_tol=1e-6):
            raise EvaluationError(
                f"{path}: task {task!r} has {len(items)} items with mean {mean:.6g}, "
                f"scores.json has {summary.n} with mean {summary.mean:.6g}; run evaluate again"
            )
        found[task] |= {digest: math.fsum(several) / len(several) for digest, several in copies[task].items()}
    return Arm(
        name=head.arm,
        scale=head.scale,
        model_digest=head.model_digest,
        template_digest=head.template_digest,
        generation=head.generation,
        roles={task: summary.role for task, summary in head.tasks.items()},
        metrics={task: summary.metric for task, summary in head.tasks.items()},
        scores=found,
        clusters=clusters,
        about=about,
        groups={task: summary.group for task, summary in head.tasks.items() if summary.group},
    )


def check_same_questions(reference: Arm, arm: Arm) -> None:
    """Raises EvaluationError unless both arms have the same tasks, roles, metrics, template and items."""
    pair = f"arm {arm.name!r} and arm {reference.name!r}"
    remedy = "evaluate both again with the same params"
    for field in ("template_digest", "generation", "roles", "metrics"):
        value, expected = getattr(arm, field), getattr(reference, field)
        if field == "generation" and None in (value, expected):
            continue
        if value != expected:
            if field == "generation":
                value, expected = json.dumps(value), json.dumps(expected)
            raise EvaluationError(f"{pair} were measured differently: {field} is {value} and {expected}; {remedy}")
    for task, items in arm.scores.items():
        differing = sorted(items.keys() ^ reference.scores[task].keys())
        if differing:
            some = ", ".join(differing[:3])
            raise EvaluationError(
                f"{pair} did not answer the same items of task {task!r}: {len(differing)} differ, such as {some}, of "
                f"{len(items)} and {len(reference.scores[task])}; {remedy}"
            )
        mine, other = arm.clusters.get(task), reference.clusters.get(task)
        if mine and other and mine != other:
            raise EvaluationError(f"{pair} have different clusters in task {task!r}; {remedy}")
