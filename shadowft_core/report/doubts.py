"""Answers whose scores may reflect limits and formats rather than the model, and metrics that do not decide."""

from collections.abc import Mapping
from typing import Any

KINDS = ("cut", "unparsed", "empty", "unstopped")


def doubts(head: Mapping[str, Any]) -> str:
    """The generated answers of a scores.json that are in doubt, by kind, the rows that were not asked, and flags.

    Empty if nothing was generated and nothing left out, or if the file is of an older version, which counts neither.
    """
    tasks = list(head["tasks"].values())
    generated = [task for task in tasks if "cut" in task.get("counts", {})]
    said = []
    if generated:
        totals = {kind: sum(task["counts"].get(kind, 0) for task in generated) for kind in KINDS}
        found = ", ".join(f"{count:,} {kind}" for kind, count in totals.items() if count) or "none"
        said.append(f"{found} of {sum(task['n'] for task in generated):,}")
    if rows := sum(reason["rows"] for task in tasks for reason in task.get("left_out", {}).values()):
        said.append(f"{rows:,} rows left out")
    said += [
        f"{', '.join(task['flags'])} flagged on {name}" for name, task in head["tasks"].items() if task.get("flags")
    ]
    return "; ".join(said)


def by_task(heads: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each task with generated answers in some arm: `task`, `answers` (their number), and `arms`, the answers in
    doubt of each arm by kind; None for an arm whose file is of an older version, which does not count them."""
    found = []
    for task, about in next(iter(heads.values()))["tasks"].items():
        arms = {name: _counted(head["tasks"].get(task, {})) for name, head in heads.items()}
        if any(counts is not None for counts in arms.values()):
            found.append({"task": task, "answers": about["n"], "arms": arms})
    return found


def other_metrics(heads: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of each task that do not decide it, such as those of another filter: `task`, `decides`, `metric` and
    `arms`, the value of each arm or None."""
    found = []
    for task, about in next(iter(heads.values()))["tasks"].items():
        values = {name: head["tasks"].get(task, {}).get("others") or {} for name, head in heads.items()}
        for metric in sorted(set().union(*values.values())):
            arms = {name: others.get(metric) for name, others in values.items()}
            found.append({"task": task, "decides": about["metric"], "metric": metric, "arms": arms})
    return found


def _counted(task: Mapping[str, Any]) -> dict[str, int] | None:
    counts = task.get("counts", {})
    return {kind: counts.get(kind, 0) for kind in KINDS} if "cut" in counts else None
