"""delta.json: its form, and the tensors that the weight files of a delta must contain by it."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from shadowft_core.delta.format import CERTIFICATE, DENSE, FACTORS, FORMAT, LARGEST, step
from shadowft_core.delta.trainer import Text, Trainer
from shadowft_core.errors import DeltaError
from shadowft_core.files import Record, bytes_digest, canonical_json, parse_json, read_regular
from shadowft_core.files.record import check_record
from shadowft_core.limits import ADAPTER_RANK, NAME_CHARACTERS, PART_ELEMENTS, RANK
from shadowft_core.weights.families.names import EMBEDDING, HEAD

Layout = dict[str, tuple[str, tuple[int, ...] | None]]
"""dtype and shape of each tensor of a file; shape None allows any number of bytes"""


def _one_line(name: str) -> str:
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        raise ValueError("a control character in a name")
    return name


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Name = Annotated[str, Field(max_length=NAME_CHARACTERS), AfterValidator(_one_line)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Share = Annotated[float, Field(ge=0)]


class _Entry(Record):
    """A tensor that changed."""

    shape: Annotated[list[Count], Field(max_length=RANK)]
    norm: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if 4 * math.prod(max(length, 1) for length in self.shape) >= 1 << 63:
            raise ValueError(f"shape {self.shape} is larger than any file")
        if step(tuple(self.shape)) > PART_ELEMENTS:
            raise ValueError(f"shape {self.shape} has rows of more than {PART_ELEMENTS} elements")
        return self


class Factored(_Entry):
    """The delta is `scaling * B A`."""

    form: Literal["factors"]
    rank: Annotated[int, Field(ge=1, le=2 * ADAPTER_RANK)]
    scaling: Annotated[float, Field(gt=0, le=LARGEST)]
    digest_a: Digest
    digest_b: Digest
    error: Share | None = None

    @model_validator(mode="after")
    def _is_matrix(self) -> Self:
        if len(self.shape) != 2:
            raise ValueError(f"shape {self.shape} of a product of two factors, expected two lengths")
        return self


class Dense(_Entry):
    """The delta is stored value by value."""

    form: Literal["frames", "plain"]
    digest: Digest


class _Base(Record):
    digest: Digest
    tokenizer_digest: Digest | None
    tied: bool
    sample: Digest


class _Train(Record):
    digest: Digest
    data_digest: Text | None
    seed: int | None


class _LowRank(Record):
    budget: Annotated[float, Field(gt=0, lt=1)]
    error: Share


class _Ignored(Record):
    patterns: list[Text]
    names: dict[str, dict[Literal["base", "tuned"], list[Name]]]


class _Rows(Record):
    rows: Count
    ids: list[Annotated[str, Field(pattern=r"^[0-9]+(-[0-9]+)?$")]]


class _Tokens(Record):
    matched: Count
    moved: Count
    base_only: _Rows
    tuned_only: _Rows
    padding: _Rows


class DeltaRecord(Record):
    """delta.json (docs/delta-format.md)."""

    format: Literal[2]
    kind: Literal["lora", "dense", "lowrank"]
    base: _Base
    tensors: Annotated[dict[Name, Annotated[Factored | Dense, Field(discriminator="form")]], Field(min_length=1)]
    train: _Train | None = None
    trainer: Trainer | None = None
    lowrank: _LowRank | None = None
    waivers: list[Literal["unrelated"]] = Field(default_factory=list)
    ignored: _Ignored | None = None
    tokens: dict[Name, _Tokens] = Field(default_factory=dict)
    created_by: Text = ""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        forms = {entry.form for entry in self.tensors.values()}
        if self.kind == "lora" and forms != {"factors"}:
            raise ValueError(f"kind lora with tensors of the forms {', '.join(sorted(forms))}")
        if (self.kind == "lowrank") != (self.lowrank is not None):
            raise ValueError(f"kind {self.kind} {'with' if self.lowrank else 'without'} the field lowrank")
        embeddings, heads = (
            [name for name in self.tensors if named.search(name) and "per_layer" not in name]
            for named in (EMBEDDING, HEAD)
        )
        if self.base.tied and len(embeddings) == len(heads) == 1:
            raise ValueError(
                f"base.tied says that one tensor serves as embedding and head, yet {embeddings[0]:.200} and "
                f"{heads[0]:.200} changed separately"
            )
        return self


class Certificate(NamedTuple):
    """The parsed delta.json."""

    fields: dict[str, Any]
    digest: str
    """SHA-256 of the file: the delta's digest"""
    expected: dict[str, Layout]
    """by weight file"""


def read_certificate(path: Path) -> Certificate:
    """Read delta.json of a delta folder. Raises DeltaError if it is missing, of another format, edited or damaged."""
    file = path / CERTIFICATE
    if not file.exists():
        raise DeltaError(f"{path}: no {CERTIFICATE}; pass a folder made by `shadowft extract`")
    data = read_regular(file, error=DeltaError)
    fields = parse_json(data, file, DeltaError, finite=True)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        found = fields.get("format") if isinstance(fields, dict) else fields
        raise DeltaError(f"{file}: delta format {found!r:.80}, expected {FORMAT}; extract the delta again")
    if canonical_json(fields) != data:
        raise DeltaError(f"{file}: not canonical JSON, so it was edited; fetch or extract it again")
    record = check_record(fields, DeltaRecord, file, "fetch or extract it again", error=DeltaError)
    expected: dict[str, Layout] = {DENSE: {}, FACTORS: {}}
    for name, entry in record.tensors.items():
        shape = tuple(entry.shape)
        if isinstance(entry, Factored):
            expected[FACTORS][f"{name}.lora_A"] = ("F32", (entry.rank, shape[1]))
            expected[FACTORS][f"{name}.lora_B"] = ("F32", (shape[0], entry.rank))
        else:
            expected[DENSE][name] = ("F32", shape) if entry.form == "plain" else ("U8", None)
    return Certificate(fields, bytes_digest(data), expected)
