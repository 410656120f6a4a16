"""Looking after a store: is all of it still right, and what is in it."""

import io
import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shadowft_core.errors import StoreError, StoreUnreachableError
from shadowft_core.files import write_atomically
from shadowft_core.store.backends import Objects
from shadowft_core.store.manifest import (
    CERTIFICATE,
    Manifest,
    claim_key,
    claimed,
    object_key,
    read_claim,
    read_manifest,
)
from shadowft_core.store.records import read_record, record_key, recorded
from shadowft_core.store.transfer import Progress, each


class _Nowhere:
    """A binary sink that keeps nothing."""

    def tell(self) -> int:
        return 0

    def seek(self, _: int) -> int:
        return 0

    def write(self, data: bytes) -> int:
        return len(data)


@dataclass(frozen=True)
class Bad:
    """An object that is damaged or missing, what is wrong with it, and the deltas that need it; none for a record."""

    key: str
    problem: str
    deltas: tuple[str, ...]


@dataclass(frozen=True)
class Scrub:
    """What `verify` found: deltas, records (recipes and verdicts), the objects of both, the bytes of chunks and
    records, how many chunks an interrupted run had found good, and the bad objects."""

    deltas: int
    records: int
    objects: int
    bytes: int
    resumed: int
    bad: tuple[Bad, ...]


def scrub(objects: Objects, digests: list[str], state: Path) -> Scrub:
    """Read every object of these deltas and records, of all when empty, and compare it with its digest.

    `state` is a text file of the objects found good, so that an interrupted scrub goes on where it was; it is removed
    when the scrub ends. Raises StoreUnreachableError; damage is returned.
    """
    records = dict(recorded(objects))
    if digests:
        records = {digest: size for digest, size in records.items() if digest in digests}
        wanted = [digest for digest in digests if digest not in records]
    else:
        wanted = [digest for digest, _ in claimed(objects)]
    sizes: dict[str, tuple[str, int]] = {}
    needs: dict[str, list[str]] = defaultdict(list)
    problems: dict[str, str] = {}
    for digest in wanted:
        where = claim_key(digest)
        needs[where].append(digest)
        try:
            claim = read_claim(objects, digest)
            where = object_key(claim.manifest)
            needs[where].append(digest)
            manifest = read_manifest(objects, claim)
        except StoreUnreachableError:
            raise
        except StoreError as error:
            problems[where] = str(error)
            continue
        for chunk, size in manifest.chunks():
            key = object_key(chunk)
            sizes[key] = chunk, size
            if needs[key][-1:] != [digest]:
                needs[key].append(digest)
    progress = Progress("verify", sum(size for _, size in sizes.values()))
    with _Done(state, objects.location) as done:

        def one(key: str, digest: str, size: int) -> tuple[str, str | None]:
            try:
                objects.get(key, size, digest, _Nowhere())  # type: ignore[arg-type]
            except StoreUnreachableError:
                raise
            except StoreError as error:
                return key, str(error)
            progress.add(size, size)
            return key, None

        work = ((key, *about) for key, about in sizes.items() if key not in done)
        resumed = sum(key in done for key in sizes)
        for key, problem in each(one, work):
            if problem is None:
                done.add(key)
            else:
                problems[key] = problem
    for digest, problem in each(lambda digest: (digest, _problem_of(objects, digest)), ((one,) for one in records)):
        if problem is not None:
            problems[record_key(digest)] = problem
    bad = tuple(Bad(key, problem, tuple(needs.get(key, ()))) for key, problem in sorted(problems.items()))
    state.unlink(missing_ok=True)
    total = sum(size for _, size in sizes.values()) + sum(records.values())
    return Scrub(len(wanted), len(records), len(needs) + len(records), total, resumed, bad)


def _problem_of(objects: Objects, digest: str) -> str | None:
    """What is wrong with a record that was listed; None when it is what its digest says."""
    try:
        if read_record(objects, digest) is not None:
            return None
    except StoreUnreachableError:
        raise
    except StoreError as error:
        return str(error)
    return f"{objects.location}: {record_key(digest)} is missing; register the run that made it again"


class _Done:
    """The objects a scrub of this store has found good: the first line names the store, then one key a line."""

    def __init__(self, path: Path, location: str) -> None:
        lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []  # a torn last line does not count
        first = f"objects found good in {location}"
        self._keys = set(lines[1:]) if lines[:1] == [first] else set()
        write_atomically(path, "".join(f"{line}\n" for line in (first, *sorted(self._keys))).encode())
        self._path = path
        self._file: IO[str]

    def __enter__(self) -> "_Done":
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        self._file.write(f"{key}\n")
        self._file.flush()


@dataclass(frozen=True)
class Listed:
    """A published delta: digest, kind as its certificate says, bytes, of these the bytes in chunks that other deltas
    use too, and when it was claimed (POSIX seconds, the store's clock). `problem` is set when it cannot be read."""

    digest: str
    kind: str
    bytes: int
    shared_bytes: int
    published: float
    problem: str | None = None


def listing(objects: Objects) -> list[Listed]:
    """Every delta of a store, the oldest first. Raises StoreUnreachableError; a damaged delta is listed with its
    problem.
    """

    def one(digest: str, when: float) -> tuple[str, float, Manifest | None, str]:
        try:
            manifest = read_manifest(objects, read_claim(objects, digest))
            return digest, when, manifest, _kind(objects, manifest)
        except StoreUnreachableError:
            raise
        except StoreError as error:
            return digest, when, None, str(error)

    found = list(each(one, claimed(objects)))
    users: dict[str, set[str]] = defaultdict(set)
    for digest, _, manifest, _ in found:
        for chunk, _ in manifest.chunks() if manifest else ():
            users[chunk].add(digest)
    rows = []
    for digest, when, manifest, said in found:
        if manifest is None:
            rows.append(Listed(digest, "", 0, 0, when, said))
        else:
            shared = sum(size for chunk, size in set(manifest.chunks()) if len(users[chunk]) > 1)
            rows.append(Listed(digest, said, manifest.bytes, shared, when))
    return sorted(rows, key=lambda row: (row.published, row.digest))


def _kind(objects: Objects, manifest: Manifest) -> str:
    """What delta.json calls the delta; other rooms own its format, so nothing else is looked at."""
    ((digest, size),) = manifest.files[CERTIFICATE].chunks
    sink = io.BytesIO()
    objects.get(object_key(digest), size, digest, sink)
    with suppress(ValueError, AttributeError):
        return str(json.loads(sink.getvalue()).get("kind", "unknown"))
    return "unknown"
