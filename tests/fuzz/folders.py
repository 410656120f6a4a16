"""What stands in the folder of a target, before and after a read."""

import os
import stat
from pathlib import Path

from tests.fuzz.damage import Place


def put(path: Path, content: bytes | Place, outside: Path) -> None:
    """Replace a file."""
    path.unlink()
    if not isinstance(content, Place):
        path.write_bytes(content)
    elif content == Place.EMPTY:
        path.touch()
    elif content == Place.FOLDER:
        path.mkdir()
    elif content == Place.PIPE:
        os.mkfifo(path)
    elif content == Place.SOCKET:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif content != Place.MISSING:
        targets = {Place.LOOP: path, Place.NOWHERE: path.with_name("nowhere"), Place.OUTSIDE: outside}
        path.symlink_to(targets.get(content, Path("/dev/zero")))


def listed(folder: Path) -> dict[str, tuple[int, ...]]:
    """Mode, inode, size and time of everything below a folder."""
    found = {}
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            about = os.lstat(os.path.join(above, name))
            size = () if stat.S_ISDIR(about.st_mode) else (about.st_size, about.st_mtime_ns)
            found[os.path.relpath(os.path.join(above, name), folder)] = (about.st_mode, about.st_ino, *size)
    return found


def left_behind(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]], published: bool) -> str | None:
    """What was left in the arena, or changed, that should not be; None if nothing."""
    odd = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    odd = {name for name in odd if not (published and (name == "out" or name.startswith("out/")))}
    return f"{min(odd)}" if odd else None


def special(folder: str, names: list[str]) -> list[str]:
    """Names that are neither files, folders nor links: not kept."""
    kinds = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
    return [
        name for name in names if not any(is_kind(os.lstat(os.path.join(folder, name)).st_mode) for is_kind in kinds)
    ]
