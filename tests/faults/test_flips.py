"""Single bits are flipped in transit and at rest, in every class of object: no wrong byte is accepted."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowft_core import store as room
from shadowft_core.errors import StoreError
from tests.faults.conftest import Place, Published, contents
from tests.faults.proxy import Fault, Proxy

Fresh = Callable[[], Place]
CLASSES = ["chunk", "certificate", "manifest", "claim"]


def fetched_or_refused(place: Place, delta: Published, out: Path) -> StoreError | None:
    """Fetch through the proxy; None for the right bytes, else the error, in one line, with an empty parent of `out`."""
    try:
        room.fetch_delta(delta.digest, place.through, out)
    except StoreError as refusal:
        error = refusal
    else:
        assert contents(out) == delta.files
        shutil.rmtree(out)
        return None
    assert "\n" not in str(error)
    assert list(out.parent.iterdir()) == []
    return error


def flip_in_upload(kind: str, count: int, fresh: Fresh, proxy: Proxy, delta: Published) -> int:
    """Flip one bit of one PUT of a publish, `count` times; count those that the server refused before the retry."""
    rng, refused = random.Random(f"up {kind}"), 0
    example = fresh()
    room.publish(delta.folder, example.direct)
    for _ in range(count):
        place, key = fresh(), rng.choice(example.objects_of(delta.digest)[kind])
        fault = Fault("flip_up", method="PUT", path=f"{place.prefix}/{key}$", bit=rng.randrange(2**40))
        proxy.start_over(fault)
        assert room.publish(delta.folder, place.through) == delta.digest
        assert fault.hits == 1
        assert place.visible() == [delta.digest]
        refused += [x.status for x in proxy.exchanges("PUT", f"{place.prefix}/{key}$")] == [400, 200]
    return refused


def flip_in_download(kind: str, count: int, place: Place, proxy: Proxy, delta: Published, out: Path) -> int:
    """Flip one bit of one object in one or all answers to a fetch, `count` times; count those that were noticed."""
    rng, noticed = random.Random(f"down {kind}"), 0
    for number in range(count):
        key = rng.choice(place.objects_of(delta.digest)[kind])
        permanent = number % 10 == 9
        bit = rng.randrange(2**40)
        fault = Fault("flip_down", method="GET", path=f"{key}$", bit=bit, times=10**6 if permanent else 1)
        proxy.start_over(fault)
        error = fetched_or_refused(place, delta, out)
        if permanent:
            noticed += error is not None
        else:
            assert error is None
            noticed += len(proxy.exchanges("GET", f"{key}$")) == 2
    return noticed


def flip_at_rest(kind: str, count: int, place: Place, proxy: Proxy, delta: Published, out: Path) -> int:
    """Replace an object by one with a flipped bit and a matching checksum, `count` times; count the refused fetches."""
    rng, refused = random.Random(f"rest {kind}"), 0
    proxy.start_over()
    for _ in range(count):
        key = rng.choice(place.objects_of(delta.digest)[kind])
        good = place.read(key)
        bad, bit = bytearray(good), rng.randrange(8 * len(good))
        bad[bit // 8] ^= 1 << bit % 8
        place.write(key, bytes(bad))
        refused += fetched_or_refused(place, delta, out) is not None
        place.write(key, good)
    return refused


def test_one_flipped_bit_in_either_direction_is_detected_in_every_class(
    fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path
) -> None:
    out, place = tmp_path / "fetched" / "out", fresh_place()
    out.parent.mkdir()
    room.publish(delta.folder, place.direct)
    assert flip_in_upload("chunk", 1, fresh_place, proxy, delta) == 1
    assert flip_in_upload("claim", 1, fresh_place, proxy, delta) == 1
    assert [flip_in_download(kind, 1, place, proxy, delta, out) for kind in ("chunk", "claim")] == [1, 1]
    assert [flip_at_rest(kind, 1, place, proxy, delta, out) for kind in CLASSES] == [1, 1, 1, 1]


@pytest.mark.faults
@pytest.mark.parametrize("kind", CLASSES)
def test_many_flipped_bits_are_detected(
    kind: str, fresh_place: Fresh, proxy: Proxy, delta: Published, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    out, place = tmp_path / "fetched" / "out", fresh_place()
    out.parent.mkdir()
    room.publish(delta.folder, place.direct)
    found = {
        "up": flip_in_upload(kind, 25, fresh_place, proxy, delta),
        "down": flip_in_download(kind, 25, place, proxy, delta, out),
        "at rest": flip_at_rest(kind, 25, place, proxy, delta, out),
    }
    figures(f"detected of 25 each: {found}; wrong bytes at the final path: 0")
    assert found == {"up": 25, "down": 25, "at rest": 25}
