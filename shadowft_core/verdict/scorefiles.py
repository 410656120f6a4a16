"""The typed fields of the files with scores: scores.json, items.jsonl, seeds.json, champions.json."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from shadowft_core.errors import EvaluationError
from shadowft_core.files import Record, lines_of, parse_json, read_record
from shadowft_core.files.record import first_problem
from shadowft_core.limits import COUNT, ITEM_BYTES, ITEMS, LABEL_CHARACTERS, RECORD_BYTES, SCORE, TASKS

Role = Literal["domain", "guard"]
Label = Annotated[str, Field(min_length=1, max_length=LABEL_CHARACTERS)]
Score = Annotated[float, Field(ge=-SCORE, le=SCORE)]
Count = Annotated[int, Field(ge=0, le=COUNT)]
_KEY = re.compile(rb'"[ \t\r]*:')


class _LeftOut(Record):
    rows: Count
    named: list[str]


class _Distance(Record):
    """How far the answers of one task are from the Instruct's."""

    answers: Count = 0
    tokens: Count = 0
    mean: float | None = None
    mean_lower_bound: float | None = None


class Divergence(Record):
    """`kl`: the distance to the Instruct, in nats per token, or why it was not measured."""

    not_measured: str | None = None
    prompts: str = ""
    answers: Count = 0
    tokens: Count = 0
    of_tokens: Count = 0
    mean: float | None = None
    max: float | None = None
    mean_lower_bound: float | None = None
    max_lower_bound: float | None = None
    tasks: dict[Label, _Distance] = Field({}, max_length=TASKS)

    @model_validator(mode="after")
    def _measured_or_not(self) -> Self:
        if (self.not_measured is None) == (self.mean is None and self.mean_lower_bound is None):
            raise ValueError("expected either `not_measured` or a mean")
        return self


class Summary(Record):
    """A task's entry in scores.json. Files of older versions have only role, metric, n and mean."""

    role: Role
    group: str | None = Field(None, max_length=LABEL_CHARACTERS)
    """the name in params.yaml that stands for the task"""
    metric: Label
    n: int = Field(ge=1, le=COUNT)
    mean: Score
    counts: dict[str, Count] = Field({}, max_length=100)
    left_out: dict[str, _LeftOut] = Field({}, max_length=1000)
    others: dict[str, float] = Field({}, max_length=1000)
    slices: dict[str, dict[str, float]] = Field({}, max_length=ITEMS)
    flags: list[str] = Field([], max_length=100)


class Head(Record):
    """scores.json. Files from older versions have no `generation`, the settings that answers were generated with."""

    format: Literal[1]
    arm: Label
    scale: float | None
    model_digest: Label
    label: str = ""
    version: int | None = Field(None, ge=1, le=COUNT)
    """of a champion, in the registry"""
    seed: int | None = Field(None, ge=0)
    template_digest: str | None
    generation: dict[str, Any] | None = None
    kl: Divergence | None = None
    tasks: dict[Label, Summary] = Field(min_length=1, max_length=TASKS)

    @property
    def domain_mean(self) -> float:
        """The mean of the means of the domain's tasks."""
        means = [task.mean for task in self.tasks.values() if task.role == "domain"]
        return math.fsum(means) / len(means)

    @property
    def told(self) -> dict[str, Any]:
        """The fields that the file has, without defaults for the others."""
        return self.model_dump(exclude_unset=True)


class Line(Record):
    """A line of items.jsonl. Files of older versions have only the first five fields."""

    task: Label
    item: Label
    score: Score
    prompt: Any = ""
    output: Any = ""
    about: str | None = Field(None, max_length=LABEL_CHARACTERS)
    """the subject of the item; other items may have the same"""
    cluster: str | None = Field(None, max_length=LABEL_CHARACTERS)
    """what the item shares with others; null or empty if nothing"""
    finish: Literal["stop", "length"] | None = None
    tokens: Count | None = None
    parsed: bool | None = None
    others: dict[str, float] = Field({}, max_length=1000)
    copies: Count = 1
    slice: str = Field("", max_length=LABEL_CHARACTERS)


class FurtherSeed(Record):
    """A seed that was trained and scored besides the first. A `train.command` may report only some of the losses."""

    seed: int = Field(ge=0)
    delta: str | None = None
    steps: Count | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    valid_loss: float | None = None


class Seeds(Record):
    """seeds.json: the seed that ships, and the further ones that were trained and scored."""

    format: Literal[1]
    route: str = ""
    first: int = Field(ge=0)
    further: list[FurtherSeed] = Field(max_length=1000)


class _Considered(Record):
    version: int = Field(ge=1, le=COUNT)
    digest: Label
    mean: Score


class Skipped(Record):
    """An earlier champion that could not be rebuilt."""

    version: int = Field(ge=1, le=COUNT)
    digest: Label
    reason: str


class Considered(Record):
    """champions.json: the champions that were compared on these items."""

    format: Literal[1] = 1
    considered: list[_Considered] = Field([], max_length=10_000)
    skipped: list[Skipped] = Field([], max_length=10_000)


def read_head(folder: Path) -> Head:
    """scores.json of a score folder. Raises EvaluationError if it is missing or damaged."""
    return read_record(folder / "scores.json", Head, "run evaluate again", error=EvaluationError, largest=RECORD_BYTES)


def read_seeds(path: Path) -> Seeds:
    """Raises EvaluationError if it is missing or damaged."""
    return read_record(path, Seeds, "run `shadowft seeds` again", error=EvaluationError, largest=RECORD_BYTES)


def read_considered(path: Path) -> Considered:
    """Raises EvaluationError if it is damaged. A missing file means that no champions were compared."""
    if not path.exists():
        return Considered()
    return read_record(path, Considered, "evaluate the champion again", error=EvaluationError, largest=RECORD_BYTES)


def read_lines(path: Path) -> Iterator[tuple[int, Line]]:
    """The lines of items.jsonl with their numbers, one at a time.

    Raises EvaluationError if the file is missing, a line is damaged or too long, or there are too many lines.
    """
    for number, raw in lines_of(path, ITEM_BYTES, EvaluationError):
        where = f"{path}:{number}"
        if number > ITEMS:
            raise EvaluationError(f"{path}: more than {ITEMS} items, the limit; judge fewer at a time")
        try:
            line = Line.model_validate_json(raw)
        except ValidationError as error:
            raise EvaluationError(f"{where}: {first_problem(error)}; run evaluate again") from None
        # With a duplicate key there are more keys than fields. Quotes in a text may look like keys: then parse again.
        plain = type(line.prompt) is str and type(line.output) is str
        if not plain or len(_KEY.findall(raw)) != len(line.model_fields_set) + len(line.others):
            parse_json(raw, where, EvaluationError, finite=True)
        yield number, line
