"""Bytes in and out, by key: an S3 bucket through boto3, or a local folder. The only room that knows boto3.

What both promise: an object is written once and whole; its SHA-256 is checked by the store on the way in and here on the
way out; a name is taken by exactly one writer; an unclear answer is settled by reading back, never by deleting.
"""

import fcntl
import hashlib
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from shadowft_core.checkpoint import bytes_digest
from shadowft_core.errors import StoreConflict, StoreCorrupt, StoreError, StoreUnreachable

PATIENCE = 12.0  # seconds of failing answers after which no new attempt is started
DAMAGED_ATTEMPTS = 3  # damage in flight is gone on the second try; damage at rest is not
BLOCK = 1 << 20

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

T = TypeVar("T")


@dataclass(frozen=True)
class Head:
    """What is known of an object without reading it: bytes, `sha256:<hex>` if the store keeps it, and its version tag."""

    size: int
    digest: str | None
    tag: str


class Objects(Protocol):
    """One place that holds objects under keys like `objects/sha256/ab/...`. Every digest is `sha256:<64 hex>`.

    All methods raise StoreUnreachable (no answer within seconds, wrong credentials, no such bucket) and StoreError.
    """

    location: str
    """How people are told where it is."""

    def put_if_absent(self, key: str, data: bytes, digest: str) -> bool:
        """Write `data` unless the key exists; True when the bytes were sent, False when they were already there.

        Raises StoreConflict when the key holds other content, StoreCorrupt when `digest` is not that of `data`.
        """

    def get(self, key: str, size: int, digest: str, sink: BinaryIO) -> None:
        """Stream an object of a known size into `sink`, from where it stands, and verify it.

        Raises StoreError when the object is missing, StoreCorrupt when it is not what the digest says; the sink may then
        hold wrong bytes and must be dropped.
        """

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        """Content and version tag of a small object, None when it is absent. StoreCorrupt above `limit` bytes."""

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        """Replace the version `tag` (None: the key must be absent) by `data`; returns the new tag.

        Raises StoreConflict when the key has moved on.
        """

    def head(self, key: str) -> Head | None:
        """Size, digest and tag, or None when the key is absent."""

    def list(self, prefix: str) -> Iterator[str]:
        """All keys below `prefix` (a whole number of path segments, or empty), sorted."""


def open_objects(uri: str, endpoint: str | None = None, region: str | None = None) -> Objects:
    """The objects at `s3://bucket/prefix` or in a folder. Opens no connection.

    Raises StoreError for an address that can be neither, or an endpoint that is not an http(s) URL.
    """
    if uri.startswith("s3://"):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not _BUCKET.fullmatch(bucket) or (prefix and not _KEY.fullmatch(prefix)):
            raise StoreError(f"store address {uri!r} is not s3://BUCKET/PREFIX of letters, digits, '.', '_' and '-'")
        return _S3(bucket, prefix, endpoint, region)
    if "://" in uri and not uri.startswith("file://"):
        raise StoreError(f"store address {uri!r} is neither s3://BUCKET/PREFIX nor a folder; correct store.uri")
    return _Folder(Path(uri.removeprefix("file://")))


def _checked(key: str) -> str:
    if len(key) > 300 or not _KEY.fullmatch(key):
        raise StoreError(f"object key {key[:80]!r} is not allowed: plain path segments of at most 300 characters are")
    return key


class _Damaged(Exception):
    """Bytes arrived that are not the ones asked for; worth another attempt."""


def _stream(blocks: Iterator[bytes], size: int, digest: str, sink: BinaryIO) -> None:
    """Copy blocks into the sink; raises _Damaged as soon as they cannot be the object any more."""
    start, seen, sha = sink.tell(), 0, hashlib.sha256()
    for block in blocks:
        seen += len(block)
        if seen > size:
            break
        sha.update(block)
        sink.write(block)
    if seen != size or sha.hexdigest() != digest.removeprefix("sha256:"):
        sink.seek(start)
        raise _Damaged(f"{seen} bytes, sha256:{sha.hexdigest()}" if seen <= size else f"more than {size} bytes")


class _Folder:
    """Objects as files. Names are taken under one file lock, by rename of a finished and synced file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _written(self, path: Path, data: bytes) -> Iterator[Path]:
        """`data` in a synced file beside `path`, removed unless it was renamed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    @staticmethod
    def _name(temporary: Path, path: Path) -> None:
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def put_if_absent(self, key: str, data: bytes, digest: str) -> bool:
        path = self.root / _checked(key)
        found = bytes_digest(data)
        if found != digest:
            raise StoreCorrupt(f"{self.location}: {key} refused, its bytes are {found} and not {digest}")
        if not path.exists():
            with self._written(path, data) as temporary, self._lock():
                if not path.exists():
                    self._name(temporary, path)
                    return True
        _same(self, key, len(data), digest)
        return False

    def get(self, key: str, size: int, digest: str, sink: BinaryIO) -> None:
        try:
            with open(self.root / _checked(key), "rb") as file:
                _stream(iter(lambda: file.read(BLOCK), b""), size, digest, sink)
        except FileNotFoundError:
            raise _missing(self, key) from None
        except _Damaged as error:
            raise _corrupt(self, key, digest, error) from None

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        try:
            with open(self.root / _checked(key), "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        if len(data) > limit:
            raise StoreCorrupt(f"{self.location}: {key} is larger than the {limit} bytes allowed for it")
        return data, bytes_digest(data)

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        path = self.root / _checked(key)
        with self._written(path, data) as temporary, self._lock():
            head = self.head(key)
            if (head.tag if head else None) != tag:
                raise _moved(self, key)
            self._name(temporary, path)
        return bytes_digest(data)

    def head(self, key: str) -> Head | None:
        sha, size = hashlib.sha256(), 0
        try:
            with open(self.root / _checked(key), "rb") as file:
                while block := file.read(BLOCK):
                    sha.update(block)
                    size += len(block)
        except FileNotFoundError:
            return None
        digest = "sha256:" + sha.hexdigest()
        return Head(size, digest, digest)

    def list(self, prefix: str) -> Iterator[str]:
        folder = self.root / _checked(prefix) if prefix else self.root
        keys = (path.relative_to(self.root).as_posix() for path in folder.rglob("*") if path.is_file())
        return iter(sorted(key for key in keys if _KEY.fullmatch(key)))


class _S3:
    """Objects in a bucket: one plain PutObject each, no multipart, so nothing is ever half there."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None, region: str | None) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self.bucket, self.prefix = bucket, prefix + "/" if prefix else ""
        self.location = f"s3://{bucket}/{prefix}".rstrip("/") + (f" at {endpoint}" if endpoint else "")
        s3: dict[str, Any] = {"addressing_style": "path"} if endpoint else {}
        if endpoint and endpoint.startswith("http://"):
            s3["payload_signing_enabled"] = (
                False  # the signed SHA-256 header binds the body already, at a fifth of the cost
            )
        config = Config(
            s3=s3,
            connect_timeout=4,
            read_timeout=10,
            retries={"total_max_attempts": 1},  # retried here, where a broken body and a lost reply count too
            max_pool_connections=16,
            response_checksum_validation="when_required",  # every byte is hashed here once, that is enough
        )
        try:
            self._client = boto3.Session().client(  # the module's default session would keep old credentials
                "s3", endpoint_url=endpoint, region_name=region or os.environ.get("AWS_REGION"), config=config
            )
        except (ValueError, BotoCoreError) as error:
            raise StoreError(f"{self.location}: {_one_line(error)}; correct the store section of params.yaml") from None

    def put_if_absent(self, key: str, data: bytes, digest: str) -> bool:
        if self.head(key) is None and self._put(key, data, digest, IfNoneMatch="*") is not None:
            return True
        _same(self, key, len(data), digest)
        return False

    def get(self, key: str, size: int, digest: str, sink: BinaryIO) -> None:
        def attempt() -> None:
            with closing(self._client.get_object(**self._at(key))["Body"]) as body:
                _stream(body.iter_chunks(BLOCK), size, digest, sink)

        try:
            self._call(key, attempt)
        except _Damaged as error:
            raise _corrupt(self, key, digest, error) from None

    def read(self, key: str, limit: int) -> tuple[bytes, str] | None:
        def attempt() -> tuple[bytes, str] | None:
            try:
                answer = self._client.get_object(**self._at(key), ChecksumMode="ENABLED")
            except self._client.exceptions.NoSuchKey:
                return None
            with closing(answer["Body"]) as body:
                # Whole, because the store's checksum is compared only at the end of the body.
                if answer["ContentLength"] > limit:
                    raise StoreCorrupt(f"{self.location}: {key} is larger than the {limit} bytes allowed for it")
                return body.read(), answer["ETag"]

        return self._call(key, attempt)

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        new = self._put(key, data, bytes_digest(data), **condition)
        if new is not None:
            return new
        # Refused, or the reply to our own write was lost and the retry met it: the content decides.
        found = self.read(key, max(len(data), BLOCK))
        if found is None or found[0] != data:
            raise _moved(self, key)
        return found[1]

    def head(self, key: str) -> Head | None:
        from botocore.exceptions import ClientError

        try:
            answer = self._call(key, lambda: self._client.head_object(**self._at(key), ChecksumMode="ENABLED"))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        sha = answer.get("ChecksumSHA256")
        return Head(answer["ContentLength"], _from_base64(sha) if sha else None, answer["ETag"])

    def list(self, prefix: str) -> Iterator[str]:
        token: dict[str, str] = {}
        where = self.prefix + (_checked(prefix) + "/" if prefix else "")
        while True:
            page = self._call(
                prefix or "list",
                lambda token=token: self._client.list_objects_v2(Bucket=self.bucket, Prefix=where, **token),  # type: ignore[misc]
            )
            yield from (entry["Key"].removeprefix(self.prefix) for entry in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + _checked(key)}

    def _put(self, key: str, data: bytes, digest: str, **condition: str) -> str | None:
        """The new tag, or None when the condition did not hold (or a lost reply makes it look so)."""
        from botocore.exceptions import ClientError

        checksum = _to_base64(digest)
        try:
            answer = self._call(
                key,
                lambda: self._client.put_object(**self._at(key), Body=data, ChecksumSHA256=checksum, **condition),
            )
        except _Damaged as error:
            raise StoreCorrupt(f"{self.location}: {key} refused, its bytes are not {digest} ({error})") from None
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 412):  # 404: If-Match on an absent key
                return None
            raise
        return str(answer["ETag"])

    def _call(self, key: str, attempt: Callable[[], T]) -> T:
        """Repeat one request until it is answered, for PATIENCE seconds.

        Lets ClientError through for 404 and 412, which are answers, and _Damaged when the bytes stay wrong.
        """
        from botocore import exceptions as boto

        started, pause, damaged = time.monotonic(), 0.2, 0
        while True:
            try:
                return attempt()
            except boto.ClientError as error:
                if (last := self._judge(error, key)) == "BadDigest":
                    damaged += 1
                    if damaged == DAMAGED_ATTEMPTS:
                        raise _Damaged("the store found another checksum") from None
            except _Damaged as error:
                damaged += 1
                if damaged == DAMAGED_ATTEMPTS:
                    raise
                last = str(error)
            except (
                boto.HTTPClientError,
                boto.ConnectionError,
                boto.FlexibleChecksumError,
                boto.IncompleteReadError,
            ) as e:
                last = _one_line(e)
            except boto.BotoCoreError as error:  # no, partial or expired credentials, no region
                raise StoreUnreachable(
                    f"{self.location}: {_one_line(error)}; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) "
                    "and store.region"
                ) from None
            waited = time.monotonic() - started
            if waited + pause > PATIENCE:
                raise StoreUnreachable(
                    f"{self.location}: no usable answer for {key} in {waited:.0f} s ({last}); check that the server runs and "
                    "that store.endpoint is right, then run the same command again"
                )
            time.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  spreads racing writers, nothing secret
            pause = min(pause * 2, 3.0)

    def _judge(self, error: Any, key: str) -> str:
        """Name a refusal that is worth another attempt; raise the others in plain words."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        if code == "NoSuchKey" and error.operation_name == "GetObject":
            raise _missing(self, key)
        if code == "NoSuchBucket":
            raise StoreUnreachable(
                f"{self.location}: there is no bucket {self.bucket!r}; create it or correct store.uri"
            )
        if code in ("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"):
            return "BadDigest"
        if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
            raise StoreUnreachable(
                f"{self.location}: {error.operation_name} refused ({code}); check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, the rights of that identity and this machine's clock"
            )
        if status in (404, 412):
            raise error
        if (
            status in (408, 409, 429)
            or (status >= 500 and status != 501)
            or code in ("RequestTimeout", "IncompleteBody")
        ):
            return f"{status} {code}"
        raise StoreError(f"{self.location}: {error.operation_name} of {key} refused: {_one_line(error)}")


def _same(objects: Objects, key: str, size: int, digest: str) -> None:
    """Raises StoreConflict unless `key` holds exactly these bytes. A checksum the store does not keep is computed."""
    head = objects.head(key)
    if head is not None and head.size == size and head.digest in (None, digest):
        if head.digest == digest:
            return
        try:
            with open(os.devnull, "wb") as nowhere:
                objects.get(key, size, digest, nowhere)
            return
        except StoreCorrupt:
            pass
    found = f"{head.size} bytes, {head.digest or 'other content'}" if head else "nothing any more"
    raise StoreConflict(
        f"{objects.location}: {key} holds {found}, expected {size} bytes, {digest}; nothing was overwritten. "
        "Remove that object if it is damaged, or use another store"
    )


def _missing(objects: Objects, key: str) -> StoreError:
    return StoreError(f"{objects.location}: {key} is missing; check store.uri, or publish the delta again")


def _moved(objects: Objects, key: str) -> StoreConflict:
    return StoreConflict(f"{objects.location}: {key} was changed by someone else meanwhile; read it again and repeat")


def _corrupt(objects: Objects, key: str, digest: str, found: Exception) -> StoreCorrupt:
    return StoreCorrupt(
        f"{objects.location}: {key} is damaged: found {found}, expected {digest}; remove it and publish the delta again"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _to_base64(digest: str) -> str:
    import base64

    return base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()


def _from_base64(checksum: str) -> str:
    import base64

    return "sha256:" + base64.b64decode(checksum).hex()
