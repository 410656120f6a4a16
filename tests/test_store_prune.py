"""`prune` removes only what no delta uses, also while others publish."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import store as room
from shadowft_core.errors import StoreCorruptError
from shadowft_core.files import bytes_digest
from shadowft_core.params import Store
from shadowft_core.store import lock
from shadowft_core.store.backends import Backend
from shadowft_core.store.prune import prune_objects
from tests.fixtures.deltas import chunks_of, damage, noise, trusted, unpublish, write_delta

WEEK = 7 * 86400.0


def test_prune_removes_only_what_no_delta_uses(store: Store, two: tuple[str, str], tmp_path: Path) -> None:
    backend = room.open_store(store)
    backend.put_if_absent("ledger/mine", b"kept", bytes_digest(b"kept"))
    own = chunks_of(backend, two[0]) - chunks_of(backend, two[1])
    before = set(backend.list(""))
    assert room.prune(store, 0).removed == 0, "all of it is in use"
    unpublish(backend, two[0])
    young = room.prune(store, WEEK)
    assert (young.removed, young.kept_young) == (0, len(own) + 1)
    planned = room.prune(store, 0, dry_run=True)
    assert set(backend.list("")) - before <= {lock.PRUNE_LOCK}
    done = room.prune(store, 0)
    assert done == planned
    assert done.removed == len(own) + 1
    assert done.removed_bytes > 240_000
    gone = before - set(backend.list(""))
    assert own < gone
    assert len(gone) == len(own) + 2, "its chunks, its manifest, and the claim that was removed"
    room.fetch_delta(two[1], store, tmp_path / "out")
    room.publish(tmp_path / "delta-1", store)
    room.fetch_delta(two[0], store, tmp_path / "out")
    assert room.check(store, [], tmp_path / "state").bad == ()


def test_prune_reads_the_claims_again_under_its_lock(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delta that is published between the first reading and the lock keeps its chunks."""
    backend = trusted(folder_store)
    folder = write_delta(tmp_path / "delta", {"own": noise(1, 30_000)}, "dense")
    unpublish(backend, room.publish(folder, folder_store))
    before = set(backend.list("objects"))
    real = lock.prune_lock

    @contextmanager
    def publish_before_lock(backend: Backend) -> Iterator[Callable[[], None]]:
        room.publish(folder, folder_store)
        with real(backend) as renew:
            yield renew

    monkeypatch.setattr(sys.modules[prune_objects.__module__], "prune_lock", publish_before_lock)
    assert room.prune(folder_store, 0).removed == 0
    assert set(backend.list("objects")) == before
    monkeypatch.undo()
    assert room.prune(folder_store, 0).removed == 0


def test_prune_removes_nothing_when_a_manifest_cannot_be_read(store: Store, two: tuple[str, str]) -> None:
    backend = room.open_store(store)
    unpublish(backend, two[0])
    damage(backend, room.object_key(room.read_claim(backend, two[1]).manifest))
    before = list(backend.list("objects"))
    with pytest.raises(StoreCorruptError, match=r"is damaged.*nothing more was removed"):
        room.prune(store, 0)
    assert list(backend.list("objects")) == before


def test_prune_removes_temporary_files_of_killed_writers(folder_store: Store) -> None:
    backend, root = trusted(folder_store), Path(folder_store.uri)
    for name, age in (("old", 90_000), ("new", 0)):
        part = root / "probe" / f".tmp-{name}"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    before = room.prune(folder_store, 0, dry_run=True)
    assert len(list((root / "probe").glob(".tmp*"))) == 2, "a dry run removes nothing"
    assert before == room.prune(folder_store, 0)
    assert before.removed_bytes == 4
    assert [path.name for path in (root / "probe").glob(".tmp*")] == [".tmp-new"], "its writer may still run"
    assert list(backend.list("probe")) == ["probe/passed"]


def test_a_dry_run_writes_nothing(folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = trusted(folder_store)
    unpublish(backend, room.publish(write_delta(tmp_path / "delta", {"w": noise(0, 100)}), folder_store))
    for name in ("put_if_absent", "swap", "delete"):
        monkeypatch.setattr(type(backend), name, lambda *_: pytest.fail("a dry run wrote to the store"))
    assert room.prune(folder_store, 0, dry_run=True).removed > 0


def test_prune_removes_what_ended_commits_and_probes_left(folder_store: Store) -> None:
    backend, root = trusted(folder_store), Path(folder_store.uri)
    with lock.prune_lock(backend):
        pass
    for name in ("old", "young"):
        commit = lock.Lock(backend, f"{lock.COMMIT_LOCKS}/{name}", None)
        commit.acquire()
        commit.release()
    probe = f"probe/{'0' * 32}/x"
    backend.put_if_absent(probe, b"x", bytes_digest(b"x"))
    before = set(backend.list(""))
    for key in before - {f"{lock.COMMIT_LOCKS}/young"}:
        os.utime(root / key, (time.time() - 90_000,) * 2)
    gone = {f"{lock.COMMIT_LOCKS}/old", probe}
    assert {"probe/passed", lock.PRUNE_LOCK} | gone < before
    assert room.prune(folder_store, 0).removed == 2
    assert before - set(backend.list("")) == gone


@pytest.mark.parametrize("store", ["folder", pytest.param("s3", marks=pytest.mark.faults)], indirect=True)
def test_prune_beside_publishers_removes_no_chunk_they_need(store: Store, tmp_path: Path) -> None:
    """Deltas of few tensors are published and unpublished all the time, so that unused chunks are needed again."""
    backend = room.open_store(store)
    tensors = {f"t{number}": noise(number, 16_000) for number in range(6)}
    folders = [
        write_delta(tmp_path / f"delta-{n}", {name: tensors[name] for i, name in enumerate(tensors) if (n >> i) % 2})
        for n in (3, 5, 9, 24, 33, 48, 63)
    ]
    stop, lost, counts = threading.Event(), [], {"published": 0, "removed": 0, "prunes": 0}

    def repeat(act: Any) -> None:
        try:
            while not stop.is_set():
                act()
        except Exception as error:
            lost.append(error)
            stop.set()

    def publisher(number: int) -> None:
        mine = folders[number::2]
        digest = room.publish(mine[counts["published"] % len(mine)], store)
        room.fetch_delta(digest, store, tmp_path / f"out-{number}")  # raises unless the delta is complete
        unpublish(backend, digest)
        counts["published"] += 1

    def pruner() -> None:
        done = room.prune(store, 0)
        counts["removed"] += done.removed
        counts["prunes"] += done.removed > 0
        if counts["published"] >= 8 and counts["prunes"] >= 3:
            stop.set()

    threads = [threading.Thread(target=repeat, args=(act,)) for act in (lambda: publisher(0), lambda: publisher(1))]
    threads.append(threading.Thread(target=repeat, args=(pruner,)))
    for thread in threads:
        thread.start()
    enough = stop.wait(120)
    stop.set()
    for thread in threads:
        thread.join()
    assert lost == []
    assert enough, counts
