"""Copies of training checkpoints, so that another machine can resume: `checkpoints/KEY/checkpoint-N/` for each.

`parts/<hex>` are chunks of its files, by digest; `copy.json` names the files and their chunks. It is written last and
removed first, so a copy that has one is complete. A training removes its own copies; `prune` and `check` read none.
"""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from shadowft_core.errors import StoreCorruptError, StoreError, StoreUnreachableError, say
from shadowft_core.files import Record, bytes_digest, canonical_json, parse_record
from shadowft_core.store.backends import Backend, Entry
from shadowft_core.store.manifest import LARGEST_MANIFEST, File
from shadowft_core.store.transfer import Piece, Progress, each

CHECKPOINTS, INDEX = "checkpoints", "copy.json"
_KEY = re.compile(r"checkpoints/([0-9a-f]+)/checkpoint-(\d+)/(.+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class Index(Record):
    """Content of copy.json: the files by their path in the checkpoint."""

    format: int = Field(1, ge=1, le=1)
    files: dict[str, File] = Field(min_length=1, max_length=10_000)


class CheckpointCopies:
    """The copies of one run, whose folder of checkpoints is called `key`. One process at a time may send or remove.

    All methods raise StoreUnreachableError and StoreError.
    """

    def __init__(self, backend: Backend, key: str, chunk: int) -> None:
        """`chunk` is the largest object in bytes."""
        self.location = f"{backend.location}: {CHECKPOINTS}/{key}"
        self._backend, self._key, self._chunk = backend, key, chunk

    def steps(self) -> list[int]:
        """The steps of the complete copies, ascending. Prints the size of those of other runs."""
        steps, others, size = [], set(), 0
        for entry in self._backend.entries(CHECKPOINTS):
            if not (found := _KEY.fullmatch(entry.key)):
                continue
            if found[1] != self._key:
                others.add(found[1])
                size += entry.size
            elif found[3] == INDEX:
                steps.append(int(found[2]))
        if others:
            say(
                f"train: {self._backend.location} also holds {size / 1e9:.1f} GB of checkpoints of {len(others)} other "
                f"runs, unfinished or going on; remove what you will not resume below {CHECKPOINTS}/"
            )
        return sorted(steps)

    def send(self, folder: Path, keep: int) -> None:
        """Copy a folder `checkpoint-N` that does not change meanwhile, then remove all but the newest `keep` up to N.

        Raises OSError if a file, or a store in a folder, cannot be read or written.
        """
        step, entries = int(folder.name.rpartition("-")[2]), self._entries()
        self._delete(entry for at, entry in entries if at == step)  # of an earlier try, or a copy that was passed over
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {path: path.stat().st_size for path in paths}
        progress = Progress(f"send {folder.name}", sum(sizes.values()))

        def one(piece: Piece) -> tuple[str, int]:
            data = piece.read()
            digest = bytes_digest(data)
            self._backend.put_if_absent(self._part(step, digest), data, digest, ask=False)
            progress.add(piece.size, piece.size)
            return digest, piece.size

        cut = {
            path: [Piece(path, at, min(self._chunk, size - at)) for at in range(0, size, self._chunk)]
            for path, size in sizes.items()
        }
        sent = each(one, ((piece,) for pieces in cut.values() for piece in pieces))
        files = {
            path.relative_to(folder).as_posix(): File(bytes=sizes[path], chunks=[next(sent) for _ in pieces])
            for path, pieces in cut.items()
        }
        raw = canonical_json(Index(files=files).model_dump())
        self._backend.put_if_absent(self._at(step, INDEX), raw, bytes_digest(raw))
        complete = {at for at, entry in entries if entry.key == self._at(at, INDEX) and at < step} | {step}
        kept = sorted(complete)[-keep:]
        self._delete(entry for at, entry in entries if at != step and at not in kept)

    def fetch(self, step: int, folder: Path) -> None:
        """Write the copy of this step to a new folder. Every chunk is verified; after an error the folder is partial.

        Raises StoreCorruptError if the copy is damaged or incomplete, StoreError if the disk lacks space.
        """
        where = self._at(step, INDEX)
        found = self._backend.read(where, LARGEST_MANIFEST)
        files = parse_record(found[0] if found else b"", Index, where, "remove it", error=StoreCorruptError).files
        if bad := [name for name in files if len(name) > 300 or not _NAME.fullmatch(name)]:
            raise StoreCorruptError(f"{where} names the file {bad[0][:80]!r}")
        total = sum(file.bytes for file in files.values())
        folder.mkdir(parents=True)
        if (free := shutil.disk_usage(folder).free) < total:
            raise StoreError(f"{folder}: {free} bytes are free, checkpoint-{step} needs {total}; free some space")
        progress = Progress(f"fetch checkpoint-{step}", total)

        def one(name: str, digest: str, size: int, offset: int) -> None:
            with (folder / name).open("r+b") as sink:
                sink.seek(offset)
                self._backend.get(self._part(step, digest), size, digest, sink)
                sink.flush()
                os.fdatasync(sink.fileno())
            progress.add(size, size)

        work = []
        for name, file in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch(exist_ok=False)
            offset = 0
            for digest, size in file.chunks:
                work.append((name, digest, size, offset))
                offset += size
        try:
            for _ in each(one, work):
                pass
        except StoreUnreachableError:
            raise
        except StoreError as error:  # without the remedy, which is for deltas
            raise StoreCorruptError(str(error).rpartition("; ")[0]) from None

    def remove(self) -> None:
        """Remove all copies of this run."""
        self._delete(entry for _, entry in self._entries())

    def _entries(self) -> list[tuple[int, Entry]]:
        """All objects of this run with their steps."""
        found = ((entry, _KEY.fullmatch(entry.key)) for entry in self._backend.entries(f"{CHECKPOINTS}/{self._key}"))
        return [(int(match[2]), entry) for entry, match in found if match]

    def _delete(self, entries: Iterable[Entry]) -> None:
        keys = [entry.key for entry in entries]
        for last in (False, True):  # each copy.json first
            for _ in each(self._backend.delete, ((key,) for key in keys if key.endswith(f"/{INDEX}") != last)):
                pass

    def _part(self, step: int, digest: str) -> str:
        return self._at(step, f"parts/{digest.removeprefix('sha256:')}")

    def _at(self, step: int, name: str) -> str:
        return f"{CHECKPOINTS}/{self._key}/checkpoint-{step}/{name}"
