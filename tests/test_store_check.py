"""Looking after a store: ls, verify, gc; alone, interrupted, and beside publishers."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shadowft_core import store as room
from shadowft_core.cli import app
from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError, StoreUnreachableError
from shadowft_core.files import bytes_digest
from shadowft_core.params import Store
from shadowft_core.store import lock, prune
from shadowft_core.store.backends import Objects
from shadowft_core.store.backends.folder import FolderObjects
from tests.fixtures.deltas import noise, stored_bytes, trusted, write_delta

WEEK = 7 * 86400.0


@pytest.fixture(params=["s3", "folder", pytest.param("real", marks=pytest.mark.real_store)])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(f"{request.param}_store").model_copy(update={"chunk_bytes": 65536})
    trusted(found)
    return found


@pytest.fixture
def two(store: Store, tmp_path: Path) -> tuple[str, str]:
    """Two published deltas with one tensor in common, 120 kB of 360 kB."""
    common = noise(0, 30_000)
    folders = [
        write_delta(tmp_path / f"delta-{n}", {"common": common, "own": noise(n, 60_000)}, kind)
        for n, kind in ((1, "dense"), (2, "lora"))
    ]
    first, second = (room.publish(folder, store) for folder in folders)
    return first, second


def unpublish(objects: Objects, digest: str) -> None:
    """What nobody does through the project: take a claim away."""
    objects.delete(f"deltas/{digest[7:]}")


def damage(objects: Objects, key: str) -> None:
    """Other bytes of the same length under this key, on a server or in a folder."""
    found = objects.read(key, 1 << 20)
    assert found is not None
    objects.delete(key)
    data = found[0][:-1] + bytes([found[0][-1] ^ 1])
    objects.put_if_absent(key, data, bytes_digest(data))


def chunks_of(objects: Objects, digest: str) -> set[str]:
    claim = room.read_claim(objects, digest)
    return {room.object_key(chunk) for chunk, _ in room.read_manifest(objects, claim).chunks()}


def test_ls_tells_kind_bytes_and_what_is_shared(store: Store, two: tuple[str, str], tmp_path: Path) -> None:
    found = {delta.digest: delta for delta in room.ls(store)}
    assert set(found) == set(two)
    assert [found[digest].kind for digest in two] == ["dense", "lora"]
    for number, digest in enumerate(two, 1):
        delta = found[digest]
        assert delta.bytes == sum(path.stat().st_size for path in (tmp_path / f"delta-{number}").iterdir())
        assert 120_000 <= delta.shared_bytes < 121_000, "the tensor, and the header, which is the same"
        assert abs(delta.published - time.time()) < 120
        assert delta.problem is None
    objects = room.opened(store)
    damage(objects, room.object_key(room.read_claim(objects, two[0]).manifest))
    broken = next(delta for delta in room.ls(store) if delta.digest == two[0])
    assert "is damaged" in str(broken.problem)


def test_verify_names_every_bad_object_and_who_needs_it(
    store: Store, two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objects = room.opened(store)
    good = room.verify(store)
    assert (good.deltas, good.bad, good.resumed) == (2, (), 0)
    assert good.objects == len(list(objects.list("objects"))) + 2
    first, second = (chunks_of(objects, digest) for digest in two)
    common, gone, lone = min(first & second), min(first - second), min(second - first)
    damage(objects, common)
    objects.delete(gone)
    damage(objects, lone)
    found = room.verify(store)
    assert {bad.key: bad.deltas for bad in found.bad} == {
        common: tuple(sorted(two)),
        gone: (two[0],),
        lone: (two[1],),
    }
    assert {bad.key: "is missing" in bad.problem for bad in found.bad} == {common: False, gone: True, lone: False}
    assert {bad.key for bad in room.verify(store, [two[1]]).bad} == {common, lone}
    damage(objects, f"deltas/{two[0][7:]}")
    assert f"deltas/{two[0][7:]}" in {bad.key for bad in room.verify(store).bad}
    assert list((tmp_path / "var").iterdir()) == [], "a scrub that ended leaves no state"


def test_records_are_read_again_by_verify_and_never_removed(
    store: Store, two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objects = room.opened(store)
    texts = [b'{"decision":"hold"}', b'{"format":1}']
    recipe, verdict = digests = [room.keep_record(text, store) for text in texts]
    assert digests == [bytes_digest(text) for text in texts] == [room.keep_record(text, store) for text in texts]
    assert [room.record(digest, store) for digest in digests] == texts
    assert room.record("sha256:" + "0" * 64, store) is None
    unpublish(objects, two[0])
    assert room.gc(store, 0).removed > 0
    assert [room.record(digest, store) for digest in digests] == texts, "no claim names them, yet a registry may"
    before = room.verify(store)
    assert (before.deltas, before.records, before.bad) == (1, 2, ())

    damage(objects, f"records/{verdict[7:]}")
    (bad,) = room.verify(store).bad
    assert (bad.key, bad.deltas) == (f"records/{verdict[7:]}", ())
    assert "is damaged: it is sha256:" in bad.problem
    named = room.verify(store, [recipe, two[1]])
    assert (named.deltas, named.records, named.bad) == (1, 1, ())
    assert [one.key for one in room.verify(store, [verdict]).bad] == [f"records/{verdict[7:]}"]
    with pytest.raises(StoreCorruptError, match="is damaged: it is sha256:"):
        room.record(verdict, store)
    with pytest.raises(StoreConflictError, match="nothing was overwritten"):
        room.keep_record(texts[1], store)
    with pytest.raises(StoreError, match="at most 16777216 are allowed"):
        room.keep_record(b"x" * (16 << 20) + b"x", store)
    done = CliRunner().invoke(app, ["store", "check", "--store", store.uri, "--endpoint", store.endpoint or ""])
    assert isinstance(done.exception, StoreCorruptError)
    assert f"records/{verdict[7:]} is damaged" in done.stdout
    assert "objects of 1 deltas and 2 records are good" in done.stdout


def test_verify_goes_on_after_an_interruption(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted(folder_store)
    small = folder_store.model_copy(update={"chunk_bytes": 65536})
    digest = room.publish(write_delta(tmp_path / "delta", {"w": noise(0, 200_000)}), small)
    objects, state, read = room.opened(folder_store), tmp_path / "state.txt", []
    chunks = chunks_of(objects, digest)
    real = FolderObjects.get

    def counted(self: FolderObjects, key: str, *rest: Any) -> None:
        if key in chunks:
            read.append(key)
            if limit and len(read) > limit:
                raise KeyboardInterrupt
        real(self, key, *rest)

    monkeypatch.setattr(FolderObjects, "get", counted)
    limit = 6
    with pytest.raises(KeyboardInterrupt):
        room.verify(folder_store, [], state)
    with state.open("a") as file:
        file.write(max(chunks)[:-3])  # as if killed while it wrote
    known, limit = state.read_text().count("\n") - 1, 0
    assert 0 < known <= 6
    read.clear()
    found = room.verify(folder_store, [], state)
    assert found.resumed == known
    assert len(read) == len(chunks) - known
    assert not state.exists()
    state.write_text("objects found good in another place\n" + "".join(f"{key}\n" for key in chunks))
    assert room.verify(folder_store, [], state).resumed == 0


def test_gc_removes_what_nothing_uses_and_only_that(store: Store, two: tuple[str, str], tmp_path: Path) -> None:
    objects = room.opened(store)
    objects.put_if_absent("ledger/mine", b"kept", bytes_digest(b"kept"))
    own = chunks_of(objects, two[0]) - chunks_of(objects, two[1])
    before = set(objects.list(""))
    assert room.gc(store, 0).removed == 0, "all of it is in use"
    unpublish(objects, two[0])
    young = room.gc(store, WEEK)
    assert (young.removed, young.kept_young) == (0, len(own) + 1)
    planned = room.gc(store, 0, dry_run=True)
    assert set(objects.list("")) - before <= {lock.SWEEP}
    done = room.gc(store, 0)
    assert done == planned
    assert done.removed == len(own) + 1
    assert done.removed_bytes > 240_000
    gone = before - set(objects.list(""))
    assert own < gone
    assert len(gone) == len(own) + 2, "its chunks, its manifest, and the claim we took away"
    room.fetch_delta(two[1], store, tmp_path / "out")
    room.publish(tmp_path / "delta-1", store)
    room.fetch_delta(two[0], store, tmp_path / "out")
    assert room.verify(store, [], tmp_path / "state").bad == ()


def test_gc_looks_again_when_its_turn_comes(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delta that is published between gc's first look and its turn keeps its chunks."""
    objects = trusted(folder_store)
    folder = write_delta(tmp_path / "delta", {"own": noise(1, 30_000)}, "dense")
    unpublish(objects, room.publish(folder, folder_store))
    before = set(objects.list("objects"))
    whole = lock.sweep

    @contextmanager
    def sweep(objects: Objects) -> Iterator[Callable[[], None]]:
        room.publish(folder, folder_store)
        with whole(objects) as hold:
            yield hold

    monkeypatch.setattr(prune, "sweep", sweep)
    assert room.gc(folder_store, 0).removed == 0
    assert set(objects.list("objects")) == before
    monkeypatch.undo()
    assert room.gc(folder_store, 0).removed == 0


def test_gc_removes_nothing_when_it_cannot_tell_what_is_in_use(store: Store, two: tuple[str, str]) -> None:
    objects = room.opened(store)
    unpublish(objects, two[0])
    damage(objects, room.object_key(room.read_claim(objects, two[1]).manifest))
    before = list(objects.list("objects"))
    with pytest.raises(StoreCorruptError, match=r"is damaged.*nothing was removed"):
        room.gc(store, 0)
    assert list(objects.list("objects")) == before


def test_gc_clears_what_killed_writers_left_in_a_folder(folder_store: Store) -> None:
    objects, root = trusted(folder_store), Path(folder_store.uri)
    for name, age in (("old", 90_000), ("new", 0)):
        part = root / "probe" / f".tmp-{name}"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    assert room.gc(folder_store, 0).removed_bytes == 4
    assert [path.name for path in (root / "probe").glob(".tmp*")] == [".tmp-new"], "its writer may live"
    assert list(objects.list("probe")) == ["probe/passed"]


@pytest.mark.parametrize("store", ["folder", pytest.param("s3", marks=pytest.mark.faults)], indirect=True)
def test_gc_beside_publishers_never_costs_them_a_chunk(store: Store, tmp_path: Path) -> None:
    """Deltas of few tensors come and go all the time, so that garbage turns into what a publisher relies on."""
    objects = room.opened(store)
    tensors = {f"t{number}": noise(number, 16_000) for number in range(6)}
    folders = [
        write_delta(tmp_path / f"delta-{n}", {name: tensors[name] for i, name in enumerate(tensors) if (n >> i) % 2})
        for n in (3, 5, 9, 24, 33, 48, 63)
    ]
    stop, lost, counts = threading.Event(), [], {"published": 0, "removed": 0, "swept": 0}

    def guarded(act: Any) -> None:
        try:
            while not stop.is_set():
                act()
        except Exception as error:
            lost.append(error)
            stop.set()

    def publisher(number: int) -> None:
        mine = folders[number::2]
        digest = room.publish(mine[counts["published"] % len(mine)], store)
        room.fetch_delta(digest, store, tmp_path / f"out-{number}")  # whole at this moment, or it raises
        unpublish(objects, digest)
        counts["published"] += 1

    def collector() -> None:
        done = room.gc(store, 0)
        counts["removed"] += done.removed
        counts["swept"] += done.removed > 0
        if counts["published"] >= 8 and counts["swept"] >= 3:
            stop.set()

    threads = [threading.Thread(target=guarded, args=(act,)) for act in (lambda: publisher(0), lambda: publisher(1))]
    threads.append(threading.Thread(target=guarded, args=(collector,)))
    for thread in threads:
        thread.start()
    enough = stop.wait(120)
    stop.set()
    for thread in threads:
        thread.join()
    assert lost == []
    assert enough, counts


def test_the_verbs(store: Store, two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = ["--store", store.uri, *(["--endpoint", store.endpoint] if store.endpoint else [])]

    def shadowft(*words: str) -> Any:
        return CliRunner().invoke(app, ["store", *words, *place])

    listed = json.loads(shadowft("ls", "--json").stdout)["deltas"]
    assert {delta["digest"] for delta in listed} == set(two)
    assert f"{two[0]}  20" in shadowft("ls").stdout
    good = shadowft("check", "--json")
    assert (good.exit_code, json.loads(good.stdout)["bad"]) == (0, [])
    objects = room.opened(store)
    unpublish(objects, two[0])
    assert json.loads(shadowft("prune", "--grace-days", "0", "--dry-run", "--json").stdout)["removed"] > 0
    assert "removed 0 objects" in shadowft("prune").stdout
    assert "too young" in shadowft("prune").stdout
    assert stored_bytes(objects) > 480_000
    assert shadowft("prune", "--grace-days", "0").exit_code == 0
    assert stored_bytes(objects) < 380_000
    bad = min(chunks_of(objects, two[1]))
    damage(objects, bad)
    done = shadowft("check")
    assert isinstance(done.exception, StoreCorruptError)
    assert f"{bad} is damaged" in done.stdout
    assert "1 of " in str(done.exception)


def test_a_store_without_answer_ends_every_verb(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from shadowft_core.store.backends import s3

    monkeypatch.setattr(s3, "PATIENCE", 0.5)
    monkeypatch.chdir(tmp_path)
    away = s3_store.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    for act in (lambda: room.ls(away), lambda: room.verify(away), lambda: room.gc(away, prune.FORGOTTEN)):
        with pytest.raises(StoreUnreachableError, match="check that the server runs"):
            act()
