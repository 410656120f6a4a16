"""Compares every object of a store with its digest, and lists the deltas in it."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shadowft_core.errors import StoreCorruptError, StoreError, StoreUnreachableError
from shadowft_core.files import parse_json, write_atomically
from shadowft_core.store.backends import Backend
from shadowft_core.store.manifest import (
    OBJECTS,
    Manifest,
    claim_key,
    claimed,
    object_key,
    read_claim,
    read_delta_json,
    read_manifest,
)
from shadowft_core.store.records import read_record, record_key, recorded
from shadowft_core.store.transfer import Progress, each


class _NullSink:
    """A binary sink that discards all writes."""

    def tell(self) -> int:
        return 0

    def seek(self, _: int) -> int:
        return 0

    def write(self, data: bytes) -> int:
        return len(data)


@dataclass(frozen=True)
class BadObject:
    """A damaged or missing object, its problem, and the deltas that need it (none for a record)."""

    key: str
    problem: str
    deltas: tuple[str, ...]


@dataclass(frozen=True)
class CheckResult:
    """Numbers of deltas, records (recipes and verdicts) and objects of both; bytes of chunks and records; number of
    chunks that an interrupted run had already checked; and the bad objects."""

    deltas: int
    records: int
    objects: int
    bytes: int
    resumed: int
    bad: tuple[BadObject, ...]


def check_objects(backend: Backend, digests: list[str], state: Path) -> CheckResult:
    """Read every object of these deltas and records, of all when empty, and compare it with its digest.

    `state` is a text file of the objects found good, from which an interrupted check resumes; it reads again those that
    are missing or have another size by then. A completed check removes the file. Raises StoreUnreachableError.
    Damage is returned, not raised.
    """
    records = dict(recorded(backend))
    if digests:
        records = {digest: size for digest, size in records.items() if digest in digests}
        deltas = [digest for digest in digests if digest not in records]
    else:
        deltas = [digest for digest, _ in claimed(backend)]
    sizes, needs, problems = _needed(backend, deltas)
    progress = Progress("check", sum(size for _, size in sizes.values()))
    with _Good(state, backend.location) as good:

        def one(key: str, digest: str, size: int) -> tuple[str, str | None]:
            try:
                backend.get(key, size, digest, _NullSink())  # type: ignore[arg-type]
            except StoreUnreachableError:
                raise
            except StoreError as error:
                return key, str(error)
            progress.add(size, size)
            return key, None

        stored = {entry.key: entry.size for entry in backend.entries(OBJECTS)} if good else {}
        resumed = {key for key, (_, size) in sizes.items() if key in good and stored.get(key) == size}
        work = ((key, *about) for key, about in sizes.items() if key not in resumed)
        for key, problem in each(one, work):
            if problem is None:
                good.add(key)
            else:
                problems[key] = problem
    for digest, problem in each(lambda digest: (digest, _problem_of(backend, digest)), ((one,) for one in records)):
        if problem is not None:
            problems[record_key(digest)] = problem
    bad = tuple(BadObject(key, problem, tuple(needs.get(key, ()))) for key, problem in sorted(problems.items()))
    state.unlink(missing_ok=True)
    total = sum(size for _, size in sizes.values()) + sum(records.values())
    return CheckResult(len(deltas), len(records), len(needs) + len(records), total, len(resumed), bad)


def _needed(
    backend: Backend, deltas: list[str]
) -> tuple[dict[str, tuple[str, int]], dict[str, list[str]], dict[str, str]]:
    """By key: digest and bytes of every chunk of these deltas, the deltas that need an object, and problems of claims,
    manifests and lists of files."""
    sizes: dict[str, tuple[str, int]] = {}
    needs: dict[str, list[str]] = defaultdict(list)
    problems: dict[str, str] = {}
    for digest in deltas:
        where = claim_key(digest)
        needs[where].append(digest)
        try:
            claim = read_claim(backend, digest)
            where = object_key(claim.manifest)
            needs[where].append(digest)
            manifest = read_manifest(backend, claim)
            for chunk, size in manifest.chunks():
                key = object_key(chunk)
                sizes[key] = chunk, size
                if needs[key][-1:] != [digest]:
                    needs[key].append(digest)
            where = object_key(digest)
            read_delta_json(backend, manifest)
        except StoreUnreachableError:
            raise
        except StoreError as error:
            problems[where] = str(error)
    return sizes, needs, problems


def _problem_of(backend: Backend, digest: str) -> str | None:
    """The problem of a listed record; None when its bytes have this digest."""
    try:
        if read_record(backend, digest) is not None:
            return None
    except StoreUnreachableError:
        raise
    except StoreError as error:
        return str(error)
    return f"{backend.location}: {record_key(digest)} is missing; register the run that made it again"


class _Good:
    """The file of objects that a check found good: its first line names the store, each further line is a key."""

    def __init__(self, path: Path, location: str) -> None:
        lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []  # drops a torn last line
        first = f"objects found good in {location}"
        self._keys = set(lines[1:]) if lines[:1] == [first] else set()
        write_atomically(path, "".join(f"{line}\n" for line in (first, *sorted(self._keys))).encode())
        self._path = path
        self._file: IO[str]

    def __enter__(self) -> "_Good":
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        self._file.write(f"{key}\n")
        self._file.flush()


@dataclass(frozen=True)
class ListedDelta:
    """A published delta: digest, kind from its certificate, bytes, bytes in chunks that other deltas use too, and the
    time of its claim (POSIX seconds, the store's clock). `problem` is set when it cannot be read."""

    digest: str
    kind: str
    bytes: int
    shared_bytes: int
    published: float
    problem: str | None = None


def list_deltas(backend: Backend) -> list[ListedDelta]:
    """Every delta of a store, oldest first; a damaged delta is listed with its problem.

    Raises StoreUnreachableError.
    """

    def one(digest: str, when: float) -> tuple[str, float, Manifest | None, str]:
        try:
            manifest = read_manifest(backend, read_claim(backend, digest))
            return digest, when, manifest, _kind(backend, manifest)
        except StoreUnreachableError:
            raise
        except StoreError as error:
            return digest, when, None, str(error)

    found = list(each(one, claimed(backend)))
    users: dict[str, set[str]] = defaultdict(set)
    for digest, _, manifest, _ in found:
        for chunk, _ in manifest.chunks() if manifest else ():
            users[chunk].add(digest)
    rows = []
    for digest, when, manifest, kind_or_problem in found:
        if manifest is None:
            rows.append(ListedDelta(digest, "", 0, 0, when, kind_or_problem))
        else:
            shared = sum(size for chunk, size in set(manifest.chunks()) if len(users[chunk]) > 1)
            rows.append(ListedDelta(digest, kind_or_problem, manifest.bytes, shared, when))
    return sorted(rows, key=lambda row: (row.published, row.digest))


def _kind(backend: Backend, manifest: Manifest) -> str:
    """The field `kind` of delta.json; `unknown` when it cannot be read."""
    kind = parse_json(read_delta_json(backend, manifest), manifest.delta, StoreCorruptError).get("kind")
    return kind if isinstance(kind, str) and kind.isprintable() and len(kind) < 100 else "unknown"
