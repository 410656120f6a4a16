"""The answers of two arms, read from their score folders, and the check that they may be compared."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.files import canonical_json
from shadowft_core.limits import ANSWER_CHARACTERS
from shadowft_core.verdict.scorefiles import Line, read_head
from shadowft_core.verdict.scores import Arm, check_same_questions, read_arm


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of items.jsonl; prompt and output are cut to ANSWER_CHARACTERS. None where older versions do not say."""

    prompt: Any
    output: Any
    cluster: str
    finish: str | None
    tokens: int | None
    parsed: bool | None
    slice: str


@dataclass(frozen=True)
class Answers:
    """The score folder of one arm, by task and item."""

    folder: Path
    arm: Arm
    head: Mapping[str, Any]
    """scores.json"""
    by_item: Mapping[str, Mapping[str, Answer]]

    def generated(self, task: str) -> bool | None:
        """Whether the answers are text that the model wrote; None in folders of older versions, which do not say."""
        counts = self.head["tasks"][task].get("counts")
        return None if counts is None else "cut" in counts

    def about(self) -> dict[str, Any]:
        """The arm for people: name, scale, model, label and, if recorded, its divergence from the Instruct."""
        return {
            "name": self.arm.name,
            "scale": self.arm.scale,
            "model_digest": self.arm.model_digest,
            "label": self.head.get("label", ""),
            "kl": self.head.get("kl"),
        }

    def only(self, task: str) -> "Answers":
        """The same folder with one of its tasks. Raises EvaluationError if it has no such task."""
        if task not in self.by_item:
            raise EvaluationError(
                f"{self.folder}: has no task {task!r:.200}; its tasks are {', '.join(sorted(self.by_item)):.400}"
            )
        arm = self.arm
        kept = replace(
            arm,
            roles={task: arm.roles[task]},
            metrics={task: arm.metrics[task]},
            scores={task: arm.scores[task]},
        )
        return replace(self, arm=kept, by_item={task: self.by_item[task]})


def read_answers(folder: Path) -> Answers:
    """Read a score folder. Raises EvaluationError if it is missing, damaged or incomplete."""
    head = read_head(folder).told
    by_item: dict[str, dict[str, Answer]] = {task: {} for task in head["tasks"]}

    def take(line: Line) -> None:
        answer = Answer(
            _cut(line.prompt),
            _cut(line.output),
            line.cluster or "",
            line.finish,
            line.tokens,
            line.parsed,
            line.slice,
        )
        by_item[line.task].setdefault(line.item.partition("#")[0], answer)  # ITEM#1: a copy in older folders

    return Answers(folder, read_arm(folder, take=take), head, by_item)


def _cut(text: Any) -> Any:
    """The text, or its first ANSWER_CHARACTERS and how many there are. What is no text is written as JSON."""
    text = text if isinstance(text, str) else canonical_json(text).decode("utf-8")
    if len(text) <= ANSWER_CHARACTERS:
        return text
    return f"{text[:ANSWER_CHARACTERS]} … (cut: {len(text):,} characters)"


def check_comparable(reference: Answers, other: Answers) -> None:
    """Raise EvaluationError unless both arms had the same items, metrics, template and generation settings."""
    tasks, others = set(reference.by_item), set(other.by_item)
    if tasks != others:
        lacking = ", ".join(sorted(tasks ^ others)[:5])
        remedy = "name one that both have with --task" if tasks & others else "evaluate both with the same params"
        raise EvaluationError(
            f"{reference.folder} and {other.folder}: have {len(tasks)} and {len(others)} tasks, "
            f"{len(tasks ^ others)} of them only in one, such as {lacking:.300}; {remedy}"
        )
    check_same_questions(reference.arm, other.arm)
