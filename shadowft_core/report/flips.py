"""What the candidate lost, won and kept against the Instruct and, if it was scored, the champion."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.forgetting import ledger

EXAMPLES = 2  # items won, and items lost, to show per task
NAMES = {
    "instruct": "the Instruct",
    "champion": "the champion",
    "best_champion": "the best earlier champion",
}


def flips(folders: Mapping[str, Path], candidate: str | None) -> list[dict[str, Any]]:
    """A ledger of the candidate against each reference that was scored; none without a candidate.

    `refused` is why a champion could not be compared, such as other items. `kept` of a task is the share of the items
    that the reference answers right and the candidate too; None for scores that are not right or wrong.
    """
    found: list[dict[str, Any]] = []
    for name, against in NAMES.items():
        if candidate in (None, name) or name not in folders:
            continue
        try:
            compared = ledger(folders[name], folders[str(candidate)], examples=EXAMPLES)
        except EvaluationError as error:
            if name == "instruct":
                raise
            found.append({"against": against, "refused": str(error)})
            continue
        kept = {task: _kept(about) for task, about in compared["tasks"].items()}
        found.append({"against": against, "refused": None, "kept": kept, **compared})
    return found


def _kept(task: Mapping[str, Any]) -> float | None:
    right = round(task["mean"]["reference"] * task["n"])
    return (right - task["lost"]) / right if task["right_or_wrong"] and right else None
