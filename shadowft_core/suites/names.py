"""Names in params.yaml: each is a task, or stands for several tasks."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shadowft_core.errors import EvaluationError

SHOWN = 500  # characters of a list of names in an error
_OF_GROUPS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}


@dataclass(frozen=True)
class Leaf:
    """One task to score, and the name in params.yaml that brought it: its own, or that of a group."""

    task: str
    group: str
    by_size: bool = False
    """whether the mean of the group weights its tasks by their number of items"""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """keys that the group sets in the config of its task"""


def leaves_of(name: str, tasks: Iterable[str], groups: Mapping[str, Mapping[str, Any]]) -> list[Leaf] | None:
    """The tasks that a name stands for; None if it is neither a task nor a group.

    `weight_by_size` of the named group's `aggregate_metric_list` (true where the list leaves it out, as in the harness)
    applies to all tasks below it. Raises EvaluationError for a group that holds itself, an unknown member, or a task
    twice.
    """
    if name in groups:
        config = groups[name]
        metrics = config.get("aggregate_metric_list") or []
        metrics = metrics if isinstance(metrics, list) else [metrics]
        by_size = any(metric.get("weight_by_size", True) for metric in metrics)
        found = _members(name, config, {}, set(tasks), groups, (name,))
        leaves = [Leaf(task, name, by_size, overrides) for task, overrides in found]
        if not leaves:
            raise EvaluationError(f"group {name}: has no tasks; list some under `task`")
        if twice := [leaf.task for at, leaf in enumerate(leaves) if leaf.task in {one.task for one in leaves[:at]}]:
            raise EvaluationError(f"group {name}: holds task {twice[0]} twice; keep one")
        return leaves
    return [Leaf(name, name)] if name in tasks else None


def _members(
    group: str,
    config: Mapping[str, Any],
    above: Mapping[str, Any],
    tasks: set[str],
    groups: Mapping[str, Mapping[str, Any]],
    path: tuple[str, ...],
) -> list[tuple[str, dict[str, Any]]]:
    """The tasks of a group with the keys that it overrides; those from further above win, as in the harness."""
    overrides = {key: value for key, value in config.items() if key not in _OF_GROUPS} | dict(above)
    members = config.get("task") or []
    found: list[tuple[str, dict[str, Any]]] = []
    for member in members if isinstance(members, list) else [members]:
        own = dict(member) if isinstance(member, dict) else {}
        name = str(own.pop("group", None) or own.pop("task", "")) if own else str(member)
        inner = groups.get(name)
        if "task" in own and inner is None:  # a group written inside this one
            found += _members(name, own, overrides, tasks, groups, path)
        elif inner is not None:
            if name in path:
                raise EvaluationError(f"group {name}: holds itself, by {' > '.join(path)}; remove it from one of them")
            found += _members(name, inner, overrides | own, tasks, groups, (*path, name))
        elif name in tasks:
            found.append((name, overrides | own))
        else:
            raise EvaluationError(
                f"group {group}: {name}: no such task or group in the task folder; add its file or remove it"
            )
    return found


def some(names: Iterable[str]) -> str:
    """A list of names for an error, at most SHOWN characters long."""
    every = sorted(names)
    shown = [name for at, name in enumerate(every) if sum(map(len, every[: at + 1])) + 2 * at <= SHOWN - 30]
    rest = len(every) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def close_to(name: str, names: Iterable[str]) -> list[str]:
    """The names most like this one, best first, at most three."""
    return difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.7)
