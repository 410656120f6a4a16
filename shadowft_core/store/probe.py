"""Does a store keep the promises that publishing relies on? Asked once per store, before anything is sent."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.store.backends import Objects

RACERS, ROUNDS = 8, 5  # a store with a leaky If-None-Match lost 13 of 20 such rounds
PROBED = "probe/passed"
PASSED = canonical_json({"format": 1, "rounds": ROUNDS, "writers": RACERS})


def run_probe(objects: Objects) -> None:
    """Check what publishing relies on: one winner among 8 racing writers in 5 rounds, wrong checksums refused,
    compare-and-swap, and a listing that shows what was just written.

    Leaves a few small objects under `probe/`: publishing needs no right to delete.
    Raises StoreError naming the broken promise.
    """
    folder = f"probe/{uuid.uuid4().hex}"
    for number in range(ROUNDS):
        _race(objects, f"{folder}/race-{number}")
    wrong = f"{folder}/checksum"
    try:
        objects.put_if_absent(wrong, b"these bytes", bytes_digest(b"other bytes"))
    except StoreCorruptError:
        pass
    except StoreConflictError:  # it was stored, and then found to differ from what was asked for
        raise _broken(objects, "it stored bytes under a wrong checksum") from None
    else:
        raise _broken(objects, "it accepted a wrong checksum")
    if objects.head(wrong) is not None:
        raise _broken(objects, "it stored bytes under a wrong checksum")
    tag = objects.swap(f"{folder}/swap", b"1", None)
    new = objects.swap(f"{folder}/swap", b"2", tag)
    try:
        objects.swap(f"{folder}/swap", b"3", tag)
    except StoreConflictError:
        pass
    else:
        raise _broken(objects, "it replaced a version that was no longer current (If-Match)")
    if objects.read(f"{folder}/swap", 100) != (b"2", new):
        raise _broken(objects, "it does not return what was swapped in")
    if f"{folder}/swap" not in objects.list(folder):
        raise _broken(objects, "it does not list what was just written")


def require_probe(objects: Objects) -> None:
    """Probe once per store; that it passed stands in the store itself."""
    if objects.head(PROBED) is None:
        run_probe(objects)
        objects.put_if_absent(PROBED, PASSED, bytes_digest(PASSED))


def _broken(objects: Objects, what: str) -> StoreError:
    return StoreError(
        f"{objects.location}: this server cannot hold deltas safely: {what}; use AWS S3, SeaweedFS or a local folder"
    )


def _race(objects: Objects, key: str) -> None:
    barrier = threading.Barrier(RACERS)

    def write(number: int) -> bytes | None:
        data = f"writer {number}".encode()
        barrier.wait(60)
        try:
            objects.put_if_absent(key, data, bytes_digest(data))
        except StoreConflictError:
            return None
        return data

    with ThreadPoolExecutor(RACERS) as pool:
        winners = [data for data in pool.map(write, range(RACERS)) if data is not None]
    found = objects.read(key, 100)
    if len(winners) != 1 or found is None or found[0] != winners[0]:
        raise _broken(
            objects, f"of {RACERS} writers of one name {len(winners)} were told that they won (If-None-Match)"
        )
