"""Finds the data files of a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from shadowft_core.errors import DataError
from shadowft_core.files.rows import PACKED, SUFFIXES, format_of, is_text

_DATASET_INFO = ("state.json", "dataset_info.json", "dataset_dict.json")  # the datasets library writes them


def data_files(place: Path) -> tuple[list[Path], list[Path]]:
    """The data files in a folder and its subfolders, sorted by path, and the other files there.

    `place` may also be one file. Raises DataError if there is no data file.
    """
    kinds = f"{', '.join(SUFFIXES)} (text files also as {' or '.join(PACKED)})"
    if not place.exists():
        raise DataError(f"{place}: no such file or folder; correct the path, or prepare.data in params.yaml")
    if not place.is_dir():
        _require_file(place)
        if not format_of(place):
            raise DataError(f"{place}: expected one of {kinds}, found {place.suffix!r}; convert it")
        return [place], []
    files = sorted(path for path in _walk(place) if not _is_dataset_info(path))
    read = [path for path in files if format_of(path) and not _is_hidden(path, place) and not _is_cache(path)]
    for path in read:
        _require_file(path)
    if not read:
        found = ", ".join(path.name for path in files[:3]) or "no file"
        raise DataError(
            f"{place}: expected data files, {kinds}, found {found}; put the data there or name another folder"
        )
    known = set(read)
    return read, [path for path in files if path not in known]


def _walk(place: Path) -> Iterator[Path]:
    """Everything in a folder and its subfolders that is no folder. Links to folders are listed, not followed."""
    for folder, folders, names in os.walk(place, onerror=_refuse_folder):
        yield from (path for name in folders if (path := Path(folder, name)).is_symlink())
        yield from (Path(folder, name) for name in names)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder is not readable: {error.strerror}; change its permissions")


def _require_file(path: Path) -> None:
    """Raises DataError for a link to no file, a pipe or a device, and for a name that is not one line of UTF-8."""
    if not path.is_file():
        kind = "a link that leads to no file" if path.is_symlink() else "a pipe, socket or device"
        raise DataError(f"{path}: expected a file, found {kind}; remove or rename it")
    if not is_text(path.as_posix()) or "\n" in path.as_posix():
        raise DataError(f"{path.as_posix()!r}: expected a file name in UTF-8 and of one line; rename it")


def _is_hidden(path: Path, place: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(place).parts)


def _is_dataset_info(path: Path) -> bool:
    """Whether a file describes a dataset saved by the datasets library: Arrow files are in its folder or below."""
    return path.name in _DATASET_INFO and any(path.parent.rglob("*.arrow"))


def _is_cache(path: Path) -> bool:
    """Whether a file is a cache that `map` of the datasets library wrote into the folder of a saved dataset."""
    return path.name.startswith("cache-") and path.suffix == ".arrow" and (path.parent / "state.json").is_file()
