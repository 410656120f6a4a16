"""Bytes in and out, by key: an S3 bucket through boto3, or a local folder. The only room that knows boto3.

What both promise: an object is written once and whole; its SHA-256 is checked by the store on the way in and here on
the way out; a name is taken by exactly one writer; an unclear answer is settled by reading back, never by deleting.
"""

import re
from pathlib import Path

from shadowft_core.errors import StoreError
from shadowft_core.objects.folder import FolderObjects
from shadowft_core.objects.interface import KEY, Head, Objects
from shadowft_core.objects.s3 import PATIENCE, S3Objects

__all__ = ["PATIENCE", "Head", "Objects", "open_objects"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_objects(uri: str, endpoint: str | None = None, region: str | None = None) -> Objects:
    """The objects at `s3://bucket/prefix` or in a folder. Opens no connection.

    Raises StoreError for an address that can be neither, or an endpoint that is not an http(s) URL.
    """
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(bucket) or (prefix and not KEY.fullmatch(prefix)):
            raise StoreError(f"store address {uri!r} is not s3://BUCKET/PREFIX of letters, digits, '.', '_' and '-'")
        return S3Objects(bucket, prefix, endpoint, region)
    if "://" in uri and not uri.startswith("file://"):
        raise StoreError(f"store address {uri!r} is neither s3://BUCKET/PREFIX nor a folder; correct store.uri")
    return FolderObjects(Path(uri.removeprefix("file://")))
