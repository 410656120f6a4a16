"""Downloads objects of an S3 bucket and checks them."""

from pathlib import Path

from shadowft_core.errors import InputError
from shadowft_core.store.backends import Backend, Head

BLOCK = 8 << 20  # bytes per request


def head_of(objects: Backend, reference: str, name: str) -> Head:
    """Size, checksum and etag of an object. Raises InputError if it does not exist."""
    head = objects.head(name)
    if head is None:
        raise InputError(
            f"{reference}: {name} was deleted during the download; run it again when nobody changes the bucket"
        )
    return head


def download_object(objects: Backend, reference: str, name: str, head: Head, target: Path) -> None:
    """Write an object to a file, and verify its checksum; without one, that its etag is still that of `head`.

    Raises InputError if the object changes during the download, StoreError if the bucket fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        if head.digest:
            objects.get(name, head.size, head.digest, file)
            return
        for start in range(0, head.size, BLOCK):
            file.write(objects.read_range(name, start, min(BLOCK, head.size - start)))
    if (after := head_of(objects, reference, name)).tag != head.tag:
        raise InputError(
            f"{reference}: {name} changed from {head.tag} to {after.tag} during the download; run it again"
        )
