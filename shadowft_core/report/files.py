"""Reads the outputs of the stages. A file that is missing is None, and so is what an older version does not record."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shadowft_core.errors import EvaluationError
from shadowft_core.files import Record, bytes_digest, canonical_json, lines_of, read_regular
from shadowft_core.files.record import checked
from shadowft_core.limits import ITEMS, JSON_BYTES, RECORD_BYTES
from shadowft_core.report import forms

TRAINING = (
    "method",
    "seed",
    "steps",
    "tokens",
    "first_loss",
    "last_loss",
    "valid_loss",
    "untrained_tokens",
    "stops",
    "versions",
    "start",
    "trainer",
    "command",
)
"""fields of train.json that the page shows"""
_Found = TypeVar("_Found")


def by_route(routes: Sequence[str], read: Callable[[str], _Found | None]) -> dict[str, _Found]:
    """What `read` finds for each route, without those for which it finds nothing."""
    return {route: found for route in routes if (found := read(route)) is not None}


def optional(path: Path, form: type[Record], largest: int = RECORD_BYTES) -> dict[str, Any] | None:
    """The JSON object in a file of this form, or None if there is none. Raises EvaluationError if it is damaged."""
    if not os.path.lexists(path):
        return None
    raw = read_regular(path, largest, EvaluationError)
    found: dict[str, Any] = checked(raw, form, path, "run the stage that writes it again", error=EvaluationError)
    return found


def training(path: Path) -> dict[str, Any] | None:
    """train.json; a field of TRAINING that an older version, or another trainer, does not write is None."""
    found = optional(path, forms.Training)
    return None if found is None else dict.fromkeys(TRAINING) | found


def with_trainer(
    train: Mapping[str, dict[str, Any]], delta: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The trainings by route, with what the delta tells of one by another trainer where train.json lacks it."""
    found = dict(train)
    for route, facts in delta.items():
        if trainer := facts["trainer"]:
            known = {name: value for name, value in found.get(route, {}).items() if value is not None}
            found[route] = dict.fromkeys(TRAINING) | trainer["facts"] | known | {"trainer": trainer}
    return found


def steps(tuned: Path, train: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """The lines of metrics.jsonl; the validation loss after training is added where they lack it."""
    lines, found = _lines(tuned / "metrics.jsonl", forms.Step), train or {}
    if lines and found.get("valid_loss") is not None and "valid_loss" not in lines[-1]:
        lines.append({"step": found["steps"], "valid_loss": found["valid_loss"]})
    return lines


def samples(tuned: Path, routes: Sequence[str]) -> list[dict[str, Any]]:
    """The sequences that `train` wrote as text, of the first route with such a file; all routes read the same rows."""
    files = (tuned / route / "samples.jsonl" for route in routes)
    return next((found for file in files if (found := _lines(file, forms.Sample))), [])


def delta(path: Path) -> dict[str, Any] | None:
    """Digest, kind, Base, program, number of tensors, and the facts about another trainer, from a delta.json."""
    certificate = optional(path, forms.Delta, JSON_BYTES)
    if certificate is None:
        return None
    return {
        "digest": bytes_digest(canonical_json(certificate)),
        "kind": certificate["kind"],
        "base": certificate["base"]["digest"],
        "tensors": len(certificate["tensors"]),
        "created_by": certificate.get("created_by"),
        "trainer": certificate.get("trainer"),
        "recorded": certificate.get("train") is not None or certificate.get("trainer") is not None,
    }


def _lines(path: Path, form: type[Record]) -> list[dict[str, Any]] | None:
    """The JSON objects in the lines of a file. Raises EvaluationError if one is damaged, or there are too many."""
    if not os.path.lexists(path):
        return None
    found = []
    for number, line in lines_of(path, RECORD_BYTES, EvaluationError):
        if number > ITEMS:
            raise EvaluationError(f"{path}: more than {ITEMS} lines, the limit; run the stage that writes it")
        remedy = "run the stage that writes it again"
        found.append(checked(line, form, f"{path}:{number}", remedy, error=EvaluationError))
    return found
