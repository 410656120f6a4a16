"""What a score is: items, and all items of a task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["domain", "guard"]
Finish = Literal["stop", "length"]
SHOWN = 2000  # characters of a prompt (its end) and of a reply (its beginning) written to items.jsonl


@dataclass(frozen=True)
class Item:
    """One scored item: `item` is the digest of document and prompt; a higher `score` is better.

    `prompt` (as rendered by the template) and `output` are for people to read, shortened to SHOWN characters.
    """

    item: str
    score: float
    prompt: str
    output: str
    cluster: str = ""
    """digest of what the item shares with others, such as a passage; items of one cluster are not independent"""
    finish: Finish | None = None
    """how generation ended: by a stop text or end token, or at the token limit; None if nothing was generated"""
    tokens: int | None = None
    """of the answer; None if nothing was generated"""
    parsed: bool | None = None
    """whether the task's filter found an answer in the output; None if it has none"""
    others: Mapping[str, float] = field(default_factory=dict)
    """further metrics, by name, or FILTER/METRIC of another filter"""


@dataclass(frozen=True)
class TaskScore:
    """All items of one task, sorted by `item`."""

    role: Role
    metric: str
    items: tuple[Item, ...]

    @property
    def mean(self) -> float:
        return math.fsum(item.score for item in self.items) / len(self.items)

    def summary(self) -> dict[str, Any]:
        return {"role": self.role, "metric": self.metric, "n": len(self.items), "mean": self.mean}
