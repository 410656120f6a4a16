"""How much two arms differ on each task: measured on scores of an earlier run, else assumed."""

import math
from collections.abc import Mapping
from pathlib import Path

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import Asked
from shadowft_core.params import Params
from shadowft_core.verdict.comparison import item_scores, threshold
from shadowft_core.verdict.power import GAIN, PER_BYTE, TOGETHER, Spread, assumed_spread, spread_of
from shadowft_core.verdict.scores import Arm, check_same_questions, read_arm
from shadowft_core.verdict.statistics import PADS, Items


class Spreads:
    """The spread of the differences on each task: measured where there are scores of arms, else assumed."""

    def __init__(self, params: Params, scores: Path | None, differ: float) -> None:
        self._params, self._differ = params.verdict, differ
        self._measured: dict[str, tuple[Spread, str]] = {}
        """the spread, and the arm that it is of"""
        self._levels: dict[str, float] = {}
        """the mean of the Instruct's scores"""
        if scores is None:
            return
        instruct = _read(scores / "instruct" / "instruct", "instruct")
        self._levels = {name: _level(item_scores(instruct, name)) for name in instruct.scores}
        for route in params.routes:
            folder = scores / route / f"{route}_scaled"
            if (folder / "scores.json").is_file():
                arm = _read(folder, f"{route}_scaled")
                check_same_questions(instruct, arm)
                if arm.model_digest != instruct.model_digest:
                    self._measure(instruct, arm)

    def _measure(self, instruct: Arm, arm: Arm) -> None:
        for name in instruct.scores:
            before, own = item_scores(instruct, name), instruct.clusters.get(name, {})
            clusters = [own.get(item, item) for item in sorted(instruct.scores[name])]
            is_open = instruct.metrics[name] == PER_BYTE
            room = math.inf if is_open else 1 - float(before.mean())
            found = spread_of(item_scores(arm, name) - before, clusters, open_scale=is_open, room=room)
            if name not in self._measured or found.square > self._measured[name][0].square:
                self._measured[name] = (found, arm.name)

    def of(self, name: str, metric: str | None) -> Spread:
        """The spread on a task."""
        if name in self._measured:
            return self._measured[name][0]
        if metric == PER_BYTE:
            return assumed_spread(worthwhile=threshold(self._params, metric, "worthwhile"))
        return assumed_spread(self._differ, level=self._levels.get(name))

    def assumed(self, *asked: Mapping[str, Asked]) -> list[str]:
        """What the figures rest on, as sentences."""
        tasks = {name: one for each in asked for name, one in each.items()}
        measured = sorted(tasks.keys() & self._measured.keys())
        found = [f"{name}: the differences vary as those of {self._measured[name][1]} did" for name in measured]
        per_byte = sorted(name for name, one in tasks.items() if name not in measured and one.metric == PER_BYTE)
        guessed = sorted(name for name in tasks if name not in measured and name not in per_byte)
        if guessed:
            level = (
                ""
                if not self._levels.keys() & set(guessed)
                else ", or fewer if the Instruct is mostly right or mostly wrong"
            )
            found.append(
                f"{', '.join(guessed)}: scores are 0 or 1, and two equal arms differ on {self._differ:g} of the items"
                f"{level}"
            )
        if per_byte:
            found.append(
                f"{', '.join(per_byte)}: a gain of verdict.worthwhile is {GAIN:g} standard deviations of the "
                "differences; `--scores` of an earlier run measures them"
            )
        shared = sorted(name for name, one in tasks.items() if name not in measured and _shared(one))
        if shared:
            found.append(f"{', '.join(shared)}: differences of items in one cluster have a correlation of {TOGETHER:g}")
        found.append(
            "guards are independent of each other and of the domain; champions and verdict.require are left out"
        )
        return found


def _read(folder: Path, name: str) -> Arm:
    """The scores of an arm. Raises EvaluationError for a share of right answers that is not from 0 to 1.

    Scores of 0 and 100 are not taken for shares: thresholds and assumed spreads would be in another unit.
    """
    arm = read_arm(folder, name)
    for task, metric in arm.metrics.items():
        found = item_scores(arm, task)
        if metric != PER_BYTE and not (found.min() >= 0 and found.max() <= 1):
            raise EvaluationError(
                f"{folder}: task {task}: its scores ({metric}) are from {found.min():g} to {found.max():g}, expected "
                "0 to 1, as `evaluate` writes them; divide the scores of all arms by the largest possible one"
            )
    return arm


def _level(scores: Items) -> float:
    """A mean that is never certain, padded as the gate pads."""
    return (float(scores.sum()) + PADS) / (scores.size + 2 * PADS)


def _shared(one: Asked) -> bool:
    return len(set(one.about)) < len(one.about)
