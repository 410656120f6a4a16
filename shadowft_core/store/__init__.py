"""Deltas by content: published once and whole, fetched by digest, verified byte by byte.

Keys: `objects/sha256/ab/<hex>` for chunks and manifests, named by their content, and `deltas/<hex>` of the
delta's digest, the claim, which names the manifest. The claim is written last: a delta whose claim stands is complete.

SHADOWFT_STORE_URI and SHADOWFT_STORE_ENDPOINT in the environment override params.store, as AWS_* do for credentials.
"""

import hashlib
import io
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shadowft_core.checkpoint import bytes_digest, canonical_json, file_digest, new_folder
from shadowft_core.errors import DeltaError, StoreConflict, StoreCorrupt, StoreError
from shadowft_core.objects import Objects, open_objects
from shadowft_core.params import Store
from shadowft_core.store.promises import require_probe, run_probe

CHUNK = 16 << 20  # bytes
LARGEST_CHUNK = 256 << 20
LARGEST_MANIFEST = 16 << 20
LARGEST_CLAIM = 4096
THREADS = 4

_DIGEST = r"^sha256:[0-9a-f]{64}$"
_FILE = re.compile(r"delta\.json|[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")

T = TypeVar("T")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _File(_Strict):
    bytes: int = Field(ge=0)
    digest: str = Field(pattern=_DIGEST)
    chunks: list[tuple[str, int]]  # digest, bytes; in the order of the file

    @model_validator(mode="after")
    def _chunks_make_the_file(self) -> "_File":
        if not all(re.match(_DIGEST, digest) and 0 < size <= LARGEST_CHUNK for digest, size in self.chunks):
            raise ValueError(f"a chunk has no sha256 digest or not between 1 and {LARGEST_CHUNK} bytes")
        if sum(size for _, size in self.chunks) != self.bytes:
            raise ValueError(f"chunks of {sum(size for _, size in self.chunks)} bytes for a file of {self.bytes}")
        return self


class _Manifest(_Strict):
    format: int = Field(ge=1, le=1)
    delta: str = Field(pattern=_DIGEST)
    files: dict[str, _File] = Field(min_length=2, max_length=10_000)

    @model_validator(mode="after")
    def _holds_its_delta(self) -> "_Manifest":
        if bad := [name for name in self.files if not _FILE.fullmatch(name)]:
            raise ValueError(f"file name {bad[0][:80]!r} is not delta.json or NAME.safetensors")
        if "delta.json" not in self.files or self.files["delta.json"].digest != self.delta:
            raise ValueError("delta.json is not the one of this delta")
        return self


class _Claim(_Strict):
    format: int = Field(ge=1, le=1)
    delta: str = Field(pattern=_DIGEST)
    manifest: str = Field(pattern=_DIGEST)
    manifest_bytes: int = Field(gt=0, le=LARGEST_MANIFEST)


def located(store: Store) -> Store:
    """The store that is meant: params.store, with what the environment overrides."""
    changes = {
        field: value for field in ("uri", "endpoint") if (value := os.environ.get(f"SHADOWFT_STORE_{field.upper()}"))
    }
    return store.model_copy(update=changes)


def publish(delta_dir: Path, store: Store) -> str:
    """Put a delta folder into the store and return its digest. Sends only what is not there; may be repeated and raced.

    Raises DeltaError for a folder that is no delta, StoreConflict when the store holds another delta under this digest,
    StoreError when the store fails the probe, StoreUnreachable.
    """
    paths = _delta_files(delta_dir)
    objects = _open(store)
    require_probe(objects)
    sent, total = _Counter(), sum(path.stat().st_size for path in paths)
    print(f"publish {delta_dir} ({total} bytes) to {objects.location}", file=sys.stderr)
    with ThreadPoolExecutor(THREADS) as pool:
        files = {path.name: _send(path, objects, pool, sent) for path in paths}
    digest = files["delta.json"].digest
    manifest = _Manifest(format=1, delta=digest, files=files)
    _claim(objects, manifest)
    print(f"published {digest}: {sent.bytes} of {total} bytes sent, the rest was there", file=sys.stderr)
    return digest


def holds(digest: str, store: Store) -> bool:
    """Whether this delta has been published here, completely."""
    return _open(store).head(_claim_key(digest)) is not None


def fetch_delta(digest: str, store: Store, out_dir: Path) -> None:
    """Make `out_dir` the delta folder of this digest; every byte is verified, the folder is complete or absent.

    Raises StoreError when there is no such delta, StoreCorrupt naming the damaged object, StoreUnreachable.
    """
    objects = _open(store)
    manifest = _read_manifest(objects, digest)
    total = sum(file.bytes for file in manifest.files.values())
    print(f"fetch {digest} ({total} bytes) from {objects.location}", file=sys.stderr)
    with new_folder(out_dir) as folder, ThreadPoolExecutor(THREADS) as pool:
        for name, file in manifest.files.items():
            _receive(objects, file, folder / name, pool)


def probe(store: Store) -> None:
    """Check what publishing relies on: one winner among racing writers, wrong checksums refused, compare-and-swap.

    Raises StoreError naming the broken promise.
    """
    run_probe(_open(store))


def check(store: Store) -> None:
    """Is the store there, may this identity write, has it passed the probe? For the start of a run.

    Raises StoreUnreachable or StoreError within about 15 seconds.
    """
    objects = _open(store)
    found = objects.read("probe/write", 100)
    with suppress(StoreConflict):  # another run checks at the same moment
        objects.swap("probe/write", b"written", found[1] if found else None)
    require_probe(objects)


def _open(store: Store) -> Objects:
    store = located(store)
    return open_objects(store.uri, store.endpoint, store.region)


def _delta_files(folder: Path) -> list[Path]:
    """The files of a delta folder, sorted. Anything else in it is an error: it would be lost."""
    if not (folder / "delta.json").is_file():
        raise DeltaError(f"{folder}: no delta.json; a folder made by `shadowft extract` is wanted")
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.is_symlink() or not path.is_file() or not _FILE.fullmatch(path.name):
            raise DeltaError(f"{path}: a delta folder holds delta.json and .safetensors files only; move it away")
    raw = (folder / "delta.json").read_bytes()
    try:
        canonical = canonical_json(json.loads(raw)) == raw
    except ValueError:
        canonical = False
    if not canonical or len(paths) < 2:
        raise DeltaError(f"{folder}: delta.json is not canonical JSON or its tensors are missing; extract it again")
    return paths


class _Counter:
    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self.bytes += number


def _object_key(digest: str) -> str:
    value = digest.removeprefix("sha256:")
    return f"objects/sha256/{value[:2]}/{value}"


def _claim_key(digest: str) -> str:
    if not re.match(_DIGEST, digest):
        raise StoreError(f"{digest[:80]!r} is no delta digest; sha256: and 64 hex digits are wanted")
    return f"deltas/{digest.removeprefix('sha256:')}"


def _each(pool: ThreadPoolExecutor, act: Callable[..., T], work: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Results in order, with at most THREADS + 1 pieces of work in memory; the first error ends it."""
    pending: list[Any] = []
    try:
        for arguments in work:
            pending.append(pool.submit(act, *arguments))
            if len(pending) > THREADS:
                yield pending.pop(0).result()
        while pending:
            yield pending.pop(0).result()
    finally:
        for future in pending:
            future.cancel()


def _send(path: Path, objects: Objects, pool: ThreadPoolExecutor, sent: _Counter) -> _File:
    def send(data: bytes) -> tuple[str, int]:
        digest = bytes_digest(data)
        if objects.put_if_absent(_object_key(digest), data, digest):
            sent.add(len(data))
        return digest, len(data)

    whole = hashlib.sha256()

    def blocks() -> Iterator[tuple[bytes]]:
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                whole.update(block)
                yield (block,)

    chunks = list(_each(pool, send, blocks()))
    return _File(bytes=sum(size for _, size in chunks), digest=f"sha256:{whole.hexdigest()}", chunks=chunks)


def _claim(objects: Objects, manifest: _Manifest) -> None:
    """The commit: the manifest, then the claim. A claim that stands is kept if it names the same files."""
    raw = canonical_json(manifest.model_dump())
    if len(raw) > LARGEST_MANIFEST:
        raise DeltaError(f"{manifest.delta}: its manifest has {len(raw)} bytes, {LARGEST_MANIFEST} are allowed")
    name = bytes_digest(raw)
    objects.put_if_absent(_object_key(name), raw, name)
    claim = canonical_json({"format": 1, "delta": manifest.delta, "manifest": name, "manifest_bytes": len(raw)})
    try:
        objects.put_if_absent(_claim_key(manifest.delta), claim, bytes_digest(claim))
    except StoreConflict:
        standing = _read_manifest(objects, manifest.delta)
        for file, mine in manifest.files.items():
            theirs = standing.files.get(file)
            if theirs is None or theirs.digest != mine.digest:
                raise StoreConflict(
                    f"{objects.location}: {manifest.delta} is there with another {file} ({theirs and theirs.digest}, "
                    f"here {mine.digest}); nothing was replaced. One of the two is damaged: extract the delta again"
                ) from None


def _read_manifest(objects: Objects, digest: str) -> _Manifest:
    """Claim, then manifest; every limit is checked before a chunk is asked for or a file is opened."""
    key = _claim_key(digest)
    found = objects.read(key, LARGEST_CLAIM)
    if found is None:
        raise StoreError(f"{objects.location}: no delta {digest}; publish it, or correct store.uri")
    claim = _parse(_Claim, found[0], objects, key)
    sink, name = io.BytesIO(), _object_key(claim.manifest)
    objects.get(name, claim.manifest_bytes, claim.manifest, sink)
    manifest = _parse(_Manifest, sink.getvalue(), objects, name)
    if claim.delta != digest or manifest.delta != digest:
        raise StoreCorrupt(f"{objects.location}: {key} leads to {manifest.delta}, expected {digest}; publish it again")
    return manifest


M = TypeVar("M", bound=_Strict)


def _parse(model: type[M], raw: bytes, objects: Objects, key: str) -> M:
    try:
        parsed = model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreCorrupt(f"{objects.location}: {key} is malformed: {where[:120]} {first['msg'][:200]}") from None
    if canonical_json(parsed.model_dump()) != raw:  # also catches duplicate keys
        raise StoreCorrupt(f"{objects.location}: {key} is not canonical JSON; publish the delta again")
    return parsed


def _receive(objects: Objects, file: _File, path: Path, pool: ThreadPoolExecutor) -> None:
    offsets = [0]
    for _, size in file.chunks:
        offsets.append(offsets[-1] + size)

    def receive(digest: str, size: int, offset: int) -> None:
        with path.open("r+b") as sink:
            sink.seek(offset)
            objects.get(_object_key(digest), size, digest, sink)

    with path.open("xb") as empty:
        empty.truncate(file.bytes)
    work = ((digest, size, offset) for (digest, size), offset in zip(file.chunks, offsets, strict=False))
    for _ in _each(pool, receive, work):
        pass
    if (found := file_digest(path)) != file.digest:
        raise StoreCorrupt(
            f"{objects.location}: {path.name} is {found}, expected {file.digest}; publish the delta again"
        )
