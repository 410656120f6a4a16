"""Objects of an S3 bucket, downloaded and checked."""

from pathlib import Path

from shadowft_core.errors import InputError
from shadowft_core.store.backends import Backend, Head

BLOCK = 8 << 20  # bytes of a range


def head_of(objects: Backend, reference: str, name: str) -> Head:
    """Size, checksum and version of an object. Raises InputError when it is gone."""
    head = objects.head(name)
    if head is None:
        raise InputError(f"{reference}: {name} was deleted during the download; use objects that do not change")
    return head


def download_object(objects: Backend, reference: str, name: str, head: Head, target: Path) -> None:
    """Write an object to a file. Verifies the checksum if the store has one, else that the version is still `head`'s.

    Raises InputError when the object changes meanwhile, StoreError when the bucket fails.
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
