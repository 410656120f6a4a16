"""The file of the answers to one call of the harness: locked, checked line by line, cut back to its good part.

Its lines are a digest and the JSON that it belongs to: first the key, then one line for each batch.
"""

import errno
import fcntl
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from shadowft_core.evaluate.engines.door import Reply
from shadowft_core.files import Record, bytes_digest, cache_folder

FORMAT = 1
LARGEST = 1 << 30  # bytes of all files; beyond, those that were not used for the longest time are removed
SYNCED = 1.0  # seconds between two syncs to the disk; a kill loses nothing that was written, a power cut may


class _Text(Record):
    """A text, and of a reply how it ended."""

    text: str
    finish: Literal["stop", "length"] | None = None
    tokens: int | None = None


_Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]  # of a request
_BATCH = TypeAdapter(dict[_Number, _Text | tuple[FiniteFloat, bool] | FiniteFloat])


class AnswersFile:
    """`answers` of one call by number of the request; kept in no file unless `resume` names one."""

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.answers = Path(os.devnull), dict[int, Any]()
        self._descriptor: int | None = None
        self._say, self._synced, self._size = say, time.monotonic(), 0

    def resume(self, path: Path, descriptor: int, head: bytes) -> None:
        """Read the answers of an earlier run, and keep further ones. `head` is the line of the key."""
        self.path, self._descriptor = path, descriptor
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read()
        end = 0
        whole = raw.startswith(head)
        if whole:
            end = len(head)
            for line in raw[len(head) :].splitlines(keepends=True):
                if (batch := _checked(line)) is None:
                    break
                self.answers |= {int(at): _decoded(answer) for at, answer in batch.items()}
                end += len(line)
        if end < len(raw):
            last = whole and b"\n" not in raw[end:-1]
            found = "the last line is incomplete" if last else "a line is damaged or has another key"
            self._say(f"{self.path}: {found}; the {len(self.answers)} answers before it are used")
        try:
            os.ftruncate(descriptor, end)
            self._size = end
            if not whole:
                self._write(descriptor, head)
        except OSError as error:
            self._give_up(error)

    def append(self, batch: Mapping[int, Any]) -> None:
        """Add whole batches. An answer that is not finite is not kept, because it comes from a fault."""
        self.answers |= batch
        if self._descriptor is None or not all(map(_finite, batch.values())):
            return
        try:
            self._write(self._descriptor, _line({at: encoded(answer) for at, answer in batch.items()}))
        except OSError as error:
            self._give_up(error)

    def _write(self, descriptor: int, data: bytes) -> None:
        if os.pwrite(descriptor, data, self._size) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(data)
        if time.monotonic() - self._synced >= SYNCED:
            os.fsync(descriptor)
            self._synced = time.monotonic()

    def _give_up(self, error: OSError) -> None:
        """Go on without keeping answers: the scores do not need the journal."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
        self._descriptor = None
        self._say(f"{self.path}: {error.strerror}; further answers are not kept, a killed run would ask for them again")


@contextmanager
def open_answers(about: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[AnswersFile]:
    """Open and lock the file of the answers that depend on `about`. While another process has it, wait for its answers.

    If the file cannot be opened, `say` tells it, and answers are not kept.
    """
    head = _line({"format": FORMAT, "about": about})
    path = cache_folder() / "answers" / f"{head[7:71].decode()}.jsonl"
    file, descriptor = AnswersFile(say), None
    try:
        try:
            descriptor = _locked(path, say)
        except OSError as error:
            say(f"{path}: {error.strerror}; answers are not kept, a killed run would ask for them again")
        else:
            file.resume(path, descriptor, head)
        yield file
        with suppress(OSError):  # the user may have removed the folder
            os.utime(path)
            _prune(path.parent)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path, say: Callable[[str], None]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
                raise OSError(errno.EINVAL, "not a regular file of this program")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{path}: another process is answering the same requests; waiting for it, to use its answers")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed between our open and our lock


def _prune(folder: Path) -> None:
    """Remove the journals that were not used for the longest time, until all have at most LARGEST bytes."""
    found = sorted((stat.st_mtime, stat.st_size, path) for path in folder.glob("*.jsonl") if (stat := path.stat()))
    excess = sum(size for _, size, _ in found) - LARGEST
    for _, size, path in found:
        if excess <= 0:
            return
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            path.unlink()
            excess -= size


def _line(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True).encode("ascii")
    return bytes_digest(text).encode() + b" " + text + b"\n"


def _checked(line: bytes) -> dict[str, Any] | None:
    """The batch of a line, or None if the line is damaged."""
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or bytes_digest(text).encode() != digest:
        return None
    try:
        return _BATCH.validate_json(text)
    except ValidationError:
        return None


def encoded(answer: Any) -> Any:
    """An answer of an engine as JSON."""
    if isinstance(answer, Reply):
        return {"text": str(answer), "finish": answer.finish, "tokens": answer.tokens}
    if isinstance(answer, tuple):
        return [float(answer[0]), bool(answer[1])]
    return {"text": answer} if isinstance(answer, str) else float(answer)


def _decoded(kept: Any) -> Any:
    if not isinstance(kept, _Text):
        return kept
    return Reply(**kept.model_dump()) if "finish" in kept.model_fields_set else kept.text


def _finite(answer: Any) -> bool:
    number = answer[0] if isinstance(answer, tuple) else answer
    return isinstance(number, str) or math.isfinite(number)
