"""Score folders as data, and the check that the arms answered the same questions."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shadowft_core.errors import EvaluationError

Role = Literal["domain", "guard"]


class _Summary(BaseModel):
    role: Role
    metric: str
    n: int = Field(ge=1)
    mean: float = Field(allow_inf_nan=False)


class _ScoresFile(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    format: Literal[1]
    arm: str
    scale: float | None
    model_digest: str = Field(min_length=1)
    template_digest: str | None
    tasks: dict[str, _Summary] = Field(min_length=1)


class _Item(BaseModel):
    task: str
    item: str
    score: float = Field(allow_inf_nan=False)


@dataclass(frozen=True)
class Arm:
    """What one model scored. `scores[task][item]` is higher when better; roles and metrics are keyed by task."""

    name: str
    scale: float | None
    model_digest: str
    template_digest: str | None
    roles: dict[str, Role]
    metrics: dict[str, str]
    scores: dict[str, dict[str, float]]

    def tasks(self, role: Role) -> list[str]:
        """The task names of one role, sorted."""
        return sorted(task for task, found in self.roles.items() if found == role)


def arm_names(routes: Sequence[str]) -> dict[str, str]:
    """Arm -> group folder, in the order of the report."""
    arms = {"instruct": "instruct"}
    for route in sorted(routes):  # direct before shadow: the candidate comes last
        arms |= {route: route, f"{route}_scaled": route}
    return arms


def read_arms(scores: Path, routes: Sequence[str]) -> dict[str, Arm]:
    """Read every arm the routes call for and check that they are comparable.

    An item that stands twice in a task counts once, with its mean score: two copies are not two observations.

    Raises EvaluationError for a missing, damaged or incomplete score folder, or arms that were measured differently.
    """
    arms = {name: _read_arm(scores / group / name, name) for name, group in arm_names(routes).items()}
    reference = arms["instruct"]
    for arm in arms.values():
        _check_same_questions(reference, arm)
    return arms


def _read_arm(folder: Path, name: str) -> Arm:
    head = _scores_file(folder / "scores.json")
    if head.arm != name:
        raise EvaluationError(f"{folder / 'scores.json'}: arm is {head.arm!r}, the folder says {name!r}; run evaluate")
    collected: dict[str, dict[str, list[float]]] = {task: {} for task in head.tasks}
    path = folder / "items.jsonl"
    for number, line in enumerate(_text(path).rstrip("\n").split("\n"), start=1):
        try:
            item = _Item.model_validate_json(line)
        except ValidationError as error:
            raise EvaluationError(f"{path}:{number}: {_problem(error)}; run evaluate again") from None
        if item.task not in collected:
            raise EvaluationError(f"{path}:{number}: task {item.task!r} is not in scores.json; run evaluate again")
        collected[item.task].setdefault(item.item, []).append(item.score)
    for task, summary in head.tasks.items():
        found = [score for scores in collected[task].values() for score in scores]
        mean = math.fsum(found) / len(found) if found else math.nan
        if len(found) != summary.n or not math.isclose(mean, summary.mean, rel_tol=1e-6, abs_tol=1e-6):
            raise EvaluationError(
                f"{path}: task {task!r} has {len(found)} items with mean {mean:.6f}, "
                f"scores.json says {summary.n} with mean {summary.mean:.6f}; run evaluate again"
            )
    return Arm(
        name=name,
        scale=head.scale,
        model_digest=head.model_digest,
        template_digest=head.template_digest,
        roles={task: summary.role for task, summary in head.tasks.items()},
        metrics={task: summary.metric for task, summary in head.tasks.items()},
        scores={
            task: {item: math.fsum(found) / len(found) for item, found in by_item.items()}
            for task, by_item in collected.items()
        },
    )


def _check_same_questions(reference: Arm, arm: Arm) -> None:
    pair = f"arm {arm.name!r} and arm {reference.name!r}"
    remedy = "evaluate both again with the same params"
    for what in ("template_digest", "roles", "metrics"):
        left, right = getattr(arm, what), getattr(reference, what)
        if left != right:
            raise EvaluationError(f"{pair} were measured differently: {what} is {left} and {right}; {remedy}")
    for task, items in arm.scores.items():
        odd = sorted(items.keys() ^ reference.scores[task].keys())
        if odd:
            some = ", ".join(odd[:3])
            raise EvaluationError(
                f"{pair} did not answer the same items of task {task!r}: {len(odd)} differ, such as {some}; {remedy}"
            )


def _scores_file(path: Path) -> _ScoresFile:
    try:
        return _ScoresFile.model_validate_json(_text(path))
    except ValidationError as error:
        raise EvaluationError(f"{path}: {_problem(error)}; run evaluate again") from None


def recipe_digest(path: Path) -> str:
    """The digest the candidate must have, from its recipe.json."""
    try:
        digest = json.loads(_text(path))["digest"]
    except (ValueError, KeyError, TypeError):
        digest = None
    if not isinstance(digest, str):
        raise EvaluationError(f"{path}: no model digest in it; run graft again")
    return digest


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file; run the stage that writes it") from None
    except UnicodeDecodeError:
        raise EvaluationError(f"{path}: not UTF-8; run the stage that writes it again") from None


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "line"
    return f"{where}: {first['msg']} (found {first['input']!r:.60})"
