"""Digests of files that have not changed since they were hashed: a model is hashed once, not at every stage.

As git does, a file is recognised by device, inode, size and the times of its last change (mtime and ctime, which
no user program can set back). A file changed less than `SETTLED` seconds before it was hashed is never remembered: a
second change within the clock's resolution could go unseen. Kept in `cache_folder()`.
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

SETTLED = 2.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def cache_folder() -> Path:
    """The cache of digests and rebuilt models: $SHADOWFT_CACHE, or ~/.cache/shadowft when that is empty.

    Raises InputError when it is empty and there is no home folder.
    """
    try:
        return Path(os.environ.get("SHADOWFT_CACHE") or "~/.cache/shadowft").expanduser()
    except RuntimeError:
        raise InputError("SHADOWFT_CACHE: not set, and there is no home folder; set it to a folder") from None


class DigestCache:
    """The digests of one file's tensors as they are remembered, and the way to remember them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stamp = _stamp(file)
        self._begun = time.time()
        self.digests: dict[str, str] = {}
        with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
            found = json.loads(self._place().read_bytes())
            if found["stamp"] == self._stamp and all(map(_DIGEST.fullmatch, found["digests"].values())):
                self.digests = found["digests"]

    def remember(self, digests: dict[str, str]) -> None:
        """Keep the digests of all tensors of the file, unless it changed meanwhile or shortly before."""
        with suppress(OSError):  # without a place to keep them they are made anew
            settled = self._begun - max(self._stamp[3], self._stamp[4]) / 1e9 > SETTLED
            if digests != self.digests and settled and _stamp(self.file) == self._stamp:
                write_json_atomically(self._place(), {"stamp": self._stamp, "digests": digests})
                self.digests = digests

    def _place(self) -> Path:
        name = hashlib.sha256(repr(self._stamp).encode()).hexdigest()
        return cache_folder() / "digests" / f"{name}.json"


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
