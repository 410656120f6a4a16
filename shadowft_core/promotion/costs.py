"""How long the stages of a run took: measured by the flow, kept between runs, valid for the present outputs only.

Each time is kept with the digest of the stage's entry in dvc.lock: command, inputs, parameters and outputs. So a time
of other data or settings is never shown as that of this run, and a stage that is run again for the same outputs keeps
its first time.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from shadowft_core.errors import InputError
from shadowft_core.files import Record, bytes_digest, canonical_json, read_record, reading, write_json_atomically
from shadowft_core.files.yamlfile import read_yaml
from shadowft_core.limits import RECORD_BYTES

COSTS, LOCK = Path("var/costs.json"), Path("dvc.lock")


class _Cost(Record):
    stage: str
    entry: str
    seconds: float = Field(ge=0)


class _Costs(Record):
    format: Literal[1] = 1
    costs: list[_Cost]


def record_cost(stage: str, seconds: float, file: Path = COSTS, lock: Path = LOCK) -> None:
    """Keep how long a stage took, unless its entry in dvc.lock is the one that a time was kept for."""
    entry = _entries(lock).get(stage)
    if entry is None:
        return
    kept = _kept(file)
    if kept.get(stage, {}).get("entry") != entry:
        kept.pop(stage, None)
        kept[stage] = {"entry": entry, "seconds": round(seconds, 2)}
        rows = [{"stage": name, **one} for name, one in kept.items()]
        write_json_atomically(file, {"format": 1, "costs": rows})


def costs_of(file: Path = COSTS, lock: Path = LOCK) -> list[dict[str, Any]]:
    """`{"stage", "seconds"}` of each stage whose present outputs were timed, in the order in which they ran."""
    entries = _entries(lock)
    return [
        {"stage": stage, "seconds": float(one["seconds"])}
        for stage, one in _kept(file).items()
        if entries.get(stage) == one["entry"]
    ]


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    with suppress(InputError):  # absent or damaged: the times are lost, nothing else
        kept = read_record(file, _Costs, "remove it", largest=RECORD_BYTES).costs
        return {row.stage: {"entry": row.entry, "seconds": row.seconds} for row in kept}
    return {}


def _entries(lock: Path) -> dict[str, str]:
    """Digest of the entry of each stage in dvc.lock; none outside a DVC repository."""
    if not lock.is_file():
        return {}
    with reading(lock, "run `dvc repro` again", InputError):
        stages = read_yaml(lock).get("stages") or {}
        return {name: bytes_digest(canonical_json(entry)) for name, entry in stages.items()}
