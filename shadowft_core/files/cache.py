"""The cache folder. It holds the digests of unchanged files, so that a model is hashed once and not at every stage.

As in git, a file is identified by device, inode, size, mtime and ctime; no program can set ctime back. The digests of a
file that changed less than `SETTLED` seconds before it was opened are not cached: a second change within the clock's
resolution would go unnoticed.
"""

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from shadowft_core.errors import InputError
from shadowft_core.files.jsonfile import write_json_atomically

SETTLED = 2.0  # seconds
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def cache_folder() -> Path:
    """The folder for digests and rebuilt models: $SHADOWFT_CACHE, or ~/.cache/shadowft when it is unset or empty.

    Raises InputError when it is unset or empty and the user has no home folder.
    """
    try:
        return Path(os.environ.get("SHADOWFT_CACHE") or "~/.cache/shadowft").expanduser()
    except RuntimeError:
        raise InputError("SHADOWFT_CACHE: not set, and there is no home folder; set it to a folder") from None


class DigestCache:
    """The cached tensor digests of one file: `digests` is empty when the file is new or has changed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stamp = _stamp(file)
        self._opened = time.time()
        self.digests: dict[str, str] = {}
        with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
            cached = json.loads(self._path().read_bytes())
            if cached["stamp"] == self._stamp and all(map(_DIGEST.fullmatch, cached["digests"].values())):
                self.digests = cached["digests"]

    def remember(self, digests: dict[str, str]) -> None:
        """Cache the digests of all tensors of the file, unless it changed after, or shortly before, it was opened."""
        with suppress(OSError):  # a cache that cannot be written costs time only
            settled = self._opened - max(self._stamp[3], self._stamp[4]) / 1e9 > SETTLED
            if digests != self.digests and settled and _stamp(self.file) == self._stamp:
                write_json_atomically(self._path(), {"stamp": self._stamp, "digests": digests})
                self.digests = digests

    def _path(self) -> Path:
        name = hashlib.sha256(repr(self._stamp).encode()).hexdigest()
        return cache_folder() / "digests" / f"{name}.json"


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
