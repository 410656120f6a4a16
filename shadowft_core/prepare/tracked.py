"""Data that DVC tracks: NAME.dvc beside a file or folder, and the digest that `shadowft data add` writes into it.

DVC links or copies a file from its cache without reading it again. So damage of the cache reaches the workspace
unnoticed, and `require_intact` reads all bytes each time. Digests of other files are cached by inode and times
(files/cache.py); these are not, because damage on a disk changes neither.
"""

import configparser
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.files import bytes_digest, canonical_json, file_digest, threaded
from shadowft_core.files.yamlfile import read_yaml

SUFFIX = ".dvc"
KEY = "shadowft"  # our field in `meta`; users may add others


@dataclass(frozen=True)
class Content:
    """Size and digest of a file or folder: the SHA-256 of the file, or of the folder's listing (`content_of`)."""

    digest: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Version:
    """The record in NAME.dvc. `origin` is the source of a download; `md5` is DVC's own digest."""

    content: Content
    version: str | None = None
    licence: str | None = None
    note: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    md5: str | None = None

    def title(self) -> str:
        """The record in one line, which is also `desc` in NAME.dvc."""
        words = [
            f"version {self.version}" if self.version else "",
            f"licence {self.licence}" if self.licence else "",
            self.note or "",
            f"from {self.origin['source']}" if self.origin else "",
        ]
        return "; ".join(filter(None, words)) or self.content.digest


def content_of(place: Path) -> Content:
    """Read a file, or all files of a folder, and return their digest.

    The digest of a folder is the SHA-256 of the canonical JSON `{path: digest of the file}`, with paths relative to
    the folder and `/` between their parts. Hidden files do not count, as in `prepare`. Raises DataError for a folder
    without files and for a name that is not UTF-8.
    """
    if place.is_file():
        return Content(file_digest(place), 1, place.stat().st_size)
    files = visible_files(place)
    if not files:
        raise DataError(f"{place}: expected a file, or a folder with files, found none; put the data there")
    names = [path.relative_to(place).as_posix() for path in files]
    listing = dict(zip(names, threaded(file_digest, files), strict=True))
    try:
        digest = bytes_digest(canonical_json(listing))
    except UnicodeEncodeError:
        odd = next(name for name in names if not name.isprintable())
        raise DataError(f"{place}: expected UTF-8 file names, found {odd!r}; rename it") from None
    return Content(digest, len(files), sum(path.stat().st_size for path in files))


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders, sorted by path, without hidden ones."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def version_of(place: Path) -> Version | None:
    """The record in NAME.dvc beside a file or folder; None if there is no such file, or `data add` did not write it.

    Raises DataError for a malformed record, ParamsError for a file that is not YAML.
    """
    record = place.with_name(place.name + SUFFIX)
    if not record.is_file():
        return None
    try:
        raw = read_yaml(record) or {}
        about = (raw.get("meta") or {}).get(KEY)
        if about is None:
            return None
        return Version(
            content=Content(str(about["digest"]), int(about["files"]), int(about["bytes"])),
            version=about.get("version"),
            licence=about.get("licence"),
            note=about.get("note"),
            origin=about.get("origin") or {},
            md5=raw["outs"][0].get("md5"),
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise DataError(
            f"{record}: expected meta.{KEY} with digest, files and bytes; restore the file with git, or run "
            f"`shadowft data add {place}`"
        ) from None


def require_intact(data: Path) -> dict[Path, Version]:
    """Compare data with the digests that `data add` recorded, and return the records by the path of their data.

    Reads each recorded file or folder that is `data`, that contains it, or that is in it. Returns {} without any.
    Raises DataError, with both digests and the remedy, if one differs.
    """
    found = {}
    for place in _recorded(data):
        if version := version_of(place):
            now = content_of(place) if place.exists() else None
            if now is None or now.digest != version.content.digest:
                raise DataError(_difference(place, version, now))
            found[place] = version
    return found


def _recorded(data: Path) -> Iterator[Path]:
    """The paths that a NAME.dvc beside them may record: `data`, the folders around it, and what is in it."""
    place = Path(os.path.abspath(data))  # not resolved: DVC may link a file to its cache
    for folder in (place, *place.parents):
        if (folder / ".dvc").is_dir() or not folder.name:
            break
        yield folder
    if place.is_dir():
        for record in visible_files(place):
            if record.suffix == SUFFIX:
                yield record.with_name(record.name.removesuffix(SUFFIX))


def _difference(place: Path, version: Version, now: Content | None) -> str:
    shown = Path(os.path.relpath(place))
    name = f" (version {version.version})" if version.version else ""
    found = now.digest if now else "no such file or folder"
    return f"{shown}: expected {version.content.digest}{name}, as {shown}{SUFFIX} records, found {found}; " + _remedy(
        place, shown, version.md5
    )


def _remedy(place: Path, shown: Path, md5: str | None) -> str:
    damaged = _damaged(_cache_of(place), md5 or "")
    if damaged:
        names = " ".join(os.path.relpath(path) for path in damaged[:5])
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        return f"DVC's cache is damaged: remove {names}{more} and {shown}, then run `dvc pull {shown}{SUFFIX}`"
    return (
        f"if you changed it, run `shadowft data add {shown} --version NEW`; if not, run `dvc checkout --force "
        f"{shown}{SUFFIX}`"
    )


def _damaged(cache: Path | None, md5: str) -> list[Path]:
    """The files in DVC's cache, of a tracked file or folder, that differ from DVC's digest."""
    if cache is None or not md5:
        return []
    path = cache / md5[:2] / md5[2:]
    if _is_damaged(path, md5):
        return [path]
    if not md5.endswith(".dir") or not path.is_file():
        return []
    members = {one["md5"] for one in json.loads(path.read_bytes())}
    return sorted(path for one in members if _is_damaged(path := cache / one[:2] / one[2:], one))


def _cache_of(place: Path) -> Path | None:
    """The folder of DVC's cached files by the settings of the repository; None outside of a repository."""
    for folder in place.parents:
        if (folder / ".dvc").is_dir():
            settings = configparser.ConfigParser(interpolation=None, strict=False)
            settings.read([folder / ".dvc/config", folder / ".dvc/config.local"], encoding="utf-8")
            return folder / ".dvc" / settings.get("cache", "dir", fallback="cache") / "files" / "md5"
    return None


def _is_damaged(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return found != md5.removesuffix(".dir")
