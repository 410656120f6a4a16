"""Names in params.yaml: each is a task, or stands for several tasks."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shadowft_core.errors import EvaluationError

SHOWN = 500  # characters of a list of names in an error
_OF_GROUPS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}


@dataclass(frozen=True)
class Group:
    """A group that a task is in. `by_size`: its mean weights its members by their number of items."""

    name: str
    by_size: bool


@dataclass(frozen=True)
class Leaf:
    """One task to score, and the groups by which params.yaml reaches it, from the one named there inwards."""

    task: str
    groups: tuple[Group, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """keys that the groups set in the config of the task"""

    @property
    def named(self) -> str:
        """The name in params.yaml: the task's own, or that of a group."""
        return self.groups[0].name if self.groups else self.task


def leaves_of(name: str, tasks: Iterable[str], groups: Mapping[str, Mapping[str, Any]]) -> list[Leaf] | None:
    """The tasks that a name stands for; None if it is neither a task nor a group.

    A group weights its members by size if its `aggregate_metric_list` says so, or has no word on it, as in the harness;
    without such a list, members weigh the same. Raises EvaluationError for a group that holds itself, has an unknown
    member or none, or holds a task twice.
    """
    if name in groups:
        leaves = _members(name, groups[name], {}, set(tasks), groups, ())
        if not leaves:
            raise EvaluationError(f"group {name}: has no tasks; list some under `task`")
        if twice := [leaf.task for at, leaf in enumerate(leaves) if leaf.task in {one.task for one in leaves[:at]}]:
            raise EvaluationError(f"group {name}: holds task {twice[0]} twice; keep one")
        return leaves
    return [Leaf(name)] if name in tasks else None


def _members(
    group: str,
    config: Mapping[str, Any],
    above: Mapping[str, Any],
    tasks: set[str],
    groups: Mapping[str, Mapping[str, Any]],
    path: tuple[Group, ...],
) -> list[Leaf]:
    """The tasks of a group; of the keys that groups set, those from further above win, as in the harness."""
    if group in (held := [one.name for one in path]):
        raise EvaluationError(f"group {group}: holds itself, by {' > '.join(held)}; remove it from one of them")
    metrics = config.get("aggregate_metric_list") or []
    by_size = any(one.get("weight_by_size", True) for one in (metrics if isinstance(metrics, list) else [metrics]))
    path = (*path, Group(group, by_size))
    overrides = {key: value for key, value in config.items() if key not in _OF_GROUPS} | dict(above)
    members = config.get("task") or []
    found: list[Leaf] = []
    for member in members if isinstance(members, list) else [members]:
        own = dict(member) if isinstance(member, dict) else {}
        name = str(own.pop("group", None) or own.pop("task", "")) if own else str(member)
        if "task" in own and name not in groups:  # a group written inside this one
            found += _members(name, own, overrides, tasks, groups, path)
        elif name in groups:
            found += _members(name, groups[name], overrides | own, tasks, groups, path)
        elif name in tasks:
            found.append(Leaf(name, path, overrides | own))
        else:
            raise EvaluationError(
                f"group {group}: {name}: no such task or group in the task folder; add its file or remove it"
            )
    return found


def some(names: Iterable[str], most: int = SHOWN) -> str:
    """A list of names for a message, at most `most` characters long; those left out are counted."""
    every = [f"{name:.{most - 30}}" for name in sorted(names)]
    shown = [name for at, name in enumerate(every) if sum(map(len, every[: at + 1])) + 2 * at <= most - 30]
    rest = len(every) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def close_to(name: str, names: Iterable[str]) -> list[str]:
    """The names most like this one, best first, at most three."""
    return difflib.get_close_matches(name, sorted(set(names)), n=3, cutoff=0.7)
