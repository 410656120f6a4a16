"""Typed reading of JSON: every file that this package wrote, and the fields that it reads from other files.

A record is a frozen pydantic model. Types are not converted: text is not a number, 1 is not true.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from shadowft_core.errors import CheckpointError
from shadowft_core.files.jsonfile import Error, parse_json, read_regular
from shadowft_core.limits import JSON_BYTES


class Record(BaseModel):
    """A file of ours: every field is known, and no number is NaN or infinite."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    @field_validator("format", mode="before", check_fields=False)
    @classmethod
    def _number_of_format(cls, value: object) -> object:
        """Refuse what equals a format's number without being one: Literal[1] accepts true and 1.0."""
        if isinstance(value, bool | float):
            raise ValueError("Input should be a valid integer")
        return value


class Fields(Record):
    """The fields that we read from somebody else's file, which may have more."""

    model_config = ConfigDict(extra="ignore")


R = TypeVar("R", bound=BaseModel)


def read_record(
    path: Path, form: type[R], remedy: str, *, error: Error = CheckpointError, largest: int = JSON_BYTES
) -> R:
    """Read a JSON file as `form`. Raises `error` as `read_regular` and `parse_record` do."""
    return parse_record(read_regular(path, largest, error), form, path, remedy, error=error)


def parse_record(raw: bytes, form: type[R], where: object, remedy: str, *, error: Error = CheckpointError) -> R:
    """The JSON value in `raw` as `form`; `where` names its origin in errors, `remedy` says what to do.

    Raises `error` as `parse_json` does, and for a field that is missing, unknown or of another type or range: it
    names the field, what is expected and the value.
    """
    parse_json(raw, where, error, finite=form.model_config.get("allow_inf_nan") is False)
    try:
        return form.model_validate_json(raw)
    except ValidationError as problem:
        raise error(f"{where}: {first_problem(problem)}; {remedy}") from None


def check_record(value: object, form: type[R], where: object, remedy: str, *, error: Error = CheckpointError) -> R:
    """A parsed JSON value as `form`. Raises `error` as `parse_record` does for a field."""
    try:
        return form.model_validate(value)
    except ValidationError as problem:
        raise error(f"{where}: {first_problem(problem)}; {remedy}") from None


def first_problem(problem: ValidationError) -> str:
    """The first field that is wrong, what is expected, and the value found."""
    first = problem.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"field {field:.200} is missing"
    if first["type"] == "extra_forbidden":
        return f"unknown field {field:.200}"
    expected = first["msg"].removeprefix("Value error, ")
    found = "" if isinstance(first["input"], dict | list) else f", found {first['input']!r:.80}"
    return f"{f'{field:.200}: ' if field else ''}{expected:.400}{found}"


def checked(raw: bytes, form: type[BaseModel], where: object, remedy: str, *, error: Error = CheckpointError) -> Any:
    """The JSON value in `raw` as it is, once `parse_record` has accepted it as `form`."""
    parse_record(raw, form, where, remedy, error=error)
    return json.loads(raw)
