"""Keys, claims and manifests of a store. Reading one checks every limit.

A manifest lists the chunks of each file of a delta. It is canonical JSON, stored under its own digest, which the
delta's claim names. No name in either is used as a path before it matches the patterns below.
"""

import io
import re
from collections.abc import Collection, Iterator
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from shadowft_core.errors import ShadowError, StoreCorruptError, StoreError
from shadowft_core.files import Fields, Record, canonical_json, parse_record
from shadowft_core.limits import JSON_BYTES, OBJECT_BYTES
from shadowft_core.store.backends import Backend

OBJECTS, DELTAS = "objects/sha256", "deltas"
CERTIFICATE = "delta.json"
FORMAT = 2
LARGEST_CHUNK = OBJECT_BYTES
LARGEST_MANIFEST = 16 << 20
LARGEST_CLAIM = 4096

DIGEST = r"^sha256:[0-9a-f]{64}$"
_FILE = re.compile(r"delta\.json|[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")


class File(Record):
    """One file of a delta: its length and its chunks as (digest, bytes), in order."""

    bytes: int = Field(ge=0)
    chunks: list[tuple[str, int]] = Field(max_length=1_000_000)

    @model_validator(mode="after")
    def _chunks_make_the_file(self) -> "File":
        if not all(re.match(DIGEST, digest) and 0 < size <= LARGEST_CHUNK for digest, size in self.chunks):
            raise ValueError(f"a chunk lacks a sha256 digest or a size between 1 and {LARGEST_CHUNK} bytes")
        if sum(size for _, size in self.chunks) != self.bytes:
            raise ValueError(f"the chunks have {sum(size for _, size in self.chunks)} bytes, the file {self.bytes}")
        return self


class Manifest(Record):
    """All files of a delta. delta.json is a single chunk, so its digest is the delta's."""

    format: int = Field(ge=FORMAT, le=FORMAT)
    delta: str = Field(pattern=DIGEST)
    files: dict[str, File] = Field(min_length=2, max_length=10_000)

    @model_validator(mode="after")
    def _holds_its_delta(self) -> "Manifest":
        if bad := [name for name in self.files if not is_delta_file(name)]:
            raise ValueError(f"file name {bad[0][:80]!r} is not delta.json or NAME.safetensors")
        certificate = self.files.get(CERTIFICATE)
        if certificate is None or [digest for digest, _ in certificate.chunks] != [self.delta]:
            raise ValueError("delta.json belongs to another delta")
        return self

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def chunks(self) -> Iterator[tuple[str, int]]:
        """(digest, bytes) of every chunk, file by file; a chunk used twice is returned twice."""
        for file in self.files.values():
            yield from file.chunks


class Claim(Record):
    """The commit: this delta is complete, and this is its manifest."""

    format: int = Field(ge=1, le=1)
    delta: str = Field(pattern=DIGEST)
    manifest: str = Field(pattern=DIGEST)
    manifest_bytes: int = Field(gt=0, le=LARGEST_MANIFEST)


def is_delta_file(name: str) -> bool:
    return _FILE.fullmatch(name) is not None


def object_key(digest: str) -> str:
    value = digest.removeprefix("sha256:")
    return f"{OBJECTS}/{value[:2]}/{value}"


def claim_key(digest: str) -> str:
    """Key of a delta's claim. Raises StoreError for a malformed digest."""
    if not re.match(DIGEST, digest):
        raise StoreError(f"{digest[:80]!r} is not a delta digest; expected sha256: and 64 hex digits")
    return f"{DELTAS}/{digest.removeprefix('sha256:')}"


def claimed(backend: Backend) -> Iterator[tuple[str, float]]:
    """Digest of every delta that has a claim, and the POSIX time of the claim; sorted.

    Raises StoreCorruptError for a key that is not a digest.
    """
    for entry in backend.entries(DELTAS):
        digest = "sha256:" + entry.key.removeprefix(f"{DELTAS}/")
        if not re.match(DIGEST, digest):
            raise StoreCorruptError(f"{backend.location}: {entry.key} is not a claim written by publish; move it away")
        yield digest, entry.modified


def read_claim(backend: Backend, digest: str) -> Claim:
    key = claim_key(digest)
    found = backend.read(key, LARGEST_CLAIM)
    if found is None:
        raise StoreError(f"{backend.location}: no delta {digest}; publish it, or correct store.uri")
    claim = _parse(Claim, found[0], backend, key)
    if claim.delta != digest:
        raise _wrong_delta(backend, digest, claim.delta)
    return claim


def read_manifest(backend: Backend, claim: Claim) -> Manifest:
    """Read the manifest that a claim names, and check every limit.

    Raises StoreError when it is missing, StoreCorruptError when it is damaged, malformed or of another delta.
    """
    sink, key = io.BytesIO(), object_key(claim.manifest)
    backend.get(key, claim.manifest_bytes, claim.manifest, sink)
    manifest = _parse(Manifest, sink.getvalue(), backend, key)
    if manifest.delta != claim.delta:
        raise _wrong_delta(backend, claim.delta, manifest.delta)
    return manifest


class _Tensor(Fields):
    form: Literal["factors", "frames", "plain"] = "plain"


class _Certificate(Fields):
    """What delta.json says about the files beside it. Format 1 had one file, whatever the forms of its tensors."""

    format: int = Field(ge=1, le=2)
    base: dict[str, Any] | None = None
    tensors: dict[str, _Tensor]


def read_delta_json(backend: Backend, manifest: Manifest) -> bytes:
    """delta.json of a stored delta. Raises StoreCorruptError unless the manifest has exactly the files it implies."""
    ((digest, size),) = manifest.files[CERTIFICATE].chunks
    key = object_key(digest)
    where = f"{backend.location}: {key}"
    if size > JSON_BYTES:
        raise StoreCorruptError(f"{where}: a delta.json of {size} bytes, the limit is {JSON_BYTES}; remove the delta")
    sink = io.BytesIO()
    backend.get(key, size, digest, sink)
    require_files(manifest.files, sink.getvalue(), where, StoreCorruptError)
    return sink.getvalue()


def require_files(names: Collection[str], certificate: bytes, where: object, error: type[ShadowError]) -> None:
    """Raise `error` unless `names` are the files of a delta with this delta.json; `where` names its origin."""
    told = parse_record(certificate, _Certificate, where, "extract the delta again", error=error)
    if told.format == 1:
        expected = {CERTIFICATE, "delta.safetensors"}
    else:
        forms = {"factors" if one.form == "factors" else "dense" for one in told.tensors.values()}
        expected = {CERTIFICATE, *(f"{name}.safetensors" for name in (*forms, *(["base"] if told.base else [])))}
    for name in sorted(set(names) ^ expected):
        found = "is missing" if name in expected else "is not a file of this delta"
        raise error(f"{where}: {name:.200} {found}, which has {', '.join(sorted(expected))}; extract the delta again")


def _wrong_delta(backend: Backend, digest: str, found: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{backend.location}: {claim_key(digest)} names delta {found}, expected {digest}; remove it and publish the "
        "delta again"
    )


M = TypeVar("M", bound=Record)


def _parse(model: type[M], raw: bytes, backend: Backend, key: str) -> M:
    where, remedy = f"{backend.location}: {key}", "remove it and publish the delta again"
    parsed = parse_record(raw, model, where, remedy, error=StoreCorruptError)
    if canonical_json(parsed.model_dump()) != raw:
        raise StoreCorruptError(f"{where} is not canonical JSON; {remedy}")
    return parsed
