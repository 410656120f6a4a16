"""Backend in an S3 bucket, through boto3."""

import base64
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, BinaryIO, TypeVar

from shadowft_core.errors import StoreCorruptError, StoreError, StoreUnreachableError
from shadowft_core.files import bytes_digest
from shadowft_core.limits import OBJECTS
from shadowft_core.store.backends.answers import field, sha256_of
from shadowft_core.store.backends.interface import (
    BLOCK,
    Damaged,
    Entry,
    Head,
    checked,
    corrupt,
    ends_early,
    missing,
    moved,
    require_same,
    stream,
)

PATIENCE = 12.0  # seconds of failed requests after which no new attempt starts
DAMAGED_ATTEMPTS = 3  # damage in transit disappears on a retry; damage at rest does not

T = TypeVar("T")


class S3Backend:
    """Objects in a bucket: one plain PutObject each, no multipart, so an object is complete or absent."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        endpoint: str | None,
        region: str | None,
        sse: str | None,
        sse_kms_key: str | None,
        bucket_owner: str | None,
    ) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self.bucket, self.prefix = bucket, prefix + "/" if prefix else ""
        self.location = f"s3://{bucket}/{prefix}".rstrip("/") + (f" at {endpoint}" if endpoint else "")
        self._every = {"Bucket": bucket} | ({"ExpectedBucketOwner": bucket_owner} if bucket_owner else {})
        self._encryption = {
            name: value for name, value in (("ServerSideEncryption", sse), ("SSEKMSKeyId", sse_kms_key)) if value
        }
        s3: dict[str, Any] = {"addressing_style": "path"} if endpoint else {}
        if endpoint and endpoint.startswith("http://"):
            # The signed checksum header covers the body; hashing it again for the signature costs time.
            s3["payload_signing_enabled"] = False
        config = Config(
            s3=s3,
            connect_timeout=4,
            read_timeout=10,
            retries={"total_max_attempts": 1},  # retried below, which also handles a broken body and a lost reply
            max_pool_connections=16,
            response_checksum_validation="when_required",  # every byte is hashed here once
        )
        try:
            self._client = boto3.Session().client(  # the default session would keep old credentials
                "s3", endpoint_url=endpoint, region_name=region or os.environ.get("AWS_REGION"), config=config
            )
        except (ValueError, BotoCoreError) as error:
            raise StoreError(f"{self.location}: {_one_line(error)}; correct the store section of params.yaml") from None

    def put_if_absent(self, key: str, data: bytes, digest: str, ask: bool = True) -> bool:
        head = self.head(key) if ask else None
        if head is None and self._put(key, data, digest, IfNoneMatch="*") is not None:
            return True
        require_same(self, key, len(data), digest, head)
        return False

    def get(self, key: str, size: int, digest: str, sink: BinaryIO) -> None:
        def attempt() -> None:
            with closing(self._client.get_object(**self._at(key))["Body"]) as body:
                stream(body.iter_chunks(BLOCK), size, digest, sink)

        try:
            self._call(key, attempt)
        except Damaged as error:
            raise corrupt(self, key, digest, error) from None

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        def attempt() -> tuple[bytes, str] | None:
            try:
                answer = self._client.get_object(**self._at(key), ChecksumMode="ENABLED")
            except self._client.exceptions.NoSuchKey:
                return None
            with closing(answer["Body"]) as body:
                # Read whole, because boto3 compares the checksum only at the end of the body.
                if field(self, answer, "ContentLength", key) > limit:
                    raise StoreCorruptError(
                        f"{self.location}: {key} is larger than the {limit} bytes allowed for it; remove it if it is "
                        "damaged"
                    )
                return body.read(), str(field(self, answer, "ETag", key))

        return self._call(key, attempt)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""

        def attempt() -> bytes:
            answer = self._client.get_object(**self._at(key), Range=f"bytes={start}-{start + length - 1}")
            with closing(answer["Body"]) as body:
                # A server that ignores the range answers with the whole object, which is not read.
                if answer.get("ContentLength") != length:
                    raise ends_early(self, key, start, length)
                return bytes(body.read())

        return self._call(key, attempt)

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        new = self._put(key, data, bytes_digest(data), **condition)
        if new is not None:
            return new
        # Either refused, or the reply to our own write was lost and the retry found it: the content decides.
        found = self.read(key, max(len(data), BLOCK))
        if found is None or found[0] != data:
            raise moved(self, key)
        return found[1]

    def head(self, key: str) -> Head | None:
        from botocore.exceptions import ClientError

        try:
            answer = self._call(key, lambda: self._client.head_object(**self._at(key), ChecksumMode="ENABLED"))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        modified = field(self, answer, "LastModified", key).timestamp()
        size = field(self, answer, "ContentLength", key)
        return Head(size, sha256_of(answer), str(field(self, answer, "ETag", key)), modified)

    def entries(self, prefix: str) -> Iterator[Entry]:
        token: dict[str, str] = {}
        where = self.prefix + (checked(prefix) + "/" if prefix else "")
        listed = 0  # objects and pages
        while True:
            page = self._call(
                prefix or "list",
                lambda token=token: self._client.list_objects_v2(**self._every, Prefix=where, **token),  # type: ignore[misc]
            )
            for entry in page.get("Contents", ()):
                key = str(field(self, entry, "Key", prefix)).removeprefix(self.prefix)
                modified = field(self, entry, "LastModified", key).timestamp()
                yield Entry(key, field(self, entry, "Size", key), modified)
            if not page.get("IsTruncated"):
                return
            after = {"ContinuationToken": str(field(self, page, "NextContinuationToken", prefix))}
            listed += 1 + len(page.get("Contents", ()))
            if after == token or listed > OBJECTS:
                raise StoreError(
                    f"{self.location}: the listing of {prefix or 'the store'} does not end ({listed} objects); check "
                    "the server"
                )
            token = after

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._client.delete_object(**self._at(key)))

    def discard_unfinished(self, before: float, dry_run: bool = False) -> int:
        return 0  # a single put is complete or absent

    def _at(self, key: str) -> dict[str, str]:
        return {**self._every, "Key": self.prefix + checked(key)}

    def _put(self, key: str, data: bytes, digest: str, **condition: str) -> str | None:
        """The new tag; None when the condition failed, or seems to have failed because a reply was lost."""
        from botocore.exceptions import ClientError

        checksum = _to_base64(digest)
        try:
            answer = self._call(
                key,
                lambda: self._client.put_object(
                    **self._at(key), Body=data, ChecksumSHA256=checksum, **self._encryption, **condition
                ),
            )
        except Damaged as error:
            raise StoreCorruptError(
                f"{self.location}: {key} refused: its bytes do not have digest {digest} ({error})"
            ) from None
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 412):  # 404: If-Match on an absent key
                return None
            raise
        return str(field(self, answer, "ETag", key))

    def _call(self, key: str, attempt: Callable[[], T]) -> T:
        """Run a request. After a failure, retry it at least once, and until PATIENCE seconds have passed.

        Raises ClientError for 404 and 412, which callers treat as answers; Damaged when the bytes stay wrong;
        StoreUnreachableError and StoreError.
        """
        from botocore import exceptions as boto
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        started, pause, damaged, repeated = time.monotonic(), 0.2, 0, False
        while True:
            try:
                return attempt()
            except boto.ClientError as error:
                if (last := self._judge(error, key)) == "BadDigest":
                    damaged += 1
                    if damaged == DAMAGED_ATTEMPTS:
                        raise Damaged("the store computed another checksum") from None
            except Damaged as error:
                damaged += 1
                if damaged == DAMAGED_ATTEMPTS:
                    raise
                last = str(error)
            except boto.SSLError as error:
                if "CERTIFICATE_VERIFY_FAILED" in (last := _one_line(error)):
                    raise StoreUnreachableError(
                        f"{self.location}: its certificate is not trusted ({last}); set AWS_CA_BUNDLE to a file with "
                        "the certificate of its authority"
                    ) from None
            except (
                boto.HTTPClientError,
                boto.ConnectionError,
                boto.FlexibleChecksumError,
                boto.IncompleteReadError,
                HTTPError,  # an error reply whose body breaks off; boto does not translate it
                ResponseParserError,  # XML that ends early
            ) as e:
                last = _one_line(e)
            except (boto.BotoCoreError, RuntimeError) as error:  # no, partial or expired credentials, no region
                if isinstance(error, RuntimeError) and "expired" not in str(error):
                    raise  # boto raises a bare RuntimeError for credentials that are still expired after a refresh
                raise StoreUnreachableError(
                    f"{self.location}: {_one_line(error)}; set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) and store.region"
                ) from None
            waited = time.monotonic() - started
            if repeated and waited + pause > PATIENCE:  # on a slow line one attempt may take longer
                raise StoreUnreachableError(
                    f"{self.location}: no usable answer for {key} in {waited:.0f} s ({last}); check that the server "
                    "runs and that store.endpoint is right, then run the same command again"
                )
            time.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  spreads racing writers, nothing secret
            pause, repeated = min(pause * 2, 3.0), True

    def _judge(self, error: Any, key: str) -> str:
        """Return the reason of an error that is worth a retry; raise for any other error."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        if code == "NoSuchKey" and error.operation_name == "GetObject":
            raise missing(self, key)
        if code == "NoSuchBucket":
            raise StoreUnreachableError(
                f"{self.location}: there is no bucket {self.bucket!r}; create it or correct store.uri"
            )
        if code in ("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"):
            return "BadDigest"
        if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
            raise StoreUnreachableError(
                f"{self.location}: {error.operation_name} refused ({code}); check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, the rights of that identity, store.bucket_owner and this machine's clock"
            )
        if status == 404 and error.operation_name == "GetObject":
            return "404 without a readable reason"  # damaged in transit: no such object, or no such bucket?
        if status in (404, 412):
            try:
                raise error
            finally:
                del error  # else a cycle of this frame and the exception keeps the sent chunk in memory
        if (
            status in (408, 409, 429)
            or (status >= 500 and status != 501)
            or code in ("RequestTimeout", "IncompleteBody")
        ):
            return f"{status} {code}"
        raise StoreError(f"{self.location}: {error.operation_name} of {key} refused: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _to_base64(digest: str) -> str:
    return base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
