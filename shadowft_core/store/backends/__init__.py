"""Bytes in and out, by key: an S3 bucket through boto3, or a local folder. The only room that knows boto3.

What both promise: an object is written once and whole; its SHA-256 is checked by the store on the way in and here on
the way out; a name is taken by exactly one writer; an unclear answer is settled by reading back, never by deleting.
"""

import re
from pathlib import Path

from shadowft_core.errors import StoreError
from shadowft_core.store.backends.folder import FolderObjects
from shadowft_core.store.backends.interface import KEY, Entry, Head, Objects
from shadowft_core.store.backends.s3 import PATIENCE, S3Objects

__all__ = ["PATIENCE", "Entry", "Head", "Objects", "open_objects"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def open_objects(
    uri: str,
    endpoint: str | None = None,
    region: str | None = None,
    *,
    sse: str | None = None,
    sse_kms_key: str | None = None,
    bucket_owner: str | None = None,
) -> Objects:
    """The objects at `s3://bucket/prefix` or in a folder. Opens no connection. On S3:

    `sse` and `sse_kms_key` name the encryption at rest asked for with every write (`AES256`, `aws:kms`), `bucket_owner`
    the account (12 digits) that must own the bucket. Credentials come the usual AWS ways.

    Raises StoreError for an address that can be neither, or an endpoint that is not an http(s) URL.
    """
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(bucket) or (prefix and not KEY.fullmatch(prefix)):
            raise StoreError(f"store address {uri!r} is not s3://BUCKET/PREFIX of letters, digits, '.', '_' and '-'")
        return S3Objects(bucket, prefix, endpoint, region, sse, sse_kms_key, bucket_owner)
    if _SCHEME.match(uri) and not uri.startswith("file://"):  # `s3:/bucket` too: a slip, not a folder
        raise StoreError(f"store address {uri!r} is neither s3://BUCKET/PREFIX nor a folder; correct store.uri")
    return FolderObjects(Path(uri.removeprefix("file://")))
