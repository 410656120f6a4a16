"""Commits and sweeps take turns: in order, killed, and asleep. Beside publishers: test_store_upkeep.py."""

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


def test_a_sweep_waits_for_a_commit_and_a_commit_for_a_sweep(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PAUSE", 0.05)
    objects, order = room.opened(store), []
    claim = "deltas/" + "0" * 64

    def committing() -> str:
        other = threading.Thread(target=sweeping)
        other.start()
        started.append(other)
        time.sleep(0.5)
        order.append("claimed")
        objects.put_if_absent(claim, b"1", bytes_digest(b"1"))
        return claim

    def sweeping() -> None:
        with lock.sweep(objects):
            order.append("sweeping")
            waiting = threading.Thread(target=lock.commit, args=(objects, None, restore, late))
            waiting.start()
            started.append(waiting)
            time.sleep(0.5)
            order.append("swept")

    def restore() -> None:
        order.append("restored")

    def late() -> str:
        order.append("claimed after")
        return claim

    started: list[threading.Thread] = []
    lock.commit(objects, None, restore, committing)
    while started:
        started.pop(0).join()
    assert order == ["claimed", "sweeping", "swept", "restored", "claimed after"]


def test_two_sweeps_do_not_run_at_once(store: Store) -> None:
    objects = room.opened(store)
    with (
        lock.sweep(objects),
        pytest.raises(StoreConflictError, match="another process is collecting"),
        lock.sweep(objects),
    ):
        pass
    with lock.sweep(objects):
        pass


def test_what_killed_processes_left_open_is_over_in_time(folder_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("TURN", 2.5), ("SLACK", 0.5), ("HOLD", 0.5), ("PAUSE", 0.1)):
        monkeypatch.setattr(lock, name, seconds)
    objects, claim = room.opened(folder_store), "deltas/" + "0" * 64
    lock._Held(objects, f"{lock.COMMIT}/dead", None).open()
    started = time.monotonic()
    with lock.sweep(objects) as hold:
        assert 1 < time.monotonic() - started < 10
        time.sleep(0.6)
        hold()
    lock._Held(objects, lock.SWEEP, objects.read(lock.SWEEP, 1000)[1]).open()  # type: ignore[index]
    restored: list[int] = []

    def write() -> str:
        objects.put_if_absent(claim, b"1", bytes_digest(b"1"))
        return claim

    started = time.monotonic()
    lock.commit(objects, None, lambda: restored.append(1), write)
    assert 1 < time.monotonic() - started < 10
    assert restored == [1]


def test_a_publisher_that_slept_through_its_turn_looks_again(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("TURN", 2.5), ("SLACK", 0.5), ("HOLD", 0.5), ("PAUSE", 0.1)):
        monkeypatch.setattr(lock, name, seconds)
    objects, claim, chunk = room.opened(folder_store), "deltas/" + "0" * 64, "objects/sha256/00/" + "0" * 64
    calls: list[str] = []

    def restore() -> None:
        calls.append("restore")
        objects.put_if_absent(chunk, b"1", bytes_digest(b"1"))

    def write() -> str:
        calls.append("claim")
        if len(calls) == 1:  # the process is stopped; meanwhile a whole gc runs
            time.sleep(3)
            with lock.sweep(objects):
                objects.delete(chunk)
        objects.put_if_absent(claim, b"1", bytes_digest(b"1"))
        return claim

    objects.put_if_absent(chunk, b"1", bytes_digest(b"1"))
    lock.commit(objects, lock.last_sweep(objects), restore, write)
    assert calls == ["claim", "restore", "claim"]
    assert objects.head(chunk) is not None


def test_a_sweep_that_slept_through_its_turn_stops(folder_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("TURN", 2.5), ("SLACK", 0.5), ("HOLD", 0.5)):
        monkeypatch.setattr(lock, name, seconds)
    with lock.sweep(room.opened(folder_store)) as hold:
        hold()
        time.sleep(2.6)
        with pytest.raises(StoreConflictError, match="lost its turn"):
            hold()
