"""The typed fields that the page shows, from the files of all stages. Older versions and other trainers write fewer."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from shadowft_core.files import Fields
from shadowft_core.limits import COUNT, SCORE, TENSORS

Count = Annotated[int, Field(ge=0, le=COUNT)]
Number = Annotated[float, Field(ge=-SCORE, le=SCORE)]
Norm = Annotated[float, Field(ge=0, le=SCORE)]
Counts = dict[str, Count]


class _Side(Fields):
    ref: str
    digest: str
    label: str = ""


class Pair(Fields):
    """pair.json"""

    base: _Side
    instruct: _Side
    sigma: dict[str, Any] | None = None
    verdict: str = ""
    reasons: list[str] = Field([])


class _Sigma(Fields):
    overall: Number | None
    modules: dict[str, Number | None] | None = None


class _Losses(Fields):
    base: Number | None
    instruct: Number | None


class Preflight(Fields):
    """preflight.json"""

    sigma: _Sigma
    not_measured: str | None = None
    sequences: Count | None = None
    method: str | None = None
    loss: _Losses | None = None
    cosine: Number | None = None
    modules: dict[str, Number | None] | None = None

    @model_validator(mode="after")
    def _measured_or_not(self) -> Self:
        if self.not_measured is None and None in (self.sequences, self.method, self.loss):
            raise ValueError("expected either `not_measured`, or `sequences`, `method` and `loss`")
        return self


class _Example(Fields):
    source: str
    text: str


class _Suspect(Fields):
    rows: Count
    examples: list[_Example]


class _Replay(Fields):
    rows_used: Count
    data: str = ""
    rows_dropped: Counts = Field({})


class _Newest(Fields):
    note: str
    oldest_in_test: str | None = None


class _Tokens(Fields):
    rows: Count
    median: Number | None = None
    max: Number | None = None
    too_long_share: Number | None = None
    max_length: Count | None = None


class _Found(Fields):
    source: str
    item: str
    rule: str


class _Contaminated(Fields):
    items: Count | None = None
    count: Count = 0
    rows: list[_Found] = Field([])


class Data(Fields):
    """data-report.json"""

    rows_read: Count
    rows_used: Count
    rows_dropped: Counts
    fields_ignored: Counts = Field({})
    files_not_read: list[str] = Field([])
    suspect: dict[str, _Suspect] = Field({})
    splits: Counts
    replay: _Replay | None = None
    newest: _Newest | None = None
    tokens: dict[str, _Tokens] = Field({})
    contaminated: _Contaminated | None = None
    not_compared: list[str] = Field([])
    digest: str


class _Token(Fields):
    token: str
    id: Count
    embedding: str = ""
    head: str = ""


class _Stops(Fields):
    prompts: Count
    stopped_before: Count
    stopped_after: Count
    max_new_tokens: Count


class _Start(Fields):
    start: str
    version: Count | None = None
    reason: str | None = None


class Trainer(Fields):
    """`trainer` of train.json and delta.json"""

    name: str | None
    facts: dict[str, Any]
    not_known: list[str]
    unreadable: list[str]


class _Rows(Fields):
    rows: Count


class _Used(Fields):
    replay: _Rows | None = None


class Training(Fields):
    """train.json"""

    method: str | None = None
    seed: Count | None = None
    steps: Count | None = None
    tokens: Count | None = None
    first_loss: Number | None = None
    last_loss: Number | None = None
    valid_loss: Number | None = None
    untrained_tokens: list[_Token] | None = None
    render: dict[str, Any] | None = None
    stops: _Stops | None = None
    versions: dict[str, Any] | None = None
    start: _Start | None = None
    trainer: Trainer | None = None
    command: str | None = None
    settings: dict[str, Any] | None = None
    rows: _Used = _Used()
    model_digest: str | None = None


class Step(Fields):
    """a line of metrics.jsonl"""

    step: Count
    loss: Number | None = None
    valid_loss: Number | None = None


class _Piece(Fields):
    text: str
    learned: bool


class Sample(Fields):
    """a line of samples.jsonl"""

    left_out: Count | None = None
    pieces: list[_Piece]
    rejected: str | None = None


class _Against(Fields):
    digest: str


class Delta(Fields):
    """delta.json"""

    kind: str
    base: _Against
    tensors: dict[str, Any] = Field(max_length=TENSORS)
    created_by: str | None = None
    trainer: Trainer | None = None
    train: dict[str, Any] | None = None


class _Norms(Fields):
    weight_norm: Norm
    delta_norm: Norm
    energy: Number | None = None
    cosine: Number | None = None
    unchanged: Number | None = None


class _Classes(Fields):
    grafted: Count
    untouched: Count
    left_out: Count


class Receipt(Fields):
    """receipt.json"""

    classes: _Classes
    retention: _Norms | None = None
    grafted: dict[str, _Norms] = Field({}, max_length=TENSORS)
    untouched: dict[str, str] = Field({}, max_length=TENSORS)
    left_out: list[str] | dict[str, Any] = Field([])


class Recipe(Fields):
    """recipe.json"""

    scope: Literal["all", "linear"] | list[str]
    dtype: str
