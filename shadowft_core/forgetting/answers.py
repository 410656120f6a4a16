"""The answers of two arms, read from their score folders, and the check that they may be compared."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from shadowft_core.errors import EvaluationError
from shadowft_core.files import read_json_object
from shadowft_core.verdict.scores import Arm, check_same_questions, read_arm


class Answer(BaseModel):
    """One line of items.jsonl. Folders of older versions have no `finish`, `tokens`, `parsed` and `cluster`."""

    task: str
    item: str
    score: float
    prompt: Any = ""
    output: Any = ""
    cluster: str = ""
    finish: Literal["stop", "length"] | None = None
    tokens: int | None = Field(None, ge=0)
    parsed: bool | None = None

    @property
    def recorded(self) -> bool:
        """Whether the folder says how the answer ended."""
        return "finish" in self.model_fields_set

    @property
    def generated(self) -> bool:
        return self.finish is not None or self.tokens is not None


@dataclass(frozen=True)
class Answers:
    """The score folder of one arm; `by_item[task][item]` is the first of the copies of an item."""

    folder: Path
    arm: Arm
    head: Mapping[str, Any]
    by_item: Mapping[str, Mapping[str, Answer]]

    @property
    def recorded(self) -> bool:
        """Whether every answer says how it ended; folders of older versions do not."""
        return all(answer.recorded for answers in self.by_item.values() for answer in answers.values())

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
            by_item[answer.task].setdefault(answer.item, answer)
    return Answers(folder, arm, read_json_object(folder / "scores.json"), by_item)


def check_comparable(reference: Answers, other: Answers) -> list[str]:
    """Raise EvaluationError unless both arms had the same items, template and generation settings; return notes."""
    names = f"{reference.folder} and {other.folder}"
    tasks, others = set(reference.by_item), set(other.by_item)
    if tasks != others:
        lacking = ", ".join(sorted(tasks ^ others)[:5])
        remedy = "name one that both have with --task" if tasks & others else "evaluate both with the same params"
        raise EvaluationError(
            f"{names}: have {len(tasks)} and {len(others)} tasks, {len(tasks ^ others)} of them only in one, such as "
            f"{lacking:.300}; {remedy}"
        )
    check_same_questions(reference.arm, other.arm)
    settings = [answers.head.get("generation") for answers in (reference, other)]
    if None in settings:
        lacks = next(answers.arm.name for answers in (reference, other) if answers.head.get("generation") is None)
        return [f"{lacks} does not record its generation settings, so they could not be compared"]
    if settings[0] != settings[1]:
        raise EvaluationError(
            f"{names}: have different generation settings, {_settings(settings[0])} and {_settings(settings[1])}; "
            "evaluate both again with the same params"
        )
    return []


def _settings(value: Any) -> str:
    return f"{json.dumps(value, sort_keys=True):.300}"
