"""Every network fault at every request between boto3 and SeaweedFS; publish and fetch still succeed."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from shadowft_core import store as room
from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreUnreachableError
from shadowft_core.store.backends import PATIENCE
from tests.faults.conftest import Place, Published, contents
from tests.faults.proxy import DOWN, UP, Fault, Kind, Proxy

Fresh = Callable[[], Place]
QUICK = [kind for kind in get_args(Kind) if kind not in ("pass", "stall")]


def published_through(place: Place, proxy: Proxy, delta: Published, out: Path, *faults: Fault) -> None:
    """Publish under faults and check the content of the store."""
    proxy.start_over(*faults)
    assert room.publish(delta.folder, place.through) == delta.digest
    assert proxy.exchanges("DELETE|POST") == []
    assert place.visible() == [delta.digest]
    room.fetch_delta(delta.digest, place.direct, out)
    assert contents(out) == delta.files
    shutil.rmtree(out)


@pytest.mark.faults
@pytest.mark.parametrize("kind", QUICK)
def test_a_publish_survives_a_fault_at_any_request(
    kind: Kind, fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    points = 0
    while True:
        fault = Fault(kind, first=points + 1, bit=1000 + points)
        published_through(fresh_place(), proxy, delta, tmp_path / "out", fault)
        if not fault.hits:
            break
        points += 1
    assert points >= (7 if kind in UP else 14)
    figures(f"{points} faults, {points} publishes right")


@pytest.mark.faults
@pytest.mark.parametrize("kind", [kind for kind in QUICK if kind not in UP])
def test_a_fetch_survives_a_fault_at_any_request(
    kind: Kind, fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    place = fresh_place()
    room.publish(delta.folder, place.direct)
    points = 0
    while True:
        fault = Fault(kind, first=points + 1, bit=1000 + points)
        proxy.start_over(fault)
        room.fetch_delta(delta.digest, place.through, tmp_path / "out")
        assert contents(tmp_path / "out") == delta.files
        shutil.rmtree(tmp_path / "out")
        if not fault.hits:
            break
        points += 1
    assert points >= 7
    figures(f"{points} faults, {points} fetches right")


@pytest.mark.faults
def test_a_stalled_request_times_out_and_is_repeated(
    fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    started = time.monotonic()
    for path in ("/objects/", "/deltas/"):
        fault = Fault("stall", method="PUT", path=path)
        published_through(fresh_place(), proxy, delta, tmp_path / "out", fault)
        assert fault.hits == 1
    figures(f"2 stalled PUTs, both publishes right, {time.monotonic() - started:.0f} s in all")


def test_a_publish_survives_each_kind_of_fault_and_a_lost_reply_to_every_put(
    fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    """One publish in which the reply to each PUT is lost once, and one with each kind of fault."""
    plain = fresh_place()
    published_through(plain, proxy, delta, tmp_path / "out")
    keys = {x.path.partition(plain.prefix)[2] for x in proxy.exchanges("PUT")}
    named = {key if re.match("/(objects|deltas)/", key) else key.rpartition("/")[0] for key in keys}
    lost = [Fault("lost_reply", method="PUT", path=name) for name in named]
    place = fresh_place()
    published_through(place, proxy, delta, tmp_path / "out", *lost)
    assert [fault.hits for fault in lost] == [1] * len(named)
    assert [place.keys(below) for below in ("objects/", "deltas/")] == [plain.keys("objects/"), plain.keys("deltas/")]
    mixed = [Fault(kind, method="HEAD|GET" if kind in DOWN else "PUT", first=n) for n, kind in enumerate(QUICK, 1)]
    published_through(fresh_place(), proxy, delta, tmp_path / "out", *mixed)
    assert sum(fault.hits for fault in mixed) >= len(QUICK) - len(DOWN)
    figures(f"{len(named)} of {len(named)} PUTs without a reply: right outcome, nothing deleted, same objects")


def test_a_lost_reply_does_not_hide_a_conflict(
    fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path
) -> None:
    """The key holds other content and the refusal is lost: still a conflict, and nothing is replaced."""
    place = fresh_place()
    room.publish(delta.folder, place.direct)
    other = Path(shutil.copytree(delta.folder, tmp_path / "other"))
    weights = bytearray((other / "dense.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "dense.safetensors").write_bytes(weights)
    proxy.start_over(Fault("lost_reply", method="PUT", path="/deltas/", times=2))
    with pytest.raises(StoreConflictError, match="with another dense"):
        room.publish(other, place.through)
    assert place.visible() == [delta.digest]
    room.fetch_delta(delta.digest, place.direct, tmp_path / "out")
    assert contents(tmp_path / "out") == delta.files


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "error"), [("unavailable", StoreUnreachableError), ("flip_up", StoreCorruptError)])
def test_a_permanent_fault_is_one_error_in_bounded_time(
    kind: Kind, error: type[Exception], fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path
) -> None:
    for path in ("/objects/", "/deltas/"):
        place = fresh_place()
        proxy.start_over(Fault(kind, method="PUT", path=path, times=10**6))
        started = time.monotonic()
        with pytest.raises(error) as caught:
            room.publish(delta.folder, place.through)
        assert time.monotonic() - started < PATIENCE + 5
        assert "\n" not in str(caught.value)
        assert place.visible() == []
        assert proxy.exchanges("DELETE") == []
        published_through(place, proxy, delta, tmp_path / "out")
