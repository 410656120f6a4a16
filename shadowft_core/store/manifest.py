"""What a store holds: keys, claims and manifests, and reading them with every limit checked first.

A manifest names the files of a delta as lists of chunks. It is canonical JSON, stored under its own digest; the claim
of the delta names that digest. Nothing in either is ever used as a path before it has passed the patterns below.
"""

import io
import re
from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shadowft_core.errors import StoreCorruptError, StoreError
from shadowft_core.files import canonical_json
from shadowft_core.store.backends import Objects

OBJECTS, DELTAS = "objects/sha256", "deltas"
CERTIFICATE = "delta.json"
FORMAT = 2
LARGEST_CHUNK = 256 << 20  # bytes
LARGEST_MANIFEST = 16 << 20
LARGEST_CLAIM = 4096

DIGEST = r"^sha256:[0-9a-f]{64}$"
_FILE = re.compile(r"delta\.json|[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(Strict):
    """One file of a delta: its length and its chunks as (digest, bytes), in order."""

    bytes: int = Field(ge=0)
    chunks: list[tuple[str, int]]

    @model_validator(mode="after")
    def _chunks_make_the_file(self) -> "File":
        if not all(re.match(DIGEST, digest) and 0 < size <= LARGEST_CHUNK for digest, size in self.chunks):
            raise ValueError(f"a chunk has no sha256 digest or not between 1 and {LARGEST_CHUNK} bytes")
        if sum(size for _, size in self.chunks) != self.bytes:
            raise ValueError(f"chunks of {sum(size for _, size in self.chunks)} bytes for a file of {self.bytes}")
        return self


class Manifest(Strict):
    """All files of a delta. delta.json is a single chunk, so that its digest is that of the delta."""

    format: int = Field(ge=FORMAT, le=FORMAT)
    delta: str = Field(pattern=DIGEST)
    files: dict[str, File] = Field(min_length=2, max_length=10_000)

    @model_validator(mode="after")
    def _holds_its_delta(self) -> "Manifest":
        if bad := [name for name in self.files if not is_delta_file(name)]:
            raise ValueError(f"file name {bad[0][:80]!r} is not delta.json or NAME.safetensors")
        certificate = self.files.get(CERTIFICATE)
        if certificate is None or [digest for digest, _ in certificate.chunks] != [self.delta]:
            raise ValueError("delta.json is not the one of this delta")
        return self

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def chunks(self) -> Iterator[tuple[str, int]]:
        """(digest, bytes) of every chunk, file by file; one that is used twice comes twice."""
        for file in self.files.values():
            yield from file.chunks


class Claim(Strict):
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
    """Raises StoreError for what is no delta digest."""
    if not re.match(DIGEST, digest):
        raise StoreError(f"{digest[:80]!r} is no delta digest; sha256: and 64 hex digits are wanted")
    return f"{DELTAS}/{digest.removeprefix('sha256:')}"


def claimed(objects: Objects) -> Iterator[tuple[str, float]]:
    """Digest of every delta that has a claim, and the POSIX time of the claim; sorted. StoreCorruptError for an odd
    key.
    """
    for entry in objects.entries(DELTAS):
        digest = "sha256:" + entry.key.removeprefix(f"{DELTAS}/")
        if not re.match(DIGEST, digest):
            raise StoreCorruptError(
                f"{objects.location}: {entry.key} is no claim; move it away, it was not written by publish"
            )
        yield digest, entry.modified


def read_claim(objects: Objects, digest: str) -> Claim:
    key = claim_key(digest)
    found = objects.read(key, LARGEST_CLAIM)
    if found is None:
        raise StoreError(f"{objects.location}: no delta {digest}; publish it, or correct store.uri")
    claim = _parse(Claim, found[0], objects, key)
    if claim.delta != digest:
        raise _astray(objects, digest, claim.delta)
    return claim


def read_manifest(objects: Objects, claim: Claim) -> Manifest:
    """Every limit is checked before a chunk is asked for or a file is opened.

    Raises StoreError when it is missing, StoreCorruptError when it is damaged, malformed or of another delta.
    """
    sink, key = io.BytesIO(), object_key(claim.manifest)
    objects.get(key, claim.manifest_bytes, claim.manifest, sink)
    manifest = _parse(Manifest, sink.getvalue(), objects, key)
    if manifest.delta != claim.delta:
        raise _astray(objects, claim.delta, manifest.delta)
    return manifest


def _astray(objects: Objects, digest: str, found: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{objects.location}: {claim_key(digest)} leads to {found}, expected {digest}; remove it and publish it again"
    )


M = TypeVar("M", bound=Strict)


def _parse(model: type[M], raw: bytes, objects: Objects, key: str) -> M:
    try:
        parsed = model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreCorruptError(
            f"{objects.location}: {key} is malformed: {where[:120]} {first['msg'][:200]}; "
            "remove it and publish the delta again"
        ) from None
    if canonical_json(parsed.model_dump()) != raw:  # also catches duplicate keys
        raise StoreCorruptError(
            f"{objects.location}: {key} is not canonical JSON; remove it and publish the delta again"
        )
    return parsed
