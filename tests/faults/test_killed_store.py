"""Publish and fetch are killed at every request and at every change of a file; the next run succeeds."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowft_core import store as room
from shadowft_core.errors import StoreError
from shadowft_core.params import Store
from tests.faults.conftest import Place, Published, contents
from tests.faults.proxy import Fault, Kind, Proxy
from tests.faults.victim import CHUNK, KILLED, ended, spawn, verb

Fresh = Callable[[], Place]
Figures = Callable[[str], None]


def killed_at_request(proxy: Proxy, fault: Fault, arguments: list[str], log: Path) -> bool:
    """Run a verb in a process that is killed when the fault occurs; False when it succeeded without the fault."""
    process = spawn(verb, arguments, dict(os.environ), log, None)
    pid = process.pid
    assert pid is not None
    fault.then = lambda: os.kill(pid, signal.SIGKILL)
    proxy.start_over(fault)
    code = ended(process)
    assert code == (KILLED if fault.hits else 0), log.read_text()
    return bool(fault.hits)


def publish_killed(
    number: int, kind: Kind, fresh: Fresh, proxy: Proxy, delta: Published, folder: Path, path: str = ""
) -> tuple[bool, bool]:
    """Kill a publish at its `number`-th request, publish again, fetch; return whether it was killed and had committed.

    After the kill a reader sees all of the delta or nothing. The second run returns the same digest and sends only what
    is missing.
    """
    place = fresh()
    arguments = ["store", "publish", "--delta", str(delta.folder), "--store", place.through.uri]
    fault = Fault(kind, path=path, first=number)
    died = killed_at_request(proxy, fault, [*arguments, "--endpoint", proxy.endpoint], folder / "log")
    seen = place.visible()
    assert seen in ([], [delta.digest])
    stored = set(place.keys("objects/"))
    proxy.start_over()
    assert room.publish(delta.folder, place.through) == delta.digest
    assert {x.path.partition(place.prefix + "/")[2] for x in proxy.exchanges("PUT", "/objects/")}.isdisjoint(stored)
    assert proxy.exchanges("DELETE|POST") == []
    assert place.visible() == [delta.digest]
    room.fetch_delta(delta.digest, place.direct, folder / f"again-{kind}-{number}")
    assert contents(folder / f"again-{kind}-{number}") == delta.files
    return died, bool(seen)


def fetch_killed(number: int, kind: Kind, place: Place, proxy: Proxy, delta: Published, out: Path) -> bool:
    """Kill a fetch at its `number`-th request: `out` is absent or complete, and complete after the second run."""
    arguments = ["store", "fetch", delta.digest, "--out", str(out), "--store", place.through.uri]
    log = out.with_name("log")
    died = killed_at_request(proxy, Fault(kind, first=number), [*arguments, "--endpoint", proxy.endpoint], log)
    if died and kind != "lost_reply":
        assert not out.exists()
    assert not out.exists() or contents(out) == delta.files
    room.fetch_delta(delta.digest, place.direct, out)
    assert contents(out) == delta.files
    shutil.rmtree(out)
    return died


def test_a_publish_killed_while_it_sends_a_chunk_or_the_claim_can_be_repeated(
    fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path
) -> None:
    for kind, path, committed in [
        ("truncate_up", "/objects/", False),
        ("truncate_up", "/deltas/", False),
        ("lost_reply", "/deltas/", None),
    ]:
        died, seen = publish_killed(1, kind, fresh_place, proxy, delta, tmp_path, path)
        assert died
        assert committed is None or seen == committed
        shutil.rmtree(tmp_path / f"again-{kind}-1")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["reset", "truncate_up", "lost_reply"])
def test_a_publish_killed_at_any_request_can_be_repeated(
    kind: Kind, fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path, figures: Figures
) -> None:
    points = committed = 0
    while True:
        died, seen = publish_killed(points + 1, kind, fresh_place, proxy, delta, tmp_path)
        if not died:
            break
        points, committed = points + 1, committed + seen
    assert points >= (7 if kind == "truncate_up" else 14)
    figures(f"{points} kills, {committed} after the commit, {points} re-runs with the same digest, 0 partly visible")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["reset", "truncate_down", "lost_reply"])
def test_a_fetch_killed_at_any_request_can_be_repeated(
    kind: Kind, fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path, figures: Figures
) -> None:
    place = fresh_place()
    room.publish(delta.folder, place.direct)
    points = 0
    while fetch_killed(points + 1, kind, place, proxy, delta, tmp_path / "out"):
        points += 1
    assert points >= 7
    figures(f"{points} kills, {points} re-runs with the same bytes, 0 incomplete folders at the final path")


def killed_at_change(number: int, folder: Path, arguments: list[str], log: Path) -> bool:
    """Run a verb that is killed at its `number`-th change of a file below `folder`; False when it makes fewer."""
    code = ended(spawn(verb, arguments, {}, log, (number, folder)))
    assert code in (0, KILLED), log.read_text()
    return code == KILLED


@pytest.mark.faults
def test_a_publish_into_a_folder_killed_at_any_change_of_a_file_can_be_repeated(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch, delta: Published, tmp_path: Path, figures: Figures
) -> None:
    monkeypatch.setattr(room, "CHUNK", CHUNK)
    room.require_writable(folder_store)
    points = committed = 0
    while True:
        uri = str(shutil.copytree(folder_store.uri, tmp_path / f"store-{points}"))
        store, arguments = Store(uri=uri), ["store", "publish", "--delta", str(delta.folder), "--store", uri]
        if not killed_at_change(points + 1, tmp_path, arguments, tmp_path / "log"):
            break
        points += 1
        if room.holds(delta.digest, store):
            committed += 1
            room.fetch_delta(delta.digest, store, tmp_path / "seen")
            assert contents(tmp_path / "seen") == delta.files
        else:
            with pytest.raises(StoreError, match="no delta"):
                room.fetch_delta(delta.digest, store, tmp_path / "seen")
        assert room.publish(delta.folder, store) == delta.digest
        room.fetch_delta(delta.digest, store, tmp_path / "again")
        assert contents(tmp_path / "again") == delta.files
        shutil.rmtree(uri)
    assert points >= 30
    assert 0 < committed < points
    figures(f"{points} kills, {committed} after the commit, {points} re-runs with the same digest")


@pytest.mark.faults
def test_a_fetch_killed_at_any_change_of_a_file_can_be_repeated(
    fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path, figures: Figures
) -> None:
    place = fresh_place()
    room.publish(delta.folder, place.direct)
    out, former = tmp_path / "run" / "out", tmp_path / "former"
    former.mkdir()
    (former / "former.txt").write_text("a result of yesterday")
    arguments = ["store", "fetch", delta.digest, "--out", str(out), "--store", place.direct.uri]
    arguments += ["--endpoint", str(place.direct.endpoint)]
    points = finished = 0
    while True:
        shutil.copytree(former, out)
        if not killed_at_change(points + 1, tmp_path, arguments, tmp_path / "log"):
            break
        points += 1
        if out.exists():
            assert contents(out) in (contents(former), delta.files)
            finished += contents(out) == delta.files
        else:  # between the two renames: the former result is in `.out.old`
            assert contents(out.with_name(".out.old")) == contents(former)
        room.fetch_delta(delta.digest, place.direct, out)
        assert contents(out) == delta.files
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        shutil.rmtree(out)
    assert points >= 15
    figures(f"{points} kills, {finished} after the last rename, {points} re-runs with the same bytes, former kept")
