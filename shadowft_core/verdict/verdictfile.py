"""The typed fields of verdict.json, as `verdict` writes it now and as earlier versions did (format 1)."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from shadowft_core.errors import EvaluationError, ShadowError
from shadowft_core.files import Fields, read_regular
from shadowft_core.files.record import checked
from shadowft_core.limits import RECORD_BYTES, TASKS
from shadowft_core.verdict.claims import Claim
from shadowft_core.verdict.scorefiles import Count, Label, Score


class _Mean(Fields):
    mean: Score
    interval: tuple[Score, Score]
    n: Count


class _OfSeed(Fields):
    seed: int | None
    domain: Score | None
    guards: Score | None


class _Arm(Fields):
    scale: float | None
    domain: _Mean | None
    guards: _Mean | None
    overall: _Mean | None = None
    tasks: dict[Label, _Mean] = Field({}, max_length=TASKS)
    seeds: list[_OfSeed] | None = None


class _Earlier(Fields):
    number: Count
    candidate: str | None = None
    model_name: str | None = None
    commit: str | None = None
    overlap: Count | None = None


class _Look(Fields):
    number: Count
    alpha: float
    left: float
    items: str | None = None
    earlier: list[_Earlier]


class VerdictFile(Fields):
    """The fields of verdict.json that other verbs read."""

    format: Literal[1, 2]
    candidate: Label | None
    decision: Literal["promote", "hold", "undecided"]
    arm: Label | None = None
    reasons: list[str]
    look: _Look | None = None
    claims: list[Claim] = Field(max_length=TASKS)
    arms: dict[Label, _Arm] = Field(max_length=1000)
    direct_control: bool
    serves: bool = False
    recipe_digest: str | None = None


def read_verdict(path: Path, error: type[ShadowError] = EvaluationError) -> dict[str, Any]:
    """Read verdict.json. Raises `error` if it is missing or damaged."""
    return parse_verdict(read_regular(path, RECORD_BYTES, error), path, error)


def parse_verdict(raw: bytes, where: object, error: type[ShadowError]) -> dict[str, Any]:
    """The verdict in `raw`; `where` names its origin. Raises `error` if it is damaged."""
    found: dict[str, Any] = checked(raw, VerdictFile, where, "run `shadowft verdict` again", error=error)
    return found
