"""Deltas by content: published once and whole, fetched by digest, verified byte by byte. Promises: docs/store.md.

Keys: `objects/sha256/ab/<hex>` for chunks and manifests, named by their content; `deltas/<hex>` of the delta's digest,
the claim, which names the manifest; `records/<hex>`, recipes and verdicts under their own digest; `turns/` and `probe/`
for small objects of no lasting worth. The claim is written last: a delta whose claim stands is complete.

SHADOWFT_STORE_URI and SHADOWFT_STORE_ENDPOINT override the store of params.yaml (params.located); registry.store_for
says where a recipe may point.
"""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from shadowft_core.errors import DeltaError, StoreConflictError, StoreError
from shadowft_core.files import bytes_digest, canonical_json, file_digest, new_folder
from shadowft_core.params import Store
from shadowft_core.store.backends import Objects, open_objects
from shadowft_core.store.check import Bad, Listed, Scrub, listing, scrub
from shadowft_core.store.lock import commit, last_sweep
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
    read_manifest,
)
from shadowft_core.store.probe import require_probe, run_probe
from shadowft_core.store.prune import Garbage, collect
from shadowft_core.store.records import read_record, write_record
from shadowft_core.store.transfer import Progress, cut, differs, places, receive, send, send_missing

__all__ = [
    "Bad",
    "Garbage",
    "Listed",
    "Scrub",
    "check",
    "fetch_delta",
    "gc",
    "holds",
    "keep_record",
    "ls",
    "opened",
    "probe",
    "publish",
    "record",
    "verify",
]

Check = Callable[[Path, Mapping[tuple[str, int, int], str]], object]
CHUNK = 16 << 20  # bytes; docs/store.md says how it was chosen


def opened(store: Store) -> Objects:
    """The objects of a store, for rooms that keep small objects of their own beside the deltas."""
    return open_objects(
        store.uri,
        store.endpoint,
        store.region,
        sse=store.sse,
        sse_kms_key=store.sse_kms_key,
        bucket_owner=store.bucket_owner,
    )


def publish(delta_dir: Path, store: Store) -> str:
    """Put a delta folder into the store and return its digest. Sends only what is not there; may be repeated and raced.

    Raises DeltaError for a folder that is no delta or changes meanwhile, CheckpointError for a malformed weight file,
    StoreConflictError when the store holds another delta under this digest, StoreError when the store fails the probe,
    StoreUnreachableError.
    """
    paths = _delta_files(delta_dir)
    objects = opened(store)
    require_probe(objects)
    digest = file_digest(delta_dir / CERTIFICATE)
    standing, since = objects.read(claim_key(digest), LARGEST_CLAIM), last_sweep(objects)
    cuts = {path.name: cut(path, store.chunk_bytes or CHUNK) for path in paths}
    pieces = [piece for cut_file in cuts.values() for piece in cut_file]
    total = sum(piece.size for piece in pieces)
    print(f"publish {delta_dir} ({total} bytes) to {objects.location}", file=sys.stderr)
    progress = Progress("publish", total)
    digests = send(pieces, objects, progress)
    sent = iter(digests)
    chunks = {name: [(next(sent), piece.size) for piece in cut_file] for name, cut_file in cuts.items()}
    if chunks[CERTIFICATE] != [(digest, cuts[CERTIFICATE][0].size)]:
        raise DeltaError(f"{delta_dir}: delta.json changed while it was published; publish it again")
    files = {name: File(bytes=sum(size for _, size in parts), chunks=parts) for name, parts in chunks.items()}
    manifest = Manifest(format=FORMAT, delta=digest, files=files)
    raw = canonical_json(manifest.model_dump())
    if len(raw) > LARGEST_MANIFEST:
        raise DeltaError(
            f"{delta_dir}: its manifest has {len(raw)} bytes, {LARGEST_MANIFEST} are allowed; raise chunk_bytes"
        )
    name = bytes_digest(raw)
    claim = canonical_json({"format": 1, "delta": digest, "manifest": name, "manifest_bytes": len(raw)})

    def finish() -> None:
        objects.put_if_absent(object_key(name), raw, name)

    def restore() -> None:
        send_missing(pieces, digests, objects, progress)
        finish()

    finish()
    if standing is None or standing[0] != claim:  # what a standing claim needs is never swept
        commit(objects, since, restore, lambda: _claim(objects, manifest, claim, delta_dir))
    print(f"published {digest}: {progress.moved} of {total} bytes sent, the rest was there", file=sys.stderr)
    return digest


def holds(digest: str, store: Store) -> bool:
    """Whether this delta has been published here, completely."""
    return opened(store).head(claim_key(digest)) is not None


def keep_record(raw: bytes, store: Store) -> str:
    """Keep a recipe or a verdict by content; returns its digest. May be repeated and raced, replaces nothing.

    Raises StoreConflictError when other bytes lie in its place, StoreError when it is too large, StoreUnreachableError.
    """
    return write_record(opened(store), raw)


def record(digest: str, store: Store) -> bytes | None:
    """The record with this digest, verified; None when the store has none.

    Raises StoreCorruptError when other bytes lie in its place, StoreError for what is no digest, StoreUnreachableError.
    """
    return read_record(opened(store), digest)


def fetch_delta(digest: str, store: Store, out_dir: Path, check: Check | None = None) -> None:
    """Make `out_dir` the delta folder of this digest; every byte is verified, the folder is complete or absent.

    `check(folder, digests)` looks at the files before they become `out_dir` and raises when they are no delta: who may
    write the store can make manifest and claim fit a changed chunk, but not the digests in delta.json, whose own digest
    was asked for. `digests` are those of the chunks just written, by (file name, offset, bytes), so that it need not
    read them again.

    Raises StoreError when there is no such delta or no room for it, StoreCorruptError naming the damaged object,
    StoreUnreachableError, and what `check` raises.
    """
    objects = opened(store)
    manifest = read_manifest(objects, read_claim(objects, digest))
    total = manifest.bytes
    print(f"fetch {digest} ({total} bytes) from {objects.location}", file=sys.stderr)
    with new_folder(out_dir) as folder:
        if (free := shutil.disk_usage(folder).free) < total:
            raise StoreError(
                f"{out_dir}: {free} bytes are free, the delta has {total}; make room or choose another --out"
            )
        receive(manifest, objects, folder, Progress("fetch", total))
        if check is not None:
            check(folder, {(name, offset, size): chunk for name, chunk, size, offset in places(manifest)})


def verify(store: Store, digests: Sequence[str] = (), state: Path | None = None) -> Scrub:
    """Read every object of the given deltas and records, of all when none is given, and compare it with its digest.

    Damaged and missing objects are returned, not raised. An interrupted run goes on where it was: `state` is the file
    that knows, `var/verify-<store>.txt` by default. Raises StoreUnreachableError.
    """
    objects = opened(store)
    default = Path("var") / f"verify-{bytes_digest(objects.location.encode())[7:19]}.txt"
    return scrub(objects, list(digests), state or default)


def ls(store: Store) -> list[Listed]:
    """Every published delta, the oldest first; a damaged one is listed with its problem. Raises
    StoreUnreachableError.
    """
    return listing(opened(store))


def gc(store: Store, grace: float, dry_run: bool = False) -> Garbage:
    """Remove objects that no published delta uses and that are at least `grace` seconds old; see garbage.collect.

    May run beside publishers. Raises StoreCorruptError, with nothing removed, when a claim or manifest cannot be read,
    StoreConflictError when another gc runs, StoreUnreachableError.
    """
    return collect(opened(store), grace, dry_run)


def probe(store: Store) -> None:
    """Check what publishing relies on: one winner among racing writers, wrong checksums refused, compare-and-swap.

    Raises StoreError naming the broken promise.
    """
    run_probe(opened(store))


def check(store: Store) -> None:
    """Is the store there, may this identity write, has it passed the probe? For the start of a run.

    Raises StoreUnreachableError or StoreError within about 15 seconds.
    """
    objects = opened(store)
    found = objects.read("probe/write", 100)
    with suppress(StoreConflictError):  # another run checks at the same moment
        objects.swap("probe/write", b"written", found[1] if found else None)
    require_probe(objects)


def _delta_files(folder: Path) -> list[Path]:
    """The files of a delta folder, sorted. Anything else in it is an error: it would be lost."""
    if not (folder / CERTIFICATE).is_file():
        raise DeltaError(f"{folder}: no delta.json; a folder made by `shadowft extract` is wanted")
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.is_symlink() or not path.is_file() or not is_delta_file(path.name):
            raise DeltaError(f"{path}: a delta folder holds delta.json and .safetensors files only; move it away")
    raw = (folder / CERTIFICATE).read_bytes()
    try:
        canonical = canonical_json(json.loads(raw)) == raw
    except ValueError:
        canonical = False
    if not canonical or len(paths) < 2:
        raise DeltaError(f"{folder}: delta.json is not canonical JSON or its tensors are missing; extract it again")
    return paths


def _claim(objects: Objects, manifest: Manifest, claim: bytes, folder: Path) -> str:
    """The commit: one small object that names the manifest. A claim that stands is kept if it names the same bytes."""
    key = claim_key(manifest.delta)
    try:
        objects.put_if_absent(key, claim, bytes_digest(claim))
    except StoreConflictError:
        standing = read_manifest(objects, read_claim(objects, manifest.delta))
        for file in sorted(manifest.files.keys() | standing.files.keys()):
            theirs, mine = standing.files.get(file), manifest.files.get(file)
            if theirs is None or mine is None:
                problem: str | None = "there" if mine is None else "only here"
            else:  # equal bytes may have been cut in other places
                problem = None if theirs == mine else differs(folder / file, theirs)
            if problem:
                raise StoreConflictError(
                    f"{objects.location}: {manifest.delta} is there with another {file} ({problem}); nothing was "
                    "replaced. One of the two is damaged: extract the delta again"
                ) from None
    return key
