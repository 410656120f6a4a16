"""The guarantees of a backend hold on a real S3 server and in a folder."""

import base64
import gc
import io
import itertools
import os
import threading
import time
import weakref
from pathlib import Path

import psutil
import pytest

from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError, StoreUnreachableError
from shadowft_core.files import bytes_digest
from shadowft_core.params import Store
from shadowft_core.store import backends as room
from shadowft_core.store.backends import Backend, open_backend
from shadowft_core.store.backends.answers import sha256_of
from shadowft_core.store.backends.interface import Damaged, stream
from tests.fixtures.s3 import act_as
from tests.servers.seaweedfs import S3Server

DATA = bytes(range(256)) * 5000  # 1.28 MB: more than one block


@pytest.fixture(params=["s3", "folder", pytest.param("real", marks=pytest.mark.real_store)])
def backend(request: pytest.FixtureRequest) -> Backend:
    store: Store = request.getfixturevalue(f"{request.param}_store")
    return open_backend(store.uri, store.endpoint, store.region)


def test_objects_are_read_and_listed_as_written(backend: Backend) -> None:
    assert backend.head("a/b") is None
    assert backend.read("a/b", 10) is None
    assert backend.put_if_absent("a/b", DATA, bytes_digest(DATA)) is True
    assert backend.put_if_absent("a/b", DATA, bytes_digest(DATA)) is False
    sink = io.BytesIO()
    backend.get("a/b", len(DATA), bytes_digest(DATA), sink)
    assert sink.getvalue() == DATA
    head = backend.head("a/b")
    assert head is not None
    assert (head.size, head.digest) == (len(DATA), bytes_digest(DATA))
    backend.put_if_absent("a/c", b"c", bytes_digest(b"c"))
    backend.put_if_absent("ab", b"d", bytes_digest(b"d"))
    assert list(backend.list("")) == ["a/b", "a/c", "ab"]
    assert list(backend.list("a")) == ["a/b", "a/c"]


class Body(bytearray):
    """Bytes that take a weak reference."""


def test_sent_bytes_are_freed_at_once(backend: Backend) -> None:
    gc.collect()
    gc.disable()  # chunks in reference cycles would make memory grow
    try:
        for key in ("new", "new", "other"):
            body = Body(DATA)
            watched = weakref.ref(body)
            backend.put_if_absent(key, body, bytes_digest(body))
            del body
            assert watched() is None
    finally:
        gc.enable()


def test_an_existing_key_is_never_overwritten(backend: Backend) -> None:
    backend.put_if_absent("claim", b"mine", bytes_digest(b"mine"))
    with pytest.raises(StoreConflictError, match=r"claim holds 4 bytes, sha256:.*nothing was overwritten"):
        backend.put_if_absent("claim", b"your", bytes_digest(b"your"))
    assert backend.read("claim", 10)[0] == b"mine"  # type: ignore[index]


def test_bytes_with_another_digest_are_refused_on_upload(backend: Backend) -> None:
    with pytest.raises(StoreCorruptError, match="x refused: its bytes "):
        backend.put_if_absent("x", b"data", bytes_digest(b"other"))
    assert backend.head("x") is None


def test_wrong_size_digest_or_key_is_refused_on_download(backend: Backend) -> None:
    backend.put_if_absent("x", DATA, bytes_digest(DATA))
    for size, digest in [
        (len(DATA), bytes_digest(b"")),
        (len(DATA) - 1, bytes_digest(DATA)),
        (len(DATA) + 1, bytes_digest(DATA)),
    ]:
        with pytest.raises(StoreCorruptError, match=r"x is damaged: found .* expected sha256:"):
            backend.get("x", size, digest, io.BytesIO())
    with pytest.raises(StoreError, match="y is missing"):
        backend.get("y", 1, bytes_digest(b""), io.BytesIO())
    with pytest.raises(StoreCorruptError, match=f"larger than the {len(DATA) - 1} bytes"):
        backend.read("x", len(DATA) - 1)
    assert backend.read("x", len(DATA)) is not None
    assert backend.head(f"{'x' * 149}/{'x' * 150}") is None
    for key in ("../x", "/x", "a/../x", "a//x", "a\0", "x" * 301, ""):
        with pytest.raises(StoreError, match="expected plain path segments"):
            backend.head(key)


def test_an_object_without_an_end_is_left_and_the_sink_is_where_it_was() -> None:
    sink = io.BytesIO(b"before")
    sink.seek(0, os.SEEK_END)
    with pytest.raises(Damaged, match="more than 15 bytes"):
        stream(itertools.repeat(b"x" * 10, 1000), 15, bytes_digest(b""), sink)
    assert (sink.tell(), len(sink.getvalue())) == (6, 16)


def test_a_checksum_of_a_server_is_a_digest_or_nothing(tmp_path: Path) -> None:
    for raw in (b"x" * 31, b"x" * 33):  # such as that of the parts of a multipart upload
        assert sha256_of({"ChecksumSHA256": base64.b64encode(raw).decode()}) is None
    assert sha256_of({"ChecksumSHA256": "no base64"}) is None
    assert sha256_of({"ChecksumSHA256": base64.b64encode(b"x" * 32).decode()}) == f"sha256:{'78' * 32}"
    assert open_backend(f"file://{tmp_path}").location == str(tmp_path)


def test_swap_replaces_only_the_version_it_names(backend: Backend) -> None:
    first = backend.swap("ledger", b"1", None)
    with pytest.raises(StoreConflictError, match="another process changed ledger"):
        backend.swap("ledger", b"one", None)
    second = backend.swap("ledger", b"2", first)
    with pytest.raises(StoreConflictError):
        backend.swap("ledger", b"3", first)
    with pytest.raises(StoreConflictError):
        backend.swap("absent", b"3", first)
    assert backend.read("ledger", 10) == (b"2", second)


def test_one_of_eight_writers_wins(backend: Backend) -> None:
    barrier, outcomes = threading.Barrier(8), []

    def write(number: int) -> None:
        data = f"writer {number}".encode()
        barrier.wait()
        try:
            outcomes.append((backend.put_if_absent("race", data, bytes_digest(data)), data))
        except StoreConflictError:
            outcomes.append((False, data))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [data for won, data in outcomes if won]
    assert len(outcomes) == 8
    assert winners == [backend.read("race", 100)[0]]  # type: ignore[index]


def test_a_killed_local_write_leaves_no_object(folder_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend(folder_store.uri)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        backend.put_if_absent("a/b", DATA, bytes_digest(DATA))
    assert [path for path in Path(folder_store.uri).rglob("*") if path.is_file()] == []


def test_wrong_credentials_and_missing_bucket_are_one_clear_line(
    s3_store: Store, s3_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = open_backend("s3://no-such-bucket/x", s3_store.endpoint, s3_store.region)
    with pytest.raises(StoreUnreachableError, match="no-such-bucket"):
        absent.put_if_absent("x", b"x", bytes_digest(b"x"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    wrong = open_backend(s3_store.uri, s3_store.endpoint, s3_store.region)
    started = time.monotonic()
    with pytest.raises(StoreUnreachableError, match="check AWS_ACCESS_KEY_ID") as caught:
        list(wrong.list(""))
    assert time.monotonic() - started < 5
    assert "wrong" not in str(caught.value)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    nobody = open_backend(s3_store.uri, s3_store.endpoint, s3_store.region)
    with pytest.raises(StoreUnreachableError, match="set AWS_ACCESS_KEY_ID"):
        nobody.head("x")
    act_as(monkeypatch, s3_server.reader)  # type: ignore[attr-defined]
    reader = open_backend(s3_store.uri, s3_store.endpoint, s3_store.region)
    with pytest.raises(StoreUnreachableError, match="PutObject refused \\(AccessDenied\\)"):
        reader.put_if_absent("x", b"x", bytes_digest(b"x"))


def test_an_unreachable_endpoint_fails_in_bounded_time(s3_store: Store) -> None:
    closed = open_backend(s3_store.uri, "http://127.0.0.1:9", s3_store.region)
    started = time.monotonic()
    with pytest.raises(
        StoreUnreachableError, match=r"at http://127.0.0.1:9: no usable answer .* check that the server runs"
    ):
        closed.head("x")
    assert time.monotonic() - started < room.PATIENCE + 5


@pytest.mark.parametrize(
    "uri",
    [
        *("gs://bucket/x", "s3:/bucket/x", "S3://bucket/x", "file:/x", "s3://", "s3://Bucket/x", "s3://bucket/../x"),
        *("s3://ab/x", f"s3://{'a' * 64}/x"),
    ],
)
def test_an_address_that_is_not_a_store_is_refused(uri: str) -> None:
    with pytest.raises(StoreError, match="store address"):
        open_backend(uri)


def test_a_new_bucket_has_one_volume(s3_server: S3Server, s3_store: Store) -> None:
    """Each test makes a bucket on the same server, and a server without free volumes answers 500."""
    bucket = s3_store.uri.removeprefix("s3://").partition("/")[0]
    open_backend(s3_store.uri, s3_store.endpoint).put_if_absent("a", DATA, bytes_digest(DATA))
    volumes = {
        Path(file.path).name for file in psutil.Process(s3_server.pid).open_files() if file.path.endswith(".dat")
    }
    assert len([name for name in volumes if name.startswith(f"{bucket}_")]) == 1


@pytest.mark.slow
def test_the_server_of_the_tests_takes_sixty_buckets(s3_server: S3Server, s3_store: Store) -> None:
    for number in range(60):
        s3_server.create_bucket(f"many-{number}")
        backend = open_backend(f"s3://many-{number}/x", s3_store.endpoint)
        assert backend.put_if_absent("a", b"a", bytes_digest(b"a"))
