"""Locks of commits and prunes: their order, killed holders, stalled holders. While others publish: test_store_prune."""

import threading
import time

import pytest

from shadowft_core import store as room
from shadowft_core.errors import StoreConflictError
from shadowft_core.files import bytes_digest
from shadowft_core.params import Store
from shadowft_core.store import lock
from tests.fixtures.deltas import trusted


@pytest.fixture(params=["s3", "folder", pytest.param("real", marks=pytest.mark.real_store)])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(f"{request.param}_store")
    trusted(found)
    return found


def test_a_prune_waits_for_a_commit_and_a_commit_for_a_prune(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PAUSE", 0.05)
    backend, order = room.open_store(store), []
    claim = "deltas/" + "0" * 64

    def committing() -> str:
        other = threading.Thread(target=pruning)
        other.start()
        started.append(other)
        time.sleep(0.5)
        order.append("claimed")
        backend.put_if_absent(claim, b"1", bytes_digest(b"1"))
        return claim

    def pruning() -> None:
        with lock.prune_lock(backend):
            order.append("pruning")
            waiting = threading.Thread(target=lock.commit, args=(backend, None, restore, late))
            waiting.start()
            started.append(waiting)
            time.sleep(0.5)
            order.append("pruned")

    def restore() -> None:
        order.append("restored")

    def late() -> str:
        order.append("claimed after")
        return claim

    started: list[threading.Thread] = []
    lock.commit(backend, None, restore, committing)
    while started:
        started.pop(0).join()
    assert order == ["claimed", "pruning", "pruned", "restored", "claimed after"]


def test_two_prunes_do_not_run_at_once(store: Store) -> None:
    backend = room.open_store(store)
    with (
        lock.prune_lock(backend),
        pytest.raises(StoreConflictError, match="another prune is running"),
        lock.prune_lock(backend),
    ):
        pass
    with lock.prune_lock(backend):
        pass


def test_locks_of_killed_processes_expire(folder_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("EXPIRY", 2.5), ("SLACK", 0.5), ("RENEWAL", 0.5), ("PAUSE", 0.1)):
        monkeypatch.setattr(lock, name, seconds)
    backend, claim = room.open_store(folder_store), "deltas/" + "0" * 64
    lock.Lock(backend, f"{lock.COMMIT_LOCKS}/dead", None).acquire()
    started = time.monotonic()
    with lock.prune_lock(backend) as renew:
        assert 1 < time.monotonic() - started < 10
        time.sleep(0.6)
        renew()
    lock.Lock(backend, lock.PRUNE_LOCK, backend.read(lock.PRUNE_LOCK, 1000)[1]).acquire()  # type: ignore[index]
    restored: list[int] = []

    def write() -> str:
        backend.put_if_absent(claim, b"1", bytes_digest(b"1"))
        return claim

    started = time.monotonic()
    lock.commit(backend, None, lambda: restored.append(1), write)
    assert 1 < time.monotonic() - started < 10
    assert restored == [1]


def test_a_publisher_whose_lock_expired_checks_its_chunks_again(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("EXPIRY", 2.5), ("SLACK", 0.5), ("RENEWAL", 0.5), ("PAUSE", 0.1)):
        monkeypatch.setattr(lock, name, seconds)
    backend, claim, chunk = room.open_store(folder_store), "deltas/" + "0" * 64, "objects/sha256/00/" + "0" * 64
    calls: list[str] = []

    def restore() -> None:
        calls.append("restore")
        backend.put_if_absent(chunk, b"1", bytes_digest(b"1"))

    def write() -> str:
        calls.append("claim")
        if len(calls) == 1:  # the process stalls; meanwhile a whole prune runs
            time.sleep(3)
            with lock.prune_lock(backend):
                backend.delete(chunk)
        backend.put_if_absent(claim, b"1", bytes_digest(b"1"))
        return claim

    backend.put_if_absent(chunk, b"1", bytes_digest(b"1"))
    lock.commit(backend, lock.last_prune(backend), restore, write)
    assert calls == ["claim", "restore", "claim"]
    assert backend.head(chunk) is not None


def test_a_prune_whose_lock_expired_stops(folder_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("EXPIRY", 2.5), ("SLACK", 0.5), ("RENEWAL", 0.5)):
        monkeypatch.setattr(lock, name, seconds)
    with lock.prune_lock(room.open_store(folder_store)) as renew:
        renew()
        time.sleep(2.6)
        with pytest.raises(StoreConflictError, match="its prune lock expired"):
            renew()


def test_a_publisher_gives_up_when_a_prune_does_not_end(folder_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("WAIT", 0.2), ("PAUSE", 0.05)):
        monkeypatch.setattr(lock, name, seconds)
    backend = room.open_store(folder_store)
    with lock.prune_lock(backend) as renew:
        with pytest.raises(StoreConflictError, match="a prune has been running for 0 s; publish again when it ends"):
            lock.commit(backend, None, lambda: pytest.fail("restored"), lambda: pytest.fail("claimed"))
        renew()
    started = time.monotonic()
    with lock.prune_lock(backend):  # it waits for held commit locks, and the publisher has released its own
        assert time.monotonic() - started < 10
