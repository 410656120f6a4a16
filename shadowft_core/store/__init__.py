"""Stores deltas by digest: published once, complete, and verified byte by byte. Guarantees: docs/store.md.

Keys: `objects/sha256/ab/<hex>` for chunks and manifests, by the digest of their content; `deltas/<hex>` for claims, by
the digest of the delta; `records/<hex>` for recipes and verdicts, by their digest; `turns/` and `probe/` for locks and
other temporary objects; `checkpoints/` for copies of the checkpoints of trainings. A claim names the manifest. It is
written last, so a delta that has one is complete.

SHADOWFT_STORE_URI and SHADOWFT_STORE_ENDPOINT override the store of params.yaml (params.located); registry.store_for
decides which store a recipe may name.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from shadowft_core.errors import DeltaError, StoreConflictError, StoreError, say
from shadowft_core.files import bytes_digest, canonical_json, file_digest, new_folder, parse_json, read_regular
from shadowft_core.limits import JSON_BYTES
from shadowft_core.params import Store
from shadowft_core.store.backends import Backend, open_backend
from shadowft_core.store.check import BadObject, CheckResult, ListedDelta, check_objects, list_deltas
from shadowft_core.store.checkpoints import CheckpointCopies
from shadowft_core.store.lock import commit, last_prune
from shadowft_core.store.manifest import (
    CERTIFICATE,
    FORMAT,
    LARGEST_CLAIM,
    LARGEST_MANIFEST,
    File,
    Manifest,
    claim_key,
    is_delta_file,
    object_key,
    read_claim,
    read_delta_json,
    read_manifest,
    require_files,
)
from shadowft_core.store.probe import require_probe, run_probe
from shadowft_core.store.prune import PruneResult, prune_objects
from shadowft_core.store.records import read_record, write_record
from shadowft_core.store.transfer import Progress, cut, differs, places, receive, send, send_missing

__all__ = [
    "BadObject",
    "CheckResult",
    "CheckpointCopies",
    "ListedDelta",
    "PruneResult",
    "check",
    "checkpoint_copies",
    "fetch_delta",
    "holds",
    "keep_record",
    "ls",
    "open_store",
    "probe",
    "prune",
    "publish",
    "record",
    "require_writable",
]

CheckFolder = Callable[[Path, Mapping[tuple[str, int, int], str]], object]
CHUNK = 16 << 20  # bytes; docs/store.md has the measurements


def open_store(store: Store) -> Backend:
    """The backend of a store, for rooms that store other small objects there."""
    return open_backend(
        store.uri,
        store.endpoint,
        store.region,
        sse=store.sse,
        sse_kms_key=store.sse_kms_key,
        bucket_owner=store.bucket_owner,
    )


def publish(delta_dir: Path, store: Store) -> str:
    """Publish a delta folder and return its digest. Sends only what the store lacks; safe to repeat and to race.

    Raises DeltaError for a folder that is not a delta or changes meanwhile, CheckpointError for a malformed weight
    file, StoreConflictError when the store has another delta under this digest or prunes block the commit, StoreError
    when the store fails the probe, StoreUnreachableError.
    """
    paths = _delta_files(delta_dir)
    backend = open_store(store)
    require_probe(backend)
    digest = file_digest(delta_dir / CERTIFICATE)
    existing, since = backend.read(claim_key(digest), LARGEST_CLAIM), last_prune(backend)
    cuts = {path.name: cut(path, store.chunk_bytes or CHUNK) for path in paths}
    pieces = [piece for cut_file in cuts.values() for piece in cut_file]
    total = sum(piece.size for piece in pieces)
    say(f"publish {delta_dir} ({total} bytes) to {backend.location}")
    progress = Progress("publish", total)
    digests = send(pieces, backend, progress)
    sent = iter(digests)
    chunks = {name: [(next(sent), piece.size) for piece in cut_file] for name, cut_file in cuts.items()}
    if chunks[CERTIFICATE] != [(digest, cuts[CERTIFICATE][0].size)]:
        raise DeltaError(f"{delta_dir}: delta.json changed while it was published; publish it again")
    files = {name: File(bytes=sum(size for _, size in parts), chunks=parts) for name, parts in chunks.items()}
    manifest = Manifest(format=FORMAT, delta=digest, files=files)
    raw = canonical_json(manifest.model_dump())
    if len(raw) > LARGEST_MANIFEST:
        raise DeltaError(
            f"{delta_dir}: its manifest has {len(raw)} bytes, at most {LARGEST_MANIFEST} are allowed; increase "
            "store.chunk_bytes"
        )
    name = bytes_digest(raw)
    claim = canonical_json({"format": 1, "delta": digest, "manifest": name, "manifest_bytes": len(raw)})

    def finish() -> None:
        backend.put_if_absent(object_key(name), raw, name)

    def restore() -> None:
        send_missing(pieces, digests, backend, progress)
        finish()

    finish()
    if existing is None or existing[0] != claim:  # a prune removes nothing that an existing claim needs
        commit(backend, since, restore, lambda: _claim(backend, manifest, claim, delta_dir))
    say(f"published {digest}: {progress.moved} of {total} bytes sent")
    return digest


def holds(digest: str, store: Store) -> bool:
    """Whether the store has this delta. A delta in the store is complete."""
    return open_store(store).head(claim_key(digest)) is not None


def keep_record(raw: bytes, store: Store) -> str:
    """Store a recipe or a verdict by digest; return the digest. Safe to repeat and to race; replaces nothing.

    Raises StoreConflictError when its key has other bytes, StoreError when it is too large, StoreUnreachableError.
    """
    return write_record(open_store(store), raw)


def record(digest: str, store: Store) -> bytes | None:
    """The record with this digest, verified; None when the store has none.

    Raises StoreCorruptError when its key holds other bytes, StoreError for a malformed digest, StoreUnreachableError.
    """
    return read_record(open_store(store), digest)


def fetch_delta(digest: str, store: Store, out_dir: Path, check: CheckFolder | None = None) -> None:
    """Write the delta with this digest to `out_dir`. Every byte is verified; the folder is complete or absent.

    `check(folder, digests)` runs before the files become `out_dir` and raises when they are not the delta. It is needed
    because a person with write access to the store can change a chunk and make claim and manifest agree with it. The
    digests in delta.json cannot be forged: the argument `digest` is that of delta.json. `digests` maps (file name,
    offset, bytes) to the digest of each chunk just written, so that `check` need not read it again.

    Raises StoreError when there is no such delta or no disk space for it, StoreCorruptError naming the damaged object,
    StoreUnreachableError, and what `check` raises.
    """
    backend = open_store(store)
    manifest = read_manifest(backend, read_claim(backend, digest))
    read_delta_json(backend, manifest)
    total = manifest.bytes
    say(f"fetch {digest} ({total} bytes) from {backend.location}")
    with new_folder(out_dir) as folder:
        if (free := shutil.disk_usage(folder).free) < total:
            raise StoreError(
                f"{out_dir}: {free} bytes are free, the delta needs {total}; free some space or choose another --out"
            )
        receive(manifest, backend, folder, Progress("fetch", total))
        if check is not None:
            check(folder, {(name, offset, size): chunk for name, chunk, size, offset in places(manifest)})


def check(store: Store, digests: Sequence[str] = (), state: Path | None = None) -> CheckResult:
    """Read every object of the given deltas and records, by default of all, and compare it with its digest.

    Returns damaged and missing objects instead of raising. An interrupted check resumes from the file `state`, by
    default `var/check-<store>.txt`. Raises StoreUnreachableError.
    """
    backend = open_store(store)
    default = Path("var") / f"check-{bytes_digest(backend.location.encode())[7:19]}.txt"
    return check_objects(backend, list(digests), state or default)


def checkpoint_copies(store: Store, key: str) -> CheckpointCopies:
    """The copies of the checkpoints of the training with this key. Opens no connection. Raises StoreError."""
    return CheckpointCopies(open_store(store), key, store.chunk_bytes or CHUNK)


def ls(store: Store) -> list[ListedDelta]:
    """Every published delta, oldest first; a damaged delta is listed with its problem. Raises StoreUnreachableError."""
    return list_deltas(open_store(store))


def prune(store: Store, grace: float, dry_run: bool = False) -> PruneResult:
    """Remove objects that no published delta uses and that are at least `grace` seconds old; see `prune_objects`.

    Safe while others publish. Raises StoreCorruptError, and removes nothing more, when a claim or manifest cannot be
    read; StoreConflictError when another prune runs; StoreUnreachableError.
    """
    return prune_objects(open_store(store), grace, dry_run)


def probe(store: Store) -> None:
    """Check what publishing relies on: one winner among racing writers, refusal of wrong checksums, compare-and-swap.

    Raises StoreError naming the check that failed.
    """
    run_probe(open_store(store))


def require_writable(store: Store) -> None:
    """Require that the store answers, accepts writes and has passed the probe. For the start of a run.

    Raises StoreUnreachableError or StoreError within about 15 seconds.
    """
    backend = open_store(store)
    found = backend.read("probe/write", 100)
    with suppress(StoreConflictError):  # another run wrote at the same moment
        backend.swap("probe/write", b"written", found[1] if found else None)
    require_probe(backend)


def _delta_files(folder: Path) -> list[Path]:
    """The files of a delta folder, sorted. Raises DeltaError if there is any other file, or delta.json is damaged."""
    if not (folder / CERTIFICATE).is_file():
        raise DeltaError(f"{folder}: no delta.json; pass a folder made by `shadowft extract`")
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.is_symlink() or not path.is_file() or not is_delta_file(path.name):
            raise DeltaError(f"{path}: a delta folder may contain only delta.json and .safetensors files; move it away")
    raw = read_regular(folder / CERTIFICATE, JSON_BYTES, DeltaError)
    if canonical_json(parse_json(raw, folder / CERTIFICATE, DeltaError, finite=True)) != raw:
        raise DeltaError(f"{folder}: delta.json is not canonical JSON; extract it again")
    require_files([path.name for path in paths], raw, folder / CERTIFICATE, DeltaError)
    return paths


def _claim(backend: Backend, manifest: Manifest, claim: bytes, folder: Path) -> str:
    """Commit by writing the claim; return its key. An existing claim is kept if it names the same bytes.

    Raises StoreConflictError if it names other bytes.
    """
    key = claim_key(manifest.delta)
    try:
        backend.put_if_absent(key, claim, bytes_digest(claim))
    except StoreConflictError:
        stored = read_manifest(backend, read_claim(backend, manifest.delta))
        for file in sorted(manifest.files.keys() | stored.files.keys()):
            theirs, ours = stored.files.get(file), manifest.files.get(file)
            if theirs is None or ours is None:
                problem: str | None = "only in the store" if ours is None else "only here"
            else:  # equal bytes may have been cut at other offsets
                problem = None if theirs == ours else differs(folder / file, theirs)
            if problem:
                raise StoreConflictError(
                    f"{backend.location}: has {manifest.delta} with another {file} ({problem}); nothing was "
                    "replaced. One of the two is damaged: extract the delta again"
                ) from None
    return key
