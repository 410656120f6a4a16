"""Checks once per store, before anything is sent, that it does what publishing relies on."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.store.backends import Backend

RACERS, ROUNDS = 8, 5  # a store with a leaky If-None-Match lost 13 of 20 such rounds
PROBED = "probe/passed"
PASSED = canonical_json({"format": 1, "rounds": ROUNDS, "writers": RACERS})


def run_probe(backend: Backend) -> None:
    """Check that of 8 racing writers exactly one wins in each of 5 rounds, that wrong checksums are refused, that
    compare-and-swap holds, and that a listing shows what was just written.

    Leaves a few small objects under `probe/`, since publishing needs no permission to delete.
    Raises StoreError naming the check that failed.
    """
    folder = f"probe/{uuid.uuid4().hex}"
    for number in range(ROUNDS):
        _race(backend, f"{folder}/race-{number}")
    wrong = f"{folder}/checksum"
    try:
        backend.put_if_absent(wrong, b"these bytes", bytes_digest(b"other bytes"))
    except StoreCorruptError:
        pass
    except StoreConflictError:  # it was stored, and the read-back found other bytes
        raise _failed(backend, "it stored bytes under a wrong checksum") from None
    else:
        raise _failed(backend, "it accepted a wrong checksum")
    if backend.head(wrong) is not None:
        raise _failed(backend, "it stored bytes under a wrong checksum")
    tag = backend.swap(f"{folder}/swap", b"1", None)
    new = backend.swap(f"{folder}/swap", b"2", tag)
    try:
        backend.swap(f"{folder}/swap", b"3", tag)
    except StoreConflictError:
        pass
    else:
        raise _failed(backend, "it replaced a version that was no longer current (If-Match)")
    if backend.read(f"{folder}/swap", 100) != (b"2", new):
        raise _failed(backend, "it does not return what was just swapped in")
    if f"{folder}/swap" not in backend.list(folder):
        raise _failed(backend, "it does not list what was just written")


def require_probe(backend: Backend) -> None:
    """Probe the store unless the object `probe/passed` records that it passed before."""
    if backend.head(PROBED) is None:
        run_probe(backend)
        backend.put_if_absent(PROBED, PASSED, bytes_digest(PASSED))


def _failed(backend: Backend, what: str) -> StoreError:
    return StoreError(
        f"{backend.location}: this server cannot hold deltas safely: {what}; use AWS S3, SeaweedFS or a local folder"
    )


def _race(backend: Backend, key: str) -> None:
    barrier = threading.Barrier(RACERS)

    def write(number: int) -> bytes | None:
        data = f"writer {number}".encode()
        barrier.wait(60)
        try:
            backend.put_if_absent(key, data, bytes_digest(data))
        except StoreConflictError:
            return None
        return data

    with ThreadPoolExecutor(RACERS) as pool:
        winners = [data for data in pool.map(write, range(RACERS)) if data is not None]
    found = backend.read(key, 100)
    if len(winners) != 1 or found is None or found[0] != winners[0]:
        raise _failed(
            backend, f"{RACERS} writers raced for one name and {len(winners)} of them succeeded (If-None-Match)"
        )
