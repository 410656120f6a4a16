"""For the table of arms: answers whose scores may tell of limits and formats instead of the model."""

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
        totals = {kind: sum(task["counts"][kind] for task in generated) for kind in KINDS}
        found = ", ".join(f"{count:,} {kind}" for kind, count in totals.items() if count) or "none"
        said.append(f"{found} of {sum(task['n'] for task in generated):,}")
    if rows := sum(reason["rows"] for task in tasks for reason in task.get("left_out", {}).values()):
        said.append(f"{rows:,} rows left out")
    said += [
        f"{', '.join(task['flags'])} flagged on {name}" for name, task in head["tasks"].items() if task.get("flags")
    ]
    return "; ".join(said)
