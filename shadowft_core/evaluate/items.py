"""What a score is: items, all items of a task, and the counts beside the score."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shadowft_core.suites import Group

Role = Literal["domain", "guard"]
Finish = Literal["stop", "length"]
SHOWN = 2000  # characters of a prompt (its end) and of a reply (its beginning) written to items.jsonl
NAMED = 20  # rows that scores.json names for each reason to leave them out


@dataclass(frozen=True)
class Asked:
    """What is known of a task before an arm answers: `items` are digests, `about` as in `Item`, of each item."""

    role: Role
    group: str
    """the name in params.yaml that stands for this task"""
    metric: str | None
    """None: the first that the task computes"""
    items: tuple[str, ...]
    about: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One scored item: `item` is the digest of document and prompt; a higher `score` is better.

    `prompt` (as rendered by the template) and `output` are for people to read, shortened to SHOWN characters.
    """

    item: str
    score: float
    prompt: str
    output: str
    about: str = ""
    """digest of what the item is about: a passage, images or its question, however it is asked"""
    cluster: str = ""
    """`about` if another item of the run has it, of whatever task; items of one cluster are not independent"""
    finish: Finish | None = None
    """how generation ended: by a stop text or end token, or at the token limit; None if nothing was generated"""
    tokens: int | None = None
    """of the answer; None if nothing was generated"""
    parsed: bool | None = None
    """whether the task's filter found an answer in the output; None if it has none"""
    others: Mapping[str, float] = field(default_factory=dict)
    """further metrics, by name, or FILTER/METRIC of another filter"""
    copies: int = 1
    """how often the task has this document with this prompt; it is asked, and counts, once"""
    slice: str = ""
    """value of the field that `metadata: {slice: FIELD}` of the task file names"""


@dataclass(frozen=True)
class TaskScore:
    """All items of one task, sorted by `item`."""

    role: Role
    metric: str
    items: tuple[Item, ...]
    group: str = ""
    """the name in params.yaml that stands for this task: the task's own, or that of a group"""
    groups: tuple[Group, ...] = ()
    """the groups that hold this task, from the named one inwards"""
    generated: bool = False
    """whether the items are answers that the model wrote"""
    others: Mapping[str, float] = field(default_factory=dict)
    """further metrics of the whole task, as the harness aggregates them"""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """rows that no arm was asked, by reason"""
    replaced: int = 0
    """items whose few-shot examples held the item itself; they got another example"""
    flags: tuple[str, ...] = ()
    """names of counts above their limit"""

    @property
    def mean(self) -> float:
        return _mean(item.score for item in self.items)

    def summary(self) -> dict[str, Any]:
        """The task's entry in scores.json (docs/architecture.md, Scores)."""
        slices = sorted({item.slice for item in self.items} - {""})
        parts = {value: [item for item in self.items if item.slice == value] for value in slices}
        return {
            "role": self.role,
            "group": self.group,
            "metric": self.metric,
            "n": len(self.items),
            "mean": self.mean,
            "counts": self.counts(self.items) | {"replaced_examples": self.replaced},
            "left_out": {
                reason: {"rows": len(rows), "named": list(rows[:NAMED])} for reason, rows in self.left_out.items()
            },
            "others": dict(sorted(self.others.items())),
            "slices": {
                value: {"n": len(part), "mean": _mean(item.score for item in part)} | self.counts(part)
                for value, part in parts.items()
            },
            "flags": list(self.flags),
        }

    def counts(self, items: Sequence[Item]) -> dict[str, int]:
        """How many further copies these items have and, of generated answers, how many are of each doubtful kind."""
        found = {"copies": sum(item.copies - 1 for item in items)}
        if self.generated:
            found |= {
                "cut": sum(item.finish == "length" for item in items),
                "unparsed": sum(item.parsed is False for item in items),
                "empty": sum(not item.output.strip() for item in items),
                "unstopped": sum(item.finish is None for item in items),
            }
        return found


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
