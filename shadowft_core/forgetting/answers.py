"""The answers of two arms, read from their score folders, and the check that they may be compared."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from shadowft_core.errors import EvaluationError
from shadowft_core.files import read_json_object
from shadowft_core.verdict.scores import Arm, check_same_questions, read_arm


class Answer(BaseModel):
    """One line of items.jsonl. Folders of older versions have only the first five fields."""

    task: str
    item: str
    score: float
    prompt: Any = ""
    output: Any = ""
    cluster: str = ""
    finish: Literal["stop", "length"] | None = None
    tokens: int | None = Field(None, ge=0)
    parsed: bool | None = None
    slice: str = ""


@dataclass(frozen=True)
class Answers:
    """The score folder of one arm, by task and item."""

    folder: Path
    arm: Arm
    head: Mapping[str, Any]
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
    arm = read_arm(folder)
    by_item: dict[str, dict[str, Answer]] = {task: {} for task in arm.scores}
    path = folder / "items.jsonl"
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                answer = Answer.model_validate_json(line)
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(map(str, problem["loc"])) or "line"
                raise EvaluationError(f"{path}:{number}: {where}: {problem['msg']}; run evaluate again") from None
            by_item[answer.task].setdefault(answer.item.partition("#")[0], answer)  # ITEM#1: a copy in older folders
    return Answers(folder, arm, read_json_object(folder / "scores.json"), by_item)


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
