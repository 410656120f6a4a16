"""How long the stages of a run took: measured by the flow, kept between runs, valid for the present outputs only.

Each time is kept with the digest of the stage's entry in dvc.lock: command, inputs, parameters and outputs. So a time
of other data or settings is never shown as that of this run, and a stage that is run again for the same outputs keeps
its first time.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from shadowft_core.errors import InputError
from shadowft_core.files import bytes_digest, canonical_json, read_json_object, write_json_atomically
from shadowft_core.files.yamlfile import read_yaml

COSTS, LOCK = Path("var/costs.json"), Path("dvc.lock")


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
    with suppress(InputError, KeyError, TypeError):  # absent or damaged: the times are lost, nothing else
        return {
            str(row["stage"]): {"entry": str(row["entry"]), "seconds": float(row["seconds"])}
            for row in read_json_object(file)["costs"]
        }
    return {}


def _entries(lock: Path) -> dict[str, str]:
    """Digest of the entry of each stage in dvc.lock; none outside a DVC repository."""
    if not lock.is_file():
        return {}
    stages = read_yaml(lock).get("stages") or {}
    return {name: bytes_digest(canonical_json(entry)) for name, entry in stages.items()}
