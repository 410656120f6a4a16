"""Removing what no delta uses."""

import itertools
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from shadowft_core.errors import StoreCorruptError, StoreError, StoreUnreachableError
from shadowft_core.store.backends import Entry, Objects
from shadowft_core.store.lock import PAUSE, SWEEP, TURNS, store_time, sweep
from shadowft_core.store.manifest import OBJECTS, claim_key, claimed, object_key, read_claim, read_manifest
from shadowft_core.store.transfer import each

BATCH = 500  # objects removed in one turn, so that a publisher waits for seconds
FORGOTTEN = 86400.0  # seconds after which nobody runs a probe or a commit any more, whatever the grace
_PROBE = re.compile(r"probe/[0-9a-f]{32}/.*")  # what probes leave behind; `probe/passed` stays


@dataclass(frozen=True)
class Garbage:
    """What `gc` removed, or would: objects and bytes, those too young for it, and those in use."""

    removed: int
    removed_bytes: int
    kept_young: int
    in_use: int


def collect(objects: Objects, grace: float, dry_run: bool) -> Garbage:
    """Remove chunks and manifests that no delta uses and that were written at least `grace` seconds ago, and what
    probes and finished commits left. Everything else in the store is left alone.

    Chunks of a delta that is being published are safe whatever the grace: its commit and the removal take turns
    (turns.py). The grace keeps what an interrupted publish has sent, so that the next try need not send it again.
    Raises StoreCorruptError, with nothing removed, when a claim or manifest cannot be read: what it uses is unknown.
    """
    now = time.time() if dry_run else store_time(objects)
    live, kept_young = _live(objects, {}), 0
    garbage: list[Entry] = []
    for entry in objects.entries(OBJECTS):
        if entry.key not in live:
            if now - entry.modified >= grace:
                garbage.append(entry)
            else:
                kept_young += 1
    leftovers = now - max(grace, FORGOTTEN)
    rest = [e for e in objects.entries("probe") if _PROBE.fullmatch(e.key) and e.modified <= leftovers]
    rest += [e for e in objects.entries(TURNS) if e.key != SWEEP and e.modified <= leftovers]
    if dry_run:
        every = garbage + rest
        return Garbage(len(every), sum(entry.size for entry in every), kept_young, len(live))
    removed = _remove(objects, garbage) + rest
    for _ in each(objects.delete, ((entry.key,) for entry in rest)):
        pass
    unfinished = objects.discard_unfinished(leftovers)
    total = sum(entry.size for entry in removed) + unfinished
    return Garbage(len(removed), total, kept_young, len(live))


def _remove(objects: Objects, garbage: list[Entry]) -> list[Entry]:
    """Remove what is still garbage when its turn comes, and return it."""
    manifests: dict[str, set[str]] = {}
    removed: list[Entry] = []
    for start in range(0, len(garbage), BATCH):
        with sweep(objects) as hold:
            live = _live(objects, manifests)  # once more: deltas may have been claimed since

            def one(entry: Entry, hold: Callable[[], None] = hold) -> Entry:
                hold()
                objects.delete(entry.key)
                return entry

            batch = ((entry,) for entry in garbage[start : start + BATCH] if entry.key not in live)
            removed += each(one, batch)
        if start + BATCH < len(garbage):
            print(f"gc: {start + BATCH} of {len(garbage)} objects", file=sys.stderr, flush=True)
            time.sleep(3 * PAUSE)  # room for those who wait for their commit
    return removed


def _live(objects: Objects, manifests: dict[str, set[str]]) -> set[str]:
    """Keys of all chunks and manifests in use. `manifests` keeps what was read before: a manifest never changes."""

    def one(digest: str, _: float) -> set[str]:
        try:
            claim = read_claim(objects, digest)
        except StoreError:
            if objects.head(claim_key(digest)) is None:  # removed since it was listed: it keeps nothing alive
                return set()
            raise
        if claim.manifest not in manifests:
            chunks = {object_key(chunk) for chunk, _ in read_manifest(objects, claim).chunks()}
            manifests[claim.manifest] = chunks | {object_key(claim.manifest)}
        return manifests[claim.manifest]

    try:
        return set(itertools.chain.from_iterable(each(one, claimed(objects))))
    except StoreUnreachableError:
        raise
    except StoreError as error:
        raise StoreCorruptError(f"{error}; nothing was removed, as what this delta uses cannot be told") from None
