"""Committing a delta and sweeping garbage take turns, so that no chunk vanishes between its check and the claim.

A publisher sends its chunks whenever it likes. For its commit it opens a turn `turns/commit/<id>`, then looks at
`turns/sweep`: while a sweep is open it closes its turn and waits, and if a sweep took place since it began to send, it
looks for its chunks once more. A sweep opens `turns/sweep`, then waits until no commit is open. Each raises its own
flag before it looks at the other's, and the store shows what was written (the probe asks for that), so at most one of
the two goes on.

Who was killed or lost its line leaves its turn open; TURN seconds after it was last renewed it counts as over. Ages are
differences of the store's own times, so no two machines need equal clocks. Publishing needs no right to delete.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pydantic import Field, ValidationError

from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.store.backends import Objects
from shadowft_core.store.manifest import Strict

TURNS = "turns"
SWEEP, COMMIT, CLOCK = f"{TURNS}/sweep", f"{TURNS}/commit", f"{TURNS}/clock"
TURN = 60.0  # seconds; longer than the slowest single request and HOLD together
SLACK = 2.0  # seconds, for times of whole seconds
HOLD = 20.0  # seconds after which a holder renews its turn before it does more
PAUSE = 0.2  # seconds between two looks at the other side
WAIT = 900.0  # seconds a publisher waits for sweeps


class Turn(Strict):
    """What a turn's object says; the id makes every version of it another one."""

    format: int = Field(1, ge=1, le=1)
    open: bool
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)


class _Held:
    """A turn of this process: one object that only it writes while the turn is open."""

    def __init__(self, objects: Objects, key: str, tag: str | None) -> None:
        self._objects, self._key, self._tag = objects, key, tag
        self.opened = 0.0  # by the store's clock
        self._renewed = 0.0  # by this machine's; not the monotonic one, which may stand still while it sleeps

    def open(self) -> None:
        """Open or renew it. Raises StoreConflictError when another process has taken it."""
        self._renewed = time.time()
        self._tag = self._objects.swap(self._key, canonical_json(Turn(open=True).model_dump()), self._tag)
        head = self._objects.head(self._key)
        if head is None or head.tag != self._tag:
            raise StoreConflictError(f"{self._objects.location}: {self._key} was taken by someone else; run it again")
        self.opened = head.modified

    @property
    def stale(self) -> bool:
        return not 0 <= time.time() - self._renewed < HOLD

    def now(self) -> float:
        """The store's time, near enough while the turn is not stale."""
        return self.opened + time.time() - self._renewed

    def close(self) -> None:
        self._tag = self._objects.swap(self._key, canonical_json(Turn(open=False).model_dump()), self._tag)


def last_sweep(objects: Objects) -> str | None:
    """What tells one sweep from the next; to be asked before the first chunk is sent."""
    found = objects.read(SWEEP, 1000)
    return found[1] if found else None


def commit(objects: Objects, since: str | None, restore: Callable[[], None], claim: Callable[[], str]) -> None:
    """Run `claim`, which writes the claim and returns its key, while no sweep can remove anything.

    `since` is what `last_sweep` said before the chunks were sent; after a sweep `restore` must put back what is
    missing.
    Raises StoreConflictError when sweeps leave no room for WAIT seconds, and what the two callables raise.
    """
    turn, waited = _Held(objects, f"{COMMIT}/{uuid.uuid4().hex}", None), 0.0
    while True:
        turn.open()
        found = objects.read(SWEEP, 1000)
        if found is not None and _parse(found[0], objects, SWEEP).open:
            head = objects.head(SWEEP)
            if head is None or turn.opened - head.modified < TURN:
                turn.close()
                if waited > WAIT:
                    raise StoreConflictError(
                        f"{objects.location}: gc has been running for {waited:.0f} s; publish again when it has ended"
                    )
                pause = PAUSE * random.uniform(0.5, 1.5)  # noqa: S311  spreads waiting publishers
                time.sleep(pause)
                waited += pause
                continue
        if (tag := found[1] if found else None) != since:
            restore()
            since = tag
        elif not turn.stale:
            head = objects.head(claim())
            if head is not None and head.modified - turn.opened < TURN - SLACK:  # a stalled process may come too late
                turn.close()
                return
            since = "too late"


@contextmanager
def sweep(objects: Objects) -> Iterator[Callable[[], None]]:
    """A turn in which no delta is committed. Call what it yields before each removal: it keeps the turn.

    Raises StoreConflictError when another sweep is open, or took this one's place.
    """
    found, now = objects.read(SWEEP, 1000), store_time(objects)
    if found is not None and _parse(found[0], objects, SWEEP).open:
        head = objects.head(SWEEP)
        if head is None or head.tag != found[1] or now - head.modified < TURN:
            raise StoreConflictError(f"{objects.location}: another process is collecting garbage; wait for it to end")
    turn, lock = _Held(objects, SWEEP, found[1] if found else None), threading.Lock()
    turn.open()

    def hold() -> None:
        with lock:
            if turn.stale:
                before = turn.opened
                turn.open()
                if turn.opened - before > TURN - SLACK:
                    raise StoreConflictError(f"{objects.location}: this process slept and lost its turn; run it again")

    try:
        for entry in objects.entries(COMMIT):
            while turn.now() - entry.modified < TURN and _is_open(objects, entry.key):
                time.sleep(PAUSE)
                hold()
        yield hold
    finally:
        with suppress(StoreError):  # then it is over by itself in a minute
            turn.close()


def _is_open(objects: Objects, key: str) -> bool:
    found = objects.read(key, 1000)
    return found is not None and _parse(found[0], objects, key).open


def store_time(objects: Objects) -> float:
    """POSIX seconds by the store's clock. Writes and removes a small object."""
    key, data = f"{CLOCK}/{uuid.uuid4().hex}", b"?"
    objects.put_if_absent(key, data, bytes_digest(data))
    head = objects.head(key)
    objects.delete(key)
    if head is None:
        raise StoreError(f"{objects.location}: {key} vanished as soon as it was written; use another store")
    return head.modified


def _parse(raw: bytes, objects: Objects, key: str) -> Turn:
    try:
        return Turn.model_validate_json(raw)
    except ValidationError:
        raise StoreCorruptError(
            f"{objects.location}: {key} is damaged; remove it when nothing is being published"
        ) from None
