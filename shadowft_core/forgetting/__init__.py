"""The forgetting ledger: what an arm lost and won against a reference arm, item by item.

Reads the score folders of two arms that answered the same items. It describes; the verdict decides.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from shadowft_core.forgetting.answers import Answers, check_comparable, read_answers
from shadowft_core.forgetting.drift import drift

__all__ = ["EPSILON", "ledger"]

Kind = Literal["lost", "won"]
KINDS: dict[Kind, int] = {"lost": -1, "won": 1}
EPSILON = 0.01  # a score that is not 0 or 1 changed if it moved by more; in the unit of the score


def ledger(
    reference: Path, arm: Path, *, task: str | None = None, only: Kind | None = None, examples: int = 3
) -> dict[str, Any]:
    """Compare the score folder of an arm with that of its reference; ready for JSON (docs/evaluation.md).

    With `task`, only that one. `examples` limits the items shown of each task and kind, the biggest change first; with
    `only`, those of the other kind are left out.

    Raises EvaluationError for a folder that is missing or damaged, and for arms that did not answer the same items with
    the same template, metrics and generation settings.
    """
    sides = read_answers(reference), read_answers(arm)
    if task is not None:
        sides = sides[0].only(task), sides[1].only(task)
    check_comparable(*sides)
    tasks = {name: _Task(*sides, name) for name in sorted(sides[0].by_item)}
    roles = {
        role: [one for one in tasks.values() if one.role == role] for role in sorted({t.role for t in tasks.values()})
    }
    return {
        "reference": sides[0].about(),
        "arm": sides[1].about(),
        "notes": [f"{side.arm.name} does not record {what}" for side in sides for what in _unrecorded(side)],
        "tasks": {
            name: one.summary({kind: examples if only in (None, kind) else 0 for kind in KINDS})
            for name, one in tasks.items()
        },
        "groups": {group: _together(_whole(of_group)) for group, of_group in _groups(sides[1], tasks).items()},
        "roles": {role: _together(_whole(of_role)) for role, of_role in roles.items()},
        "total": _together(_whole(list(tasks.values()))),
    }


class _Task:
    """The answers of both arms to the items of one task, in the order of the item digests."""

    def __init__(self, reference: Answers, arm: Answers, name: str) -> None:
        self.role, self.metric = arm.arm.roles[name], arm.arm.metrics[name]
        self.items = sorted(arm.by_item[name])
        self.pairs = [(reference.by_item[name][item], arm.by_item[name][item]) for item in self.items]
        before, after = reference.arm.scores[name], arm.arm.scores[name]
        self.scores = [(before[item], after[item]) for item in self.items]
        self.right_or_wrong = all(score in (0, 1) for pair in self.scores for score in pair)
        epsilon = 0.0 if self.right_or_wrong else EPSILON
        self.signs = [_sign(after - before, epsilon) for before, after in self.scores]
        self.epsilon = epsilon
        self.clusters = [answer.cluster or item for item, (_, answer) in zip(self.items, self.pairs, strict=True)]
        self.generated = {"reference": reference.generated(name), "arm": arm.generated(name)}
        self.kl = ((arm.head.get("kl") or {}).get("tasks") or {}).get(name)

    def summary(self, examples: Mapping[Kind, int]) -> dict[str, Any]:
        return {
            "role": self.role,
            "metric": self.metric,
            "mean": {side: math.fsum(scores) / len(scores) for side, scores in self._sides(self.scores).items()},
            "right_or_wrong": self.right_or_wrong,
            "epsilon": self.epsilon,
            **_together(_whole([self])),
            "clusters": len(set(self.clusters)),
            "slices": self._slices(),
            "length": self._length(),
            "answers": self._ends(),
            "drift": self._drift(),
            "kl": self.kl,
            "examples": {kind: self._examples(KINDS[kind], count) for kind, count in examples.items()},
        }

    def _examples(self, sign: int, count: int) -> list[dict[str, Any]]:
        at = [index for index, its in enumerate(self.signs) if its == sign]
        at.sort(key=lambda index: (-abs(self.scores[index][1] - self.scores[index][0]), self.items[index]))
        return [
            {
                "item": self.items[index],
                "prompt": self.pairs[index][1].prompt,
                "outputs": {side: answer.output for side, answer in self._pair(self.pairs[index])},
                "scores": dict(self._pair(self.scores[index])),
            }
            for index in at[:count]
        ]

    def _slices(self) -> dict[str, Any]:
        """The flips of each slice, if the task has any."""
        names = [answer.slice for _, answer in self.pairs]
        return {
            name: _together([(self, [at for at, its in enumerate(names) if its == name])])
            for name in sorted(set(names) - {""})
        }

    def _length(self) -> dict[str, Any] | None:
        """Tokens of the answers. None if they were not generated, or not counted on both sides."""
        both = [(a.tokens, b.tokens) for a, b in self.pairs if a.tokens is not None and b.tokens is not None]
        if not both:
            return None
        changes = [after - before for before, after in both]
        means = {side: fmean(tokens) for side, tokens in self._sides(both).items()}
        return {"answers": len(both), **means, "mean_change": fmean(changes), "median_change": float(median(changes))}

    def _ends(self) -> dict[str, Any] | None:
        """Shares of the items by how their answers ended, on both sides; None for a side that does not record it.

        None if the answers were not generated.
        """
        if False in self.generated.values():
            return None
        found: dict[str, dict[str, float | None]] = {end: {} for end in ("cut", "unparsed", "empty", "unstopped")}
        for side, answers in self._sides(self.pairs).items():
            known = answers if self.generated[side] else []
            judged = known if any(answer.parsed is not None for answer in known) else []
            found["cut"][side] = _share([answer.finish == "length" for answer in known])
            found["unparsed"][side] = _share([answer.parsed is False for answer in judged])
            found["empty"][side] = _share([not str(answer.output).strip() for answer in known])
            found["unstopped"][side] = _share([answer.finish is None for answer in known])
        return found

    def _drift(self) -> dict[str, Any] | None:
        if not all(self.generated.values()):
            return None
        return drift([(str(a.output), str(b.output)) for a, b in self.pairs])

    @staticmethod
    def _pair(pair: tuple[Any, Any]) -> list[tuple[str, Any]]:
        return [("reference", pair[0]), ("arm", pair[1])]

    @staticmethod
    def _sides(pairs: Sequence[tuple[Any, Any]]) -> dict[str, list[Any]]:
        return {"reference": [a for a, _ in pairs], "arm": [b for _, b in pairs]}


def _together(parts: Sequence[tuple[_Task, Sequence[int]]]) -> dict[str, Any]:
    """Items, losses and gains of some items of some tasks, with the exact two-sided test that both are equally likely.

    For scores of 0 and 1 and items that are independent it is McNemar's exact test, else the sign test: over items, or
    over clusters (more gains than losses, or fewer) where items share one.
    """
    from scipy.stats import binomtest

    signs = [task.signs[at] for task, places in parts for at in places]
    lost, won = signs.count(-1), signs.count(1)
    units: dict[tuple[int, str], int] = defaultdict(int)
    for number, (task, places) in enumerate(parts):
        for at in places:
            units[number, task.clusters[at]] += task.signs[at]
    decided = [_sign(total, 0) for total in units.values() if total]
    p = float(binomtest(decided.count(-1), len(decided), 0.5).pvalue) if decided else 1.0
    return {"n": len(signs), "lost": lost, "won": won, "net": won - lost, "p": p}


def _whole(tasks: Sequence[_Task]) -> list[tuple[_Task, Sequence[int]]]:
    return [(task, range(len(task.items))) for task in tasks]


def _groups(side: Answers, tasks: Mapping[str, _Task]) -> dict[str, list[_Task]]:
    """The tasks of each group that was named in their place."""
    found: dict[str, list[_Task]] = defaultdict(list)
    for name, task in tasks.items():
        found[side.head["tasks"][name].get("group", name)].append(task)
    return {group: found[group] for group in sorted(found) if group not in tasks}


def _unrecorded(side: Answers) -> list[str]:
    """What a folder of an older version does not say."""
    settings = ["its generation settings"] * (side.head.get("generation") is None)
    return settings + ["how its answers ended"] * any(side.generated(task) is None for task in side.by_item)


def _sign(value: float, epsilon: float) -> int:
    return 0 if abs(value) <= epsilon else (1 if value > 0 else -1)


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
