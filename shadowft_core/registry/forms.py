"""The typed fields that a registration reads from the outputs of other stages."""

from typing import Annotated, Any, Literal

from pydantic import Field

from shadowft_core.files import Fields
from shadowft_core.limits import COUNT, SCORE
from shadowft_core.weights.pairfile import Side

Count = Annotated[int, Field(ge=0, le=COUNT)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Number = Annotated[float, Field(ge=-SCORE, le=SCORE)]


class _Replay(Fields):
    rows_used: Count
    data: str


class DataReport(Fields):
    """data-report.json"""

    splits: dict[Literal["train", "valid", "dev", "test"], Count]
    digest: str
    replay: _Replay | None = None


class _Sigma(Fields):
    overall: Number | None
    modules: dict[str, Number | None] | None = None


class Preflight(Fields):
    """preflight.json"""

    sigma: _Sigma
    loss: dict[str, Number | None] = Field({})
    cosine: Number | None = None
    modules: dict[str, Number | None] | None = None


class _Training(Fields):
    digest: str = "unknown"
    data_digest: str = "unknown"


class _Against(Fields):
    digest: str


class Delta(Fields):
    """delta.json"""

    base: _Against
    train: _Training | None = None


class Graft(Fields):
    """recipe.json of a grafted folder"""

    digest: str
    instruct: _Against
    deltas: list[dict[str, Any]] = Field(min_length=1)


class _Ingredient(Fields):
    digest: Digest
    scale: float


class _Judged(Fields):
    digest: str
    decision: str


class _Lineage(Fields):
    lock: str
    data: str
    train: str = "unknown"


class RegisteredRecipe(Fields):
    """A registered recipe. Those of earlier versions have no `arm`. `digest` names a folder in the cache."""

    format: Literal[1]
    digest: Digest
    instruct: Side
    base: Side
    deltas: list[_Ingredient] = Field(min_length=1, max_length=1000)
    files: dict[str, str] = Field(max_length=10_000)
    store: dict[str, Any]
    verdict: _Judged
    lineage: _Lineage
    arm: str = ""
