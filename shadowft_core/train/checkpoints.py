"""Checkpoints on disk: `FOLDER/KEY/checkpoint-N`, complete or absent, for one run.

KEY is the digest of everything that the result depends on, so a run never goes on from the state of another. A
checkpoint holds what transformers' Trainer saves, `run.json`, and `checkpoint.json`, which is written last and has the
size and SHA-256 of every other file. One that does not match is passed over and named on stderr. torch reads its files
only after this check, and only as weights (`weights_only=True`).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from shadowft_core.errors import CheckpointError, StoreCorruptError, StoreError, say
from shadowft_core.files import (
    bytes_digest,
    canonical_json,
    claim_folder,
    file_digest,
    make_folder,
    read_json_object,
    sync,
    write_json_atomically,
)
from shadowft_core.files.record import Record, read_record
from shadowft_core.params import Checkpoint
from shadowft_core.train.copies import Copies, CopiesOf, going_on_without

FORMAT = 1
MANIFEST, RUN = "checkpoint.json", "run.json"
PREFIX = "checkpoint-"
SMALLER = "smaller.json"


class _Manifest(Record):
    """checkpoint.json: size and SHA-256 of every other file."""

    format: int
    key: str
    step: int = Field(ge=0)
    files: dict[str, tuple[int, str]]


class _Smaller(Record):
    """smaller.json: micro-batches that fit into memory."""

    batch_size: int = Field(ge=1)
    accumulation: int = Field(ge=1)


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose files were verified. `run` is what `Checkpoints.complete` got."""

    folder: Path
    step: int
    run: dict[str, Any]


@dataclass
class Checkpoints:
    """The checkpoints of one run. `saving` is the folder in which the trainer writes `checkpoint-N`.

    Without settings nothing is kept: the folder is a temporary one, for the trainer's own files.
    """

    folder: Path
    saving: Path
    key: str
    settings: Checkpoint | None
    copies: Copies | None = None
    _older: list[Path] = field(default_factory=list)  # ascending steps; `keep` counts these

    def newest(self) -> Saved | None:
        """The newest complete checkpoint, here or of the copies; None if there is none.

        Names each that is passed over on stderr. Raises StoreError if the copies cannot be read and none is here.
        """
        here = self._newest_here()
        if self.copies is None:
            return here
        try:
            for step in reversed(self.copies.steps()):
                if here and step <= here.step:
                    break
                if fetched := self._fetched(self.copies, step):
                    return fetched
        except StoreError as error:
            if here is None:  # to begin at the first step could cost hours
                raise type(error)(
                    f"{error}; or set checkpoint.store to false, to begin without the checkpoints there"
                ) from None
            say(f"train: {error}; going on from {here.folder}, whether or not the store has a newer one")
        return here

    def _fetched(self, copies: Copies, step: int) -> Saved | None:
        """The checkpoint of this step, from its copy; None if that is damaged."""
        partial = self.saving / f"{PREFIX}{step}"
        try:
            copies.fetch(step, partial)
            saved = self._verified(partial)
        except (CheckpointError, StoreCorruptError) as error:
            _say(f"{copies.location}/{PREFIX}{step}", str(error))
            return None
        else:
            say(f"train: fetched {PREFIX}{step} from {copies.location}")
            return Saved(self._put_in_place(partial), step, saved.run)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _newest_here(self) -> Saved | None:
        found = sorted(self.folder.glob(f"{PREFIX}*"), key=_step_of)
        for left in sorted(self.saving.glob(f"{PREFIX}*"), key=_step_of):
            _say(left, "it was not finished")
            shutil.rmtree(left)
        while found:
            try:
                saved = self._verified(found[-1])
            except CheckpointError as error:
                _say(found.pop(), str(error))
                continue
            self._older = found
            return saved
        return None

    def complete(self, step: int, run: Mapping[str, Any]) -> Path:
        """Finish what the trainer wrote for this step: sync the files, write the manifest, move it to its place.

        Removes checkpoints beyond `keep`, the oldest first.
        """
        partial, place = self.saving / f"{PREFIX}{step}", self.folder / f"{PREFIX}{step}"
        write_json_atomically(partial / RUN, run)
        files = {}
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            sync(path)
            files[path.relative_to(partial).as_posix()] = [path.stat().st_size, file_digest(path)]
        facts = {"format": FORMAT, "key": self.key, "step": step, "files": files}
        write_json_atomically(partial / MANIFEST, facts)
        for inner in (path for path in partial.rglob("*") if path.is_dir()):
            sync(inner)
        self._put_in_place(partial)
        while self.settings and len(self._older) > self.settings.keep:
            shutil.rmtree(self._older.pop(0))
        if self.copies and self.settings:
            with going_on_without(f"{place} was not sent, the next checkpoint will be tried again"):
                self.copies.send(place, self.settings.keep)
        return place

    def _put_in_place(self, partial: Path) -> Path:
        place = self.folder / partial.name
        if place.exists():  # one that was passed over
            shutil.rmtree(place)
        os.rename(partial, place)
        sync(self.folder)
        self._older.append(place)
        return place

    @property
    def smaller(self) -> dict[str, int] | None:
        """The micro-batches with which the run goes on after it ran out of memory: batch_size and accumulation."""
        file = self.folder / SMALLER
        if not file.exists():
            return None
        return read_record(file, _Smaller, "delete it, to begin with the micro-batches of train").model_dump()

    def go_on_with(self, smaller: dict[str, int]) -> None:
        """Record smaller micro-batches, which this run uses when it starts again."""
        write_json_atomically(self.folder / SMALLER, smaller)

    @property
    def live(self) -> Path:
        """A file for the progress, which is removed with the checkpoints."""
        return self.folder / "progress.jsonl"

    @property
    def newest_step(self) -> int:
        """The step of the newest checkpoint of this run; 0 if there is none."""
        return _step_of(self._older[-1]) if self._older else 0

    @property
    def last_good(self) -> str:
        """The newest checkpoint for a message: its folder, or `none`."""
        return str(self._older[-1]) if self._older else "none"

    def _verified(self, folder: Path) -> Saved:
        """Raises CheckpointError with the reason if the checkpoint must not be used."""
        if not (folder / MANIFEST).exists():
            raise CheckpointError(f"{MANIFEST} is missing")
        facts = read_record(folder / MANIFEST, _Manifest, "it is not used")
        if facts.format != FORMAT:
            raise CheckpointError(f"its format is {facts.format}, expected {FORMAT}")
        if facts.key != self.key:
            raise CheckpointError(f"it belongs to another run, {facts.key:.80}, expected {self.key}")
        if facts.step != _step_of(folder):
            raise CheckpointError(f"it is of step {facts.step}")
        expected = facts.files
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {MANIFEST}
        if extra := found - expected.keys():
            raise CheckpointError(f"{min(extra)} is not in its {MANIFEST}")
        for name, (size, digest) in expected.items():
            path = folder / name
            if not path.is_file() or path.is_symlink():
                raise CheckpointError(f"{name} is missing")
            if path.stat().st_size != size:
                raise CheckpointError(f"{name} has {path.stat().st_size} bytes, expected {size}")
            if (actual := file_digest(path)) != digest:
                raise CheckpointError(f"{name} has the digest {actual}, expected {digest}")
        return Saved(folder, facts.step, read_json_object(folder / RUN))


@contextmanager
def open_checkpoints(
    settings: Checkpoint | None,
    identity: Mapping[str, Any],
    rank: int = 0,
    copies_of: CopiesOf | None = None,
) -> Iterator[Checkpoints]:
    """The checkpoints of the run with this identity, which is a JSON object; removed when the block succeeds.

    The process with rank 0 locks and removes them; the other processes of the run need the same folder. No other run
    can open them meanwhile. `copies_of` returns their copies from the name of the folder. Prints the size of what other
    runs left. Raises ShadowError if another run holds them.
    """
    if settings is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Checkpoints(Path(scratch), Path(scratch) / "saving", "", None)
        return
    root = Path(settings.folder).resolve()
    key = bytes_digest(canonical_json(identity))
    folder = root / key.removeprefix("sha256:")[:16]
    if rank:
        yield Checkpoints(folder, folder / "saving", key, settings)
        return
    make_folder(root)
    lock = claim_folder(folder, folder)
    try:
        write_json_atomically(folder / "identity.json", identity)
        (folder / "saving").mkdir(exist_ok=True)
        others = [place for place in root.iterdir() if place.is_dir() and place != folder]
        if others:
            size = sum(map(_bytes_in, others))
            say(
                f"train: {root} also holds {size / 1e9:.1f} GB of {len(others)} other runs, unfinished or going on; "
                "remove the folders of those that you will not resume"
            )
        copies = copies_of(folder.name) if copies_of else None
        yield Checkpoints(folder, folder / "saving", key, settings, copies)
        shutil.rmtree(folder)
        if copies:
            with going_on_without(f"{copies.location} was not removed; remove it"):
                copies.remove()
    finally:
        left = [*folder.glob(f"{PREFIX}*"), *folder.glob(SMALLER)]
        if folder.is_dir() and not left:  # nothing to go on from
            shutil.rmtree(folder)
        os.close(lock)


def _bytes_in(folder: Path) -> int:
    """The size of the files, without those that another run removes meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):  # passes over folders that vanish
        for name in names:
            with suppress(FileNotFoundError):
                size += (Path(place) / name).stat().st_size
    return size


def _step_of(folder: Path) -> int:
    number = folder.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() else -1


def _say(folder: Path | str, reason: str) -> None:
    say(f"train: {folder}: passed over: {reason}")
