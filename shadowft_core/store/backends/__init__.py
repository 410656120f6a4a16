"""Objects by key: an S3 bucket through boto3, or a local folder. No other room imports boto3.

Both backends guarantee that an object is written once and completely, that its SHA-256 is checked by the store on
upload and here on download, and that exactly one writer gets a key. If a reply is lost, the object is read back; it is
never deleted because of that.
"""

import re
from pathlib import Path

from shadowft_core.errors import StoreError
from shadowft_core.store.backends.folder import FolderBackend
from shadowft_core.store.backends.interface import KEY, Backend, Entry, Head
from shadowft_core.store.backends.s3 import PATIENCE, S3Backend

__all__ = ["PATIENCE", "Backend", "Entry", "Head", "open_backend"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


def open_backend(
    uri: str,
    endpoint: str | None = None,
    region: str | None = None,
    *,
    sse: str | None = None,
    sse_kms_key: str | None = None,
    bucket_owner: str | None = None,
) -> Backend:
    """The backend for `s3://bucket/prefix` or a folder. Opens no connection.

    On S3, every write requests the encryption at rest that `sse` and `sse_kms_key` name (`AES256`, `aws:kms`), and
    `bucket_owner` is the account (12 digits) that must own the bucket. Credentials come from the usual AWS sources.

    Raises StoreError for an address that is neither, or an endpoint that is not an http(s) URL.
    """
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(bucket) or (prefix and not KEY.fullmatch(prefix)):
            raise StoreError(
                f"store address {uri!r} is not s3://BUCKET/PREFIX of letters, digits, '.', '_' and '-'; "
                "correct store.uri"
            )
        return S3Backend(bucket, prefix, endpoint, region, sse, sse_kms_key, bucket_owner)
    if _SCHEME.match(uri) and not uri.startswith("file://"):  # `s3:/bucket` too: a typing error, not a folder
        raise StoreError(f"store address {uri!r} is neither s3://BUCKET/PREFIX nor a folder; correct store.uri")
    return FolderBackend(Path(uri.removeprefix("file://")))
