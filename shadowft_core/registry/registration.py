"""One registration, whole and by itself: what MLflow is told of a run, kept on disk until MLflow has it.

`var/pending/NUMBER-KEY-PID/` holds registration.json and the files to attach. It is written before MLflow is asked for
anything and removed when the version stands, so neither an outage nor a killed process loses a registration, and the
next run may overwrite work/ meanwhile.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import RegistryError
from shadowft_core.files import bytes_digest, canonical_json, new_folder, read_json_object, write_atomically

PENDING = Path("var/pending")
_FACTS, _FILES = "registration.json", "files"


@dataclass(frozen=True)
class Registration:
    """Everything a version and its run are made of; a few kB and the report."""

    name: str
    """of the registered model"""
    key: str
    """digest of dvc.lock and recipe: registering is idempotent by it"""
    decision: str
    recipe: dict[str, Any]
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    datasets: list[dict[str, str]]
    """per split: name, context, digest, rows, source"""
    files: dict[str, bytes]


def key_of(recipe: dict[str, Any]) -> str:
    """What makes registering idempotent: the digest of dvc.lock and recipe."""
    recipe_digest = bytes_digest(canonical_json(recipe))
    return bytes_digest(canonical_json({"lock": recipe["lineage"]["lock"], "recipe": recipe_digest}))


def tags_of(recipe: dict[str, Any]) -> dict[str, str]:
    """The tags of a version that follow from its recipe, so that they can be checked against it."""
    return {
        "shadowft.key": key_of(recipe),
        "shadowft.recipe": bytes_digest(canonical_json(recipe)),
        "shadowft.lock": str(recipe["lineage"]["lock"]),
        "shadowft.data": str(recipe["lineage"]["data"]),
        "shadowft.base": str(recipe["base"]["digest"]),
        "shadowft.instruct": str(recipe["instruct"]["digest"]),
        "shadowft.delta": str(recipe["deltas"][0]["digest"]),
        "shadowft.model": str(recipe["digest"]),
        "shadowft.scale": str(float(recipe["deltas"][0]["scale"])),
        "shadowft.verdict": str(recipe["verdict"]["digest"]),
        "shadowft.decision": str(recipe["verdict"]["decision"]),
    }


def keep(registration: Registration, pending: Path) -> Path:
    """Write a registration to disk, behind those that wait already; one that waits is not kept twice."""
    waiting = waiting_in(pending)
    label = registration.key.removeprefix("sha256:")[:16]
    for folder in waiting:
        if folder.name.split("-")[1] == label:
            return folder
    number = 1 + max((int(folder.name.split("-")[0]) for folder in waiting), default=0)
    out = pending / f"{number:06}-{label}-{os.getpid()}"  # two processes may choose the same number at once
    facts = asdict(registration)
    files = facts.pop("files")
    with new_folder(out) as folder:
        for name, data in files.items():
            write_atomically(folder / _FILES / name, data)
        write_atomically(folder / _FACTS, canonical_json({"format": 1} | facts))
    return out


def waiting_in(pending: Path) -> list[Path]:
    """The folders of registrations that wait, oldest first."""
    return sorted(pending.glob("[0-9]*-*-*")) if pending.is_dir() else []


def waiting(pending: Path = PENDING) -> list[str]:
    """The registrations that wait, one line each: model name, verdict and folder; oldest first."""
    lines = []
    for folder in waiting_in(pending):
        try:
            if (kept := load(folder)) is not None:
                lines.append(f"{kept.name} (verdict {kept.decision}) in {folder}")
        except RegistryError as error:
            lines.append(str(error))
    return lines


def load(folder: Path) -> Registration | None:
    """A kept registration; None when another process has sent and removed it meanwhile."""
    try:
        if not (folder / _FACTS).is_file():
            return None
        facts = read_json_object(folder / _FACTS)
        files = {path.name: path.read_bytes() for path in sorted((folder / _FILES).iterdir())}
    except FileNotFoundError:
        return None
    try:
        if facts.pop("format") != 1:
            raise TypeError("another format")
        return Registration(**facts, files=files)
    except (KeyError, TypeError) as error:
        raise RegistryError(f"{folder}: not a kept registration ({error}); register the run again, remove it") from None


def drop(folder: Path) -> None:
    """Forget a registration that was sent."""
    (folder / _FACTS).unlink(missing_ok=True)  # from here on nobody loads it
    shutil.rmtree(folder, ignore_errors=True)
