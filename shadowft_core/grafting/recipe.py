"""The typed fields of recipe.json, of receipt.json beside it, and of the sweep file that a graft takes its scale from.

Files from earlier versions lack some fields, and a registered recipe has more; both can be read.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from shadowft_core.delta.certificate import Digest
from shadowft_core.delta.trainer import Trainer
from shadowft_core.files import Fields, Record

Pair = Annotated[tuple[str, float], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
"""(glob pattern, number)"""
Scope = str | list[str]
Scale = Annotated[float, Field(ge=0, le=10)]
"""as in params.yaml"""


class MergeFields(Record):
    """The rule that merged the deltas; options.Merge says which fields each rule takes."""

    rule: str = "sum"
    density: float | None = None
    seed: int | None = None


class OptionsFields(Fields):
    """The options of a graft in its recipe."""

    scope: Scope
    dtype: str
    merge: MergeFields = MergeFields()
    scale_for: list[Pair] = Field(default_factory=list)
    waivers: list[str] = Field(default_factory=list)
    ignore: list[str] = Field(default_factory=list)


class AddedDelta(Fields):
    """A delta and its scale. A stored delta has a digest, a difference has those of its two models."""

    scale: float
    digest: Digest | None = None
    base: Digest | None = None
    tuned: Digest | None = None


class DeltasFields(Fields):
    """The deltas of a recipe, in the order in which they were added."""

    deltas: list[AddedDelta] = Field(min_length=1)


class Instruct(Fields):
    digest: Digest


class Recipe(OptionsFields, DeltasFields):
    """recipe.json."""

    format: Literal[1]
    digest: Digest
    instruct: Instruct
    files: dict[str, Digest] = Field(default_factory=dict)
    regrafted_from: Digest | None = None


class Retention(Fields):
    """Norms of weights and delta, and how much of the delta reached the output."""

    weight_norm: Annotated[float, Field(ge=0)]
    delta_norm: Annotated[float, Field(ge=0)]
    cosine: float
    energy: float
    unchanged: float


class Travel(Fields):
    energy: float
    stays: dict[str, float]


class Receipt(Fields):
    """receipt.json."""

    format: Literal[1]
    onto_base: bool
    classes: dict[str, int]
    retention: Retention | None
    grafted: dict[str, Retention]
    untouched: dict[str, str]
    left_out: list[str]
    tokens: dict[str, dict[str, Any]]
    travel: Travel | None = None
    ignored: dict[str, dict[str, list[str]]] = Field(default_factory=dict)
    trained: dict[Digest, Trainer] = Field(default_factory=dict)


class Swept(Fields):
    """A sweep file; `scale` is null where none was chosen."""

    format: Literal[1]
    scale: Scale | None = None
    scope: Scope | None = None
    factors: list[Annotated[tuple[str, Scale], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]] = (
        Field(default_factory=list)
    )
