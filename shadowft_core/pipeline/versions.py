"""Adds versions of data to DVC, and records version, licence, note, origin and SHA-256 in NAME.dvc."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError, InputError
from shadowft_core.pipeline.dvc_stages import repository
from shadowft_core.prepare.tracked import KEY, SUFFIX, Version, content_of, version_of, visible_files
from shadowft_core.remote.data import download_data


def download_and_add(
    reference: str,
    out: Path,
    version: str | None = None,
    licence: str | None = None,
    note: str | None = None,
    endpoint: str | None = None,
    region: str | None = None,
) -> tuple[Version, bool]:
    """Download `hf:...` or `s3://...` into the folder `out`, and add it with its origin and its licence, if known.

    Returns and raises what `add_data` does, and raises what `download_data` does. Raises InputError if `out` exists and
    DVC does not track it, because the download would replace it.
    """
    with repository():
        pass  # refuse a folder outside of a repository before the download
    if out.exists() and not out.with_name(out.name + SUFFIX).exists():
        raise InputError(f"{out}: the folder exists, and DVC does not track it; choose another --out, or move it")
    origin = download_data(reference, out, endpoint, region)
    return add_data(out, version, licence or origin.licence, note, origin.fields)


def add_data(
    place: Path,
    version: str | None = None,
    licence: str | None = None,
    note: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> tuple[Version, bool]:
    """Track a file or folder with DVC and record its digest, version, licence, note and origin in NAME.dvc.

    Returns the record, and whether NAME.dvc changed. Adding the same bytes again changes only the given fields. Other
    bytes are a new version, which keeps only the licence. Raises DataError if there is no such data, or if a recorded
    version would get other bytes. Raises InputError if .dvcignore excludes a part of the data, outside of a DVC
    repository, and if DVC fails.
    """
    if not place.exists():
        raise DataError(
            f"{place}: no such file or folder; correct the path, or name a data set of a hub as hf:OWNER/NAME@REVISION"
        )
    if not place.name:
        raise DataError(f"{place}: the record of a version lies next to its data; name a file or folder below this one")
    record = place.with_name(place.name + SUFFIX)
    with repository() as opened:
        content, earlier = content_of(place), version_of(place)
        same_bytes = earlier is not None and earlier.content.digest == content.digest
        if earlier and earlier.version and not same_bytes and version in (None, earlier.version):
            raise DataError(
                f"{place}: version {earlier.version} is recorded as {earlier.content.digest}, found {content.digest}; "
                f"name the new version with --version, or restore the data with `dvc checkout --force {record}`"
            )
        _refuse_ignored(opened, place)
        kept = earlier if earlier and same_bytes else Version(content, licence=earlier.licence if earlier else None)
        new = replace(
            kept,
            version=version or kept.version,
            licence=licence or kept.licence,
            note=note or kept.note,
            origin=dict(origin or kept.origin),
        )
        before = record.read_bytes() if record.is_file() else None
        [stage] = opened.add(os.fspath(place))
        stage.meta = {**(stage.meta or {}), KEY: _fields(new)}
        stage.desc = new.title()
        stage.dump()
    return new, record.read_bytes() != before


def _fields(version: Version) -> dict[str, Any]:
    fields = {
        "digest": version.content.digest,
        "files": version.content.files,
        "bytes": version.content.bytes,
        "version": version.version,
        "licence": version.licence,
        "note": version.note,
        "origin": version.origin,
    }
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _refuse_ignored(opened: Any, place: Path) -> None:
    """Raises InputError for a file that .dvcignore excludes, because a clone would not have it."""
    if not place.is_dir():
        return
    tracked = set(opened.dvcignore.find(opened.fs, os.path.abspath(place)))
    ignored = [path for path in visible_files(place) if os.path.abspath(path) not in tracked]
    if ignored:
        raise InputError(
            f"{ignored[0]}: .dvcignore excludes {len(ignored)} files of {place}, so another clone would not have them; "
            "move them, or change .dvcignore"
        )
