"""Resolves references to models: a folder, `hf:OWNER/NAME@REVISION`, `s3://BUCKET/PREFIX`, or a generated pair.

A package provides a generated pair, named `NAME:...`, through an entry point NAME of the group `shadowft.pairs`: a
module with `resolve(reference) -> (folder, label)` and `SOURCES`, the files that the pair is made from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from shadowft_core.errors import InputError
from shadowft_core.files import file_digest
from shadowft_core.pair import bucket, hub
from shadowft_core.weights import Checkpoint, open_checkpoint


def is_remote(reference: str) -> bool:
    """Whether the model is read over the network."""
    return reference.startswith(("hf:", "s3://"))


def is_generated(reference: str) -> bool:
    """Whether a package generates the model, such as `pico:base`; that may take minutes."""
    return _generated(reference.partition(":")[0]) is not None


def resolve(reference: str) -> tuple[Path, str]:
    """The folder and the label (empty for a published model) of a reference; generates or downloads it if needed.

    A reference is a folder, `hf:OWNER/NAME@REVISION` with 40 hex digits, `s3://BUCKET/PREFIX`, `pico:base|instruct` or
    `smollm2:...`. Raises InputError for anything else, and when the hub fails; StoreError when the bucket fails.
    """
    kind = reference.partition(":")[0]
    if generated := _generated(kind):
        found: tuple[Path, str] = generated.resolve(reference)
        return found
    if kind == "hf":
        return hub.download(reference), ""
    if reference.startswith("s3://"):
        return bucket.download(reference), ""
    folder = Path(reference)
    if not folder.is_dir():
        raise InputError(
            f"{reference}: no such folder; use a model folder, hf:OWNER/NAME@REVISION, s3://BUCKET/PREFIX or "
            "pico:base|instruct"
        )
    return folder, ""


def made_from(reference: str) -> dict[str, str]:
    """Digests of the source files that a generated model is made from, by name; empty for any other model."""
    kind = reference.partition(":")[0]
    generated = _generated(kind)
    return {f"{kind}/{file.name}": file_digest(file) for file in generated.SOURCES} if generated else {}


def _generated(kind: str) -> Any:
    """The module that generates the pairs `KIND:...`; None when no package provides that kind."""
    found = entry_points(group="shadowft.pairs", name=kind)
    return next(iter(found)).load() if found else None


@contextmanager
def opened(reference: str, download: bool = False) -> Iterator[tuple[Checkpoint, str]]:
    """The checkpoint of a reference, and its label.

    Without `download`, only the side files and headers of a remote model are fetched; inside the block, `part` reads
    its weights in ranges. Raises what `resolve` does, and CheckpointError for a model that cannot be read.
    """
    if reference.startswith("hf:") and not download:
        with hub.opened(reference) as model:
            yield model, ""
    elif reference.startswith("s3://") and not download:
        with bucket.opened(reference) as model:
            yield model, ""
    else:
        folder, label = resolve(reference)
        yield open_checkpoint(folder), label
