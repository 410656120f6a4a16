"""Models in an S3 bucket: reads headers and weights by range, or downloads and verifies the whole model.

As for every S3 client, AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL sets the endpoint of a server other than AWS.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from shadowft_core.errors import CheckpointError, InputError, say
from shadowft_core.files import bytes_digest, cache_folder, canonical_json, new_folder
from shadowft_core.limits import TOKENIZER_BYTES
from shadowft_core.pair.sidefiles import SIDE_FILES
from shadowft_core.remote.bucket import download_object, head_of
from shadowft_core.store.backends import Backend, open_backend
from shadowft_core.weights import Checkpoint, RemoteFiles, open_checkpoint, open_remote


@contextmanager
def opened(reference: str) -> Iterator[Checkpoint]:
    """A checkpoint with its side files in a temporary folder and its weights read in ranges.

    Raises InputError when there is no model, CheckpointError for a malformed one, StoreError when the bucket fails.
    """
    with tempfile.TemporaryDirectory(prefix="shadowft-pair-") as place:
        yield _open(reference, _objects(reference), Path(place) / reference.removeprefix("s3://"))


def download(reference: str) -> Path:
    """Download the model into a folder of `$SHADOWFT_CACHE/s3/`, named by a digest of file names, sizes and versions.

    Verifies the checksum if the store has one, else that size and version did not change. Raises InputError when the
    model changes during the download, and what `opened` raises.
    """
    objects = _objects(reference)
    with tempfile.TemporaryDirectory(prefix="shadowft-pair-") as place:
        remote = _open(reference, objects, Path(place) / reference.removeprefix("s3://"))
        names = [*remote.shards, *(path.relative_to(remote.path).as_posix() for path in _files(remote.path))]
    heads = {name: head_of(objects, reference, name) for name in names}
    held = {name: [head.size, head.tag] for name, head in heads.items()}
    key = bytes_digest(canonical_json({"format": 1, "reference": objects.location, "held": held}))
    out = cache_folder() / "s3" / key.removeprefix("sha256:")[:16]
    if not out.is_dir():
        with new_folder(out) as folder:
            for number, (name, head) in enumerate(heads.items(), 1):
                say(f"pair: {reference}: file {number}/{len(heads)}, {head.size} bytes")
                download_object(objects, reference, name, head, folder / name)
            open_checkpoint(folder)
    return out


def _objects(reference: str) -> Backend:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return open_backend(reference, endpoint)


def _open(reference: str, objects: Backend, folder: Path) -> Checkpoint:
    keys = [key for key in objects.list("") if not key.startswith(".")]
    weights = [key for key in keys if key.endswith(".safetensors") and "/" not in key]
    if not weights:
        raise InputError(f"{reference}: {len(keys)} objects, no *.safetensors among them; pass the prefix of a model")
    for key in keys:
        inside, _, name = key.rpartition("/")
        if inside in ("", "additional_chat_templates") and any(fnmatchcase(name, pattern) for pattern in SIDE_FILES):
            found = objects.read(key, TOKENIZER_BYTES)
            if found is not None:
                (folder / key).parent.mkdir(parents=True, exist_ok=True)
                (folder / key).write_bytes(found[0])
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {key: head_of(objects, reference, key).size for key in weights}
    try:
        return open_remote(folder, RemoteFiles(sizes, objects.read_range))
    except CheckpointError as error:
        raise type(error)(f"{reference}: {error}") from None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
