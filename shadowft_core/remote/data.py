"""Downloads data: files of a data set on a Hugging Face hub at one revision, or all objects below an S3 prefix."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shadowft_core.errors import InputError, say
from shadowft_core.files import bytes_digest, canonical_json, file_digest, new_folder, threaded
from shadowft_core.remote.bucket import download_object, head_of
from shadowft_core.remote.hub import REVISION, hub_errors, online
from shadowft_core.store.backends import Backend, open_backend

THREADS = 4
_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?(?::(?P<part>.+))?")
_ABOUT = re.compile(r"(README|LICEN[CS]E|NOTICE)[^/]*", re.IGNORECASE)  # downloaded with every part of a set


@dataclass(frozen=True)
class Origin:
    """The source of downloaded data. `fields` has `source`, and the revision or a digest of names, sizes and etags."""

    fields: dict[str, Any]
    licence: str | None = None


def is_remote(reference: str) -> bool:
    """Whether a reference is `hf:...` or `s3://...`."""
    return reference.startswith(("hf:", "s3://"))


def name_of(reference: str) -> str:
    """The default name of the download's folder: that of the data set, or the last part of the prefix."""
    match = _HUB.fullmatch(reference)
    place = match["repo"] if match else reference.removeprefix("s3://")
    return place.rstrip("/").rpartition("/")[2]


def download_data(reference: str, out: Path, endpoint: str | None = None, region: str | None = None) -> Origin:
    """Download data into the folder `out` and check every file. If it fails, `out` is unchanged.

    `reference` is `s3://BUCKET/PREFIX` or `hf:OWNER/NAME@REVISION`, with `:SPLIT` or `:PATTERN` to select files of the
    set. Hidden files are left out. An interrupted download from a hub resumes from its cache; one from a bucket starts
    again.
    Raises InputError for a reference that is not pinned, for files that are missing, that change, or whose digest is
    not the listed one, and if the hub fails. Raises StoreError if the bucket fails.
    """
    if reference.startswith("s3://"):
        return _from_bucket(reference, out, endpoint, region)
    return _from_hub(reference, out)


def _from_hub(reference: str, out: Path) -> Origin:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.hf_api import RepoFile

    repo, revision, part = _pinned(reference)
    with online():
        with hub_errors(reference, "data"):
            tree = HfApi().list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
            files = {one.path: one for one in tree if isinstance(one, RepoFile) and not _is_hidden(one.path)}
        names = _chosen(reference, list(files), part)

        def fetch(name: str) -> tuple[str, Path]:
            with hub_errors(reference, "data"):
                return name, Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision))

        with new_folder(out) as folder:
            for number, (name, cached) in enumerate(threaded(fetch, names, THREADS), 1):
                _say(reference, number, len(names), name, files[name].size)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(cached, folder / name)  # no link: an edit must not change the hub's cache
                _require_listed(reference, folder / name, files[name], cached)
            licence = _licence(folder / "README.md")
    fields = {"source": f"hf:{repo}", "revision": revision, "part": part}
    return Origin({key: value for key, value in fields.items() if value}, licence)


def _licence(card: Path) -> str | None:
    """The licence in the header of a data card, or None."""
    from huggingface_hub import metadata_load

    try:
        licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except Exception:  # a card that is not YAML names no licence; its file is kept as it is
        return None
    return licence if isinstance(licence, str) else None


def _pinned(reference: str) -> tuple[str, str, str | None]:
    """Repository, revision and part. For a reference without a commit, raises InputError with the current commit."""
    match = _HUB.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference}: expected hf:OWNER/NAME@REVISION, or with :SPLIT or :PATTERN after it")
    repo, revision, part = match["repo"], match["revision"], match["part"]
    if revision and REVISION.fullmatch(revision):
        return repo, revision, part
    from huggingface_hub import HfApi

    after = f":{part}" if part else ""
    try:
        with online(), hub_errors(reference, "data"):
            current = HfApi().dataset_info(repo, revision=revision).sha
    except InputError as error:
        raise InputError(
            f"{reference}: not pinned; use hf:{repo}@REVISION{after} with the 40 hex digits of a commit; the current "
            f"one is not known: {error}"
        ) from None
    raise InputError(f"{reference}: not pinned; use hf:{repo}@{current}{after}, which is {revision or 'main'} now")


def _chosen(reference: str, names: Sequence[str], part: str | None) -> list[str]:
    """The names of the files in a split or pattern, and of README and licence files.

    A part with one of `*?[./` is a pattern. Any other is a split: a word in a path, between separators, as in the
    datasets library. For example, data/train-00000-of-00001.parquet is in the split `train`.
    """
    if part is None:
        chosen = list(names)
    elif re.search(r"[*?\[./]", part):
        chosen = [name for name in names if fnmatchcase(name, part)]
    else:
        word = re.compile(rf"(?:^|[-._ 0-9/]){re.escape(part)}(?:[-._ 0-9/]|$)")
        chosen = [name for name in names if word.search(name)]
    if not chosen:
        raise InputError(f"{reference}: none of {len(names)} files matches {part}; choose from {', '.join(names[:8])}")
    return sorted({*chosen, *(name for name in names if _ABOUT.fullmatch(name))})


def _require_listed(reference: str, path: Path, listed: Any, cached: Path) -> None:
    """Compare a file with its digest in the hub's listing: SHA-256 for a large file, git's SHA-1 for others."""
    if listed.lfs is not None:
        expected, found = f"sha256:{listed.lfs.sha256}", file_digest(path)
    else:
        data = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        expected, found = f"git {listed.blob_id}", f"git {git.hexdigest()}"
    if expected != found:
        raise InputError(
            f"{reference}: {listed.path}: expected {expected} as the hub lists, found {found}; remove "
            f"{cached.resolve()} and run it again"
        )


def _from_bucket(reference: str, out: Path, endpoint: str | None, region: str | None) -> Origin:
    objects = open_backend(reference, endpoint, region)
    names = [name for name in objects.list("") if not name.endswith("/") and not _is_hidden(name)]
    if not names:
        objects, names = _one_object(reference, endpoint, region)
    heads = {name: head_of(objects, reference, name) for name in names}
    with new_folder(out) as folder:

        def fetch(name: str) -> str:
            download_object(objects, reference, name, heads[name], folder / name)
            return name

        for number, name in enumerate(threaded(fetch, names, THREADS), 1):
            _say(reference, number, len(names), name, heads[name].size)
    listing = {name: [head.size, head.tag] for name, head in heads.items()}
    return Origin(
        {"source": reference, "objects": len(names), "etags": bytes_digest(canonical_json(listing))}
        | ({"endpoint": endpoint} if endpoint else {})
    )


def _one_object(reference: str, endpoint: str | None, region: str | None) -> tuple[Backend, list[str]]:
    """Open the bucket for a reference that is one object. Raises InputError if there is no such object."""
    above, _, name = reference.rstrip("/").rpartition("/")
    if above != "s3:/" and name:
        objects = open_backend(above, endpoint, region)
        if objects.head(name) is not None:
            return objects, [name]
    raise InputError(f"{reference}: no objects there; check the bucket, the prefix and the endpoint")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or not part for part in name.split("/"))


def _say(reference: str, number: int, count: int, name: str, size: int) -> None:
    say(f"data: {reference}: file {number}/{count}, {name}, {size} bytes")
