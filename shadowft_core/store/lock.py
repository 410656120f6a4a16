"""Locks between commits and prunes, so that no chunk is removed between its check and the claim that names it.

A publisher sends chunks without a lock. To commit, it takes a lock `turns/commit/<id>` and then reads the prune lock
`turns/sweep`. While a prune holds that lock, the publisher releases its own and waits; if a prune ran since the
publisher began to send, the publisher checks all its chunks again. A prune takes `turns/sweep` and then waits until no
commit lock is held. Each side writes its own lock before it reads the other's, and a read returns the last write (the
probe checks that), so at most one side proceeds.

A process that dies or loses its connection leaves its lock held; the lock expires EXPIRY seconds after its last
renewal. Ages are differences of the store's own times, so clocks of machines may differ. Publishing needs no permission
to delete. The keys and the field `open` keep their original names, so that old and new versions can share a store.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pydantic import Field

from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError
from shadowft_core.files import Record, bytes_digest, canonical_json, parse_record
from shadowft_core.store.backends import Backend

LOCKS = "turns"
PRUNE_LOCK, COMMIT_LOCKS, CLOCK = f"{LOCKS}/sweep", f"{LOCKS}/commit", f"{LOCKS}/clock"
EXPIRY = 60.0  # seconds; longer than the slowest single request plus RENEWAL
SLACK = 2.0  # seconds, for stores that return whole seconds
RENEWAL = 20.0  # seconds after which a holder renews its lock before it continues
PAUSE = 0.2  # seconds between two reads of the other side's lock
WAIT = 900.0  # seconds that a publisher waits for prunes


class LockState(Record):
    """Content of a lock object; the random id makes every write a new version."""

    format: int = Field(1, ge=1, le=1)
    open: bool = Field(description="whether the lock is held")
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)


class Lock:
    """A lock of this process: one object that no other process writes while the lock is held."""

    def __init__(self, backend: Backend, key: str, tag: str | None) -> None:
        self._backend, self._key, self._tag = backend, key, tag
        self.acquired = 0.0  # by the store's clock
        self._renewed = 0.0  # by this machine's wall clock: the monotonic clock may stop while the machine sleeps

    def acquire(self) -> None:
        """Take or renew the lock. Raises StoreConflictError when another process has taken it."""
        self._renewed = time.time()
        self._tag = self._backend.swap(self._key, canonical_json(LockState(open=True).model_dump()), self._tag)
        head = self._backend.head(self._key)
        if head is None or head.tag != self._tag:
            raise StoreConflictError(f"{self._backend.location}: another process took {self._key}; run it again")
        self.acquired = head.modified

    @property
    def stale(self) -> bool:
        return not 0 <= time.time() - self._renewed < RENEWAL

    def now(self) -> float:
        """The store's time, accurate enough while the lock is not stale."""
        return self.acquired + time.time() - self._renewed

    def release(self) -> None:
        self._tag = self._backend.swap(self._key, canonical_json(LockState(open=False).model_dump()), self._tag)


def last_prune(backend: Backend) -> str | None:
    """Version tag of the prune lock, which changes with every prune. Read it before the first chunk is sent."""
    found = backend.read(PRUNE_LOCK, 1000)
    return found[1] if found else None


def commit(backend: Backend, since: str | None, restore: Callable[[], None], claim: Callable[[], str]) -> None:
    """Run `claim`, which writes the claim and returns its key, while no prune can remove anything.

    `since` is what `last_prune` returned before the chunks were sent. After a later prune, `restore` is called and must
    send what is missing.
    Raises StoreConflictError when prunes block the commit for WAIT seconds, and what the two callables raise.
    """
    lock, waited = Lock(backend, f"{COMMIT_LOCKS}/{uuid.uuid4().hex}", None), 0.0
    while True:
        lock.acquire()
        found = backend.read(PRUNE_LOCK, 1000)
        if found is not None and _parse(found[0], backend, PRUNE_LOCK).open:
            head = backend.head(PRUNE_LOCK)
            if head is None or lock.acquired - head.modified < EXPIRY:
                lock.release()
                if waited > WAIT:
                    raise StoreConflictError(
                        f"{backend.location}: a prune has been running for {waited:.0f} s; publish again when it ends"
                    )
                pause = PAUSE * random.uniform(0.5, 1.5)  # noqa: S311  spreads waiting publishers
                time.sleep(pause)
                waited += pause
                continue
        if (tag := found[1] if found else None) != since:
            restore()
            since = tag
        elif not lock.stale:
            head = backend.head(claim())
            if head is not None and head.modified - lock.acquired < EXPIRY - SLACK:
                lock.release()
                return
            since = "too late"  # the process stalled, and a prune may have run before the claim was written


@contextmanager
def prune_lock(backend: Backend) -> Iterator[Callable[[], None]]:
    """Hold the prune lock; no delta is committed meanwhile. Yields a function to call before each removal: it renews.

    Raises StoreConflictError when another prune holds or takes the lock, or when this process stalled and lost it.
    """
    found, now = backend.read(PRUNE_LOCK, 1000), store_time(backend)
    if found is not None and _parse(found[0], backend, PRUNE_LOCK).open:
        head = backend.head(PRUNE_LOCK)
        if head is None or head.tag != found[1] or now - head.modified < EXPIRY:
            raise StoreConflictError(f"{backend.location}: another prune is running; wait for it to end")
    lock, mutex = Lock(backend, PRUNE_LOCK, found[1] if found else None), threading.Lock()
    lock.acquire()

    def renew() -> None:
        with mutex:
            if lock.stale:
                before = lock.acquired
                lock.acquire()
                if lock.acquired - before > EXPIRY - SLACK:
                    raise StoreConflictError(
                        f"{backend.location}: this process stalled and its prune lock expired; run it again"
                    )

    try:
        for entry in backend.entries(COMMIT_LOCKS):
            while lock.now() - entry.modified < EXPIRY and _is_held(backend, entry.key):
                time.sleep(PAUSE)
                renew()
        yield renew
    finally:
        with suppress(StoreError):  # a lock that is not released expires
            lock.release()


def _is_held(backend: Backend, key: str) -> bool:
    found = backend.read(key, 1000)
    return found is not None and _parse(found[0], backend, key).open


def store_time(backend: Backend) -> float:
    """POSIX seconds by the store's clock. Writes and removes a small object."""
    key, data = f"{CLOCK}/{uuid.uuid4().hex}", b"?"
    backend.put_if_absent(key, data, bytes_digest(data))
    head = backend.head(key)
    backend.delete(key)
    if head is None:
        raise StoreError(f"{backend.location}: {key} is missing right after it was written; use another store")
    return head.modified


def _parse(raw: bytes, backend: Backend, key: str) -> LockState:
    remedy = "remove it when nothing is being published"
    return parse_record(raw, LockState, f"{backend.location}: {key}", remedy, error=StoreCorruptError)
