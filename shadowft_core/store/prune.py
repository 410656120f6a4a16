"""Removes the objects that no delta uses."""

import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from shadowft_core.errors import StoreCorruptError, StoreError, StoreUnreachableError, say
from shadowft_core.store.backends import Backend, Entry
from shadowft_core.store.lock import LOCKS, PAUSE, PRUNE_LOCK, prune_lock, store_time
from shadowft_core.store.manifest import OBJECTS, claim_key, claimed, object_key, read_claim, read_manifest
from shadowft_core.store.transfer import each

BATCH = 500  # objects removed under one lock, so that a publisher waits only for seconds
ABANDONED = 86400.0  # seconds after which no probe or commit can still be running
_PROBE = re.compile(r"probe/[0-9a-f]{32}/.*")  # objects that probes leave; `probe/passed` stays


@dataclass(frozen=True)
class PruneResult:
    """Number and bytes of the objects that `prune` removed, or would remove, and how many it kept: young or in use."""

    removed: int
    removed_bytes: int
    kept_young: int
    in_use: int


def prune_objects(backend: Backend, grace: float, dry_run: bool) -> PruneResult:
    """Remove chunks and manifests that no delta uses and that were written at least `grace` seconds ago, and what
    probes and finished commits left. Other objects are not touched.

    Chunks of a delta that is being published are safe with any grace: commits and removals exclude each other
    (lock.py). The grace keeps what an interrupted publish has sent, so that the next attempt need not send it again.
    Raises StoreCorruptError when a claim or manifest cannot be read, because the chunks it uses are unknown. Nothing is
    removed then, or nothing more if that happens between two batches.
    """
    now = time.time() if dry_run else store_time(backend)
    used, kept_young = _used(backend, {}), 0
    unused: list[Entry] = []
    for entry in backend.entries(OBJECTS):
        if entry.key not in used:
            if now - entry.modified >= grace:
                unused.append(entry)
            else:
                kept_young += 1
    before = now - max(grace, ABANDONED)
    leftovers = [e for e in backend.entries("probe") if _PROBE.fullmatch(e.key) and e.modified <= before]
    leftovers += [e for e in backend.entries(LOCKS) if e.key != PRUNE_LOCK and e.modified <= before]
    if dry_run:
        every = unused + leftovers
        total = sum(entry.size for entry in every) + backend.discard_unfinished(before, dry_run)
        return PruneResult(len(every), total, kept_young, len(used))
    removed = _remove(backend, unused) + leftovers
    for _ in each(backend.delete, ((entry.key,) for entry in leftovers)):
        pass
    unfinished = backend.discard_unfinished(before)
    total = sum(entry.size for entry in removed) + unfinished
    return PruneResult(len(removed), total, kept_young, len(used))


def _remove(backend: Backend, unused: list[Entry]) -> list[Entry]:
    """Remove the entries that are still unused while the lock is held, and return them."""
    manifests: dict[str, set[str]] = {}
    removed: list[Entry] = []
    for start in range(0, len(unused), BATCH):
        with prune_lock(backend) as renew:
            used = _used(backend, manifests)  # read again: deltas may have been claimed since

            def one(entry: Entry, renew: Callable[[], None] = renew) -> Entry:
                renew()
                backend.delete(entry.key)
                return entry

            batch = ((entry,) for entry in unused[start : start + BATCH] if entry.key not in used)
            removed += each(one, batch)
        if start + BATCH < len(unused):
            say(f"prune: {start + BATCH} of {len(unused)} objects")
            time.sleep(3 * PAUSE)  # lets waiting publishers commit
    return removed


def _used(backend: Backend, manifests: dict[str, set[str]]) -> set[str]:
    """Keys of all chunks and manifests in use. `manifests` caches those already read: a manifest never changes."""

    def one(digest: str, _: float) -> set[str]:
        try:
            claim = read_claim(backend, digest)
        except StoreError:
            if backend.head(claim_key(digest)) is None:  # removed since it was listed, so it uses nothing
                return set()
            raise
        if claim.manifest not in manifests:
            chunks = {object_key(chunk) for chunk, _ in read_manifest(backend, claim).chunks()}
            manifests[claim.manifest] = chunks | {object_key(claim.manifest)}
        return manifests[claim.manifest]

    try:
        return set(itertools.chain.from_iterable(each(one, claimed(backend))))
    except StoreUnreachableError:
        raise
    except StoreError as error:
        raise StoreCorruptError(f"{error}; nothing more was removed: the chunks of this delta are unknown") from None
