"""The forgetting ledger: what an arm lost and won against a reference arm, item by item.

Reads the score folders of two arms that answered the same items. It describes; the verdict decides.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from shadowft_core.forgetting.answers import Answer, Answers, check_comparable, read_answers
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
    notes = check_comparable(*sides)
    notes += [f"{side.arm.name} does not record how its answers ended" for side in sides if not side.recorded]
    tasks = {name: _Task(*sides, name) for name in sorted(sides[0].by_item)}
    roles = {
        role: [one for one in tasks.values() if one.role == role] for role in sorted({t.role for t in tasks.values()})
    }
    return {
        "reference": sides[0].about(),
        "arm": sides[1].about(),
        "notes": notes,
        "tasks": {
            name: one.summary({kind: examples if only in (None, kind) else 0 for kind in KINDS})
            for name, one in tasks.items()
        },
        "roles": {role: _together(of_role) for role, of_role in roles.items()},
        "total": _together(list(tasks.values())),
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
        self.kl = ((arm.head.get("kl") or {}).get("tasks") or {}).get(name)

    def summary(self, examples: Mapping[Kind, int]) -> dict[str, Any]:
        clusters = len({answer.cluster or item for item, (answer, _) in zip(self.items, self.pairs, strict=True)})
        return {
            "role": self.role,
            "metric": self.metric,
            "mean": {side: math.fsum(scores) / len(scores) for side, scores in self._sides(self.scores).items()},
            "right_or_wrong": self.right_or_wrong,
            "epsilon": self.epsilon,
            **_together([self]),
            "clusters": clusters,
            "length": self._length(),
            "answers": self._ends(),
            "drift": self._drift(),
            "kl": self.kl,
            "examples": {kind: self._examples(KINDS[kind], count) for kind, count in examples.items()},
        }

    def by_cluster(self) -> list[int]:
        """The sign of the sum of the signs of each cluster; an item without cluster is one by itself."""
        sums: dict[str, int] = defaultdict(int)
        for item, (answer, _), sign in zip(self.items, self.pairs, self.signs, strict=True):
            sums[answer.cluster or item] += sign
        return [_sign(total, 0) for total in sums.values()]

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

    def _generated(self) -> list[tuple[Answer, Answer]]:
        return [pair for pair in self.pairs if pair[0].generated and pair[1].generated]

    def _length(self) -> dict[str, Any] | None:
        """Tokens of the answers. None if they were not generated, or not counted on both sides."""
        both = [(a.tokens, b.tokens) for a, b in self.pairs if a.tokens is not None and b.tokens is not None]
        if not both:
            return None
        changes = [after - before for before, after in both]
        means = {side: fmean(tokens) for side, tokens in self._sides(both).items()}
        return {"answers": len(both), **means, "mean_change": fmean(changes), "median_change": float(median(changes))}

    def _ends(self) -> dict[str, Any] | None:
        """Shares of answers by how they ended, on both sides; a side is None if its folder does not record it."""
        found: dict[str, dict[str, float | None]] = {"cut": {}, "unparsed": {}, "empty": {}}
        for side, answers in self._sides(self.pairs).items():
            generated = [answer for answer in answers if answer.generated]
            if not generated and all(answer.recorded for answer in answers):
                return None
            judged = [answer for answer in generated if answer.parsed is not None]
            found["cut"][side] = _share([answer.finish == "length" for answer in generated])
            found["unparsed"][side] = _share([not answer.parsed for answer in judged])
            found["empty"][side] = _share([not str(answer.output).strip() for answer in generated])
        return found

    def _drift(self) -> dict[str, Any] | None:
        generated = self._generated()
        return drift([(str(a.output), str(b.output)) for a, b in generated]) if generated else None

    @staticmethod
    def _pair(pair: tuple[Any, Any]) -> list[tuple[str, Any]]:
        return [("reference", pair[0]), ("arm", pair[1])]

    @staticmethod
    def _sides(pairs: Sequence[tuple[Any, Any]]) -> dict[str, list[Any]]:
        return {"reference": [a for a, _ in pairs], "arm": [b for _, b in pairs]}


def _together(tasks: Sequence[_Task]) -> dict[str, Any]:
    """Items, losses and gains of some tasks, with the exact two-sided test that both are equally likely.

    For scores of 0 and 1 and items that are independent it is McNemar's exact test, else the sign test: over items, or
    over clusters (more gains than losses, or fewer) where items share one.
    """
    from scipy.stats import binomtest

    signs = [sign for task in tasks for sign in task.signs]
    lost, won = signs.count(-1), signs.count(1)
    units = [sign for task in tasks for sign in task.by_cluster()]
    decided = [sign for sign in units if sign]
    p = float(binomtest(decided.count(-1), len(decided), 0.5).pvalue) if decided else 1.0
    return {"n": len(signs), "lost": lost, "won": won, "net": won - lost, "p": p}


def _sign(value: float, epsilon: float) -> int:
    return 0 if abs(value) <= epsilon else (1 if value > 0 else -1)


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
