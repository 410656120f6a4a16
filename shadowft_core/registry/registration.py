"""A registration: everything that is sent to MLflow about a run, stored on disk until MLflow has it.

`var/pending/NUMBER-KEY-PID/` has registration.json and the files to attach. It is written before the first request to
MLflow and removed once the version exists. So neither an outage nor a killed process loses a registration, and the next
run may overwrite work/.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from shadowft_core.errors import RegistryError
from shadowft_core.files import (
    Record,
    bytes_digest,
    canonical_json,
    new_folder,
    read_record,
    read_regular,
    write_atomically,
)
from shadowft_core.limits import JSON_BYTES, RECORD_BYTES
from shadowft_core.registry.rebuild import parse_recipe
from shadowft_core.verdict.verdictfile import parse_verdict

PENDING = Path("var/pending")
_FACTS, _FILES = "registration.json", "files"


@dataclass(frozen=True)
class Registration:
    """The content of a version and its run: a few kB and the report."""

    name: str
    """name of the registered model"""
    key: str
    """digest of dvc.lock and recipe; one version per key"""
    decision: str
    recipe: dict[str, Any]
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    datasets: list[dict[str, str]]
    """per split: name, context, digest, rows, source"""
    files: dict[str, bytes]


def key_of(recipe: dict[str, Any]) -> str:
    """The digest of dvc.lock and recipe; registering the same key again makes no second version."""
    recipe_digest = bytes_digest(canonical_json(recipe))
    return bytes_digest(canonical_json({"lock": recipe["lineage"]["lock"], "recipe": recipe_digest}))


def tags_of(recipe: dict[str, Any]) -> dict[str, str]:
    """The tags of a version that follow from its recipe. They are checked against it."""
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
    } | _tags_of_arm(recipe)


def _tags_of_arm(recipe: dict[str, Any]) -> dict[str, str]:
    """Arm and route, which recipes of earlier versions do not name."""
    if "arm" not in recipe:
        return {}
    return {"shadowft.arm": str(recipe["arm"]), "shadowft.route": str(recipe["arm"]).removesuffix("_scaled")}


def keep(registration: Registration, pending: Path) -> Path:
    """Add a registration to the waiting ones, unless its key already waits; return its folder."""
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
    """The folders of waiting registrations, oldest first."""
    return sorted(pending.glob("[0-9]*-*-*")) if pending.is_dir() else []


def waiting(pending: Path = PENDING) -> list[str]:
    """One line per waiting registration: model name, verdict and folder; oldest first."""
    lines = []
    for folder in waiting_in(pending):
        try:
            if (kept := load(folder)) is not None:
                lines.append(f"{kept.name} (verdict {kept.decision}) in {folder}")
        except RegistryError as error:
            lines.append(str(error))
    return lines


def waits(name: str, pending: Path = PENDING) -> bool:
    """Whether a registration of this model is waiting; damaged registrations do not count."""
    for folder in waiting_in(pending):
        with suppress(RegistryError):
            if (kept := load(folder)) is not None and kept.name == name:
                return True
    return False


class _Dataset(Record):
    name: str
    context: str
    digest: str
    rows: str
    source: str


class _Facts(Record):
    """registration.json"""

    format: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    key: str = Field(pattern=r"^sha256:[0-9a-f]{1,64}$")
    decision: str
    recipe: dict[str, Any]
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    datasets: list[_Dataset]


def load(folder: Path) -> Registration | None:
    """Read a waiting registration; None when another process has sent and removed it.

    Raises RegistryError when it is damaged.
    """
    remedy = "remove it and register the run again"
    try:
        if not os.path.lexists(folder / _FACTS):
            return None
        paths = sorted((folder / _FILES).iterdir())
        if len(paths) > 100:
            raise RegistryError(f"{folder / _FILES}: {len(paths)} files, expected the few of a registration; {remedy}")
        facts = read_record(folder / _FACTS, _Facts, remedy, error=RegistryError, largest=RECORD_BYTES)
        files = {path.name: read_regular(path, JSON_BYTES, RegistryError) for path in paths}
    except FileNotFoundError:
        return None
    except (RegistryError, NotADirectoryError) as error:
        if not os.path.lexists(folder / _FACTS):  # sent and removed meanwhile
            return None
        raise RegistryError(f"{folder}: not a registration ({error}); {remedy}") from None
    return Registration(**facts.model_dump(exclude={"format"}), files=files)


def require_whole(registration: Registration) -> None:
    """Raise RegistryError unless recipe and verdict are such as a version needs."""
    where = f"registration of {registration.name}, {registration.key}"
    parse_recipe(canonical_json(registration.recipe), where)
    parse_verdict(registration.files.get("verdict.json", b""), f"{where}: verdict.json", RegistryError)


def drop(folder: Path) -> None:
    """Remove a registration that was sent."""
    (folder / _FACTS).unlink(missing_ok=True)  # `load` returns None from here on
    shutil.rmtree(folder, ignore_errors=True)
