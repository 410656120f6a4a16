"""The S3 server dies during a publish, credentials are bad, a gateway drops headers: detected, and nothing is lost."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from shadowft_core import store as room
from shadowft_core.errors import StoreError, StoreUnreachableError
from shadowft_core.params import Store
from tests.faults import victim
from tests.faults.conftest import BUCKET, Place, Published, contents
from tests.faults.proxy import Fault, Rewrite, proxied
from tests.fixtures.s3 import act_as
from tests.servers.seaweedfs import S3Server, seaweedfs


@pytest.mark.faults
def test_a_publish_can_be_repeated_after_the_server_was_killed_and_restarted(
    tmp_path: Path, delta: Published, monkeypatch: pytest.MonkeyPatch, figures: Callable[[str], None]
) -> None:
    monkeypatch.setattr(room, "CHUNK", victim.CHUNK)
    through = same_run = 0
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        server = stack.enter_context(seaweedfs(tmp_path / "server"))
        server.create_bucket(BUCKET)
        act_as(monkeypatch, server.user)
        proxy = stack.enter_context(proxied(server.endpoint))
        moments = [("/objects/", 2), ("/objects/", 5), ("/objects/", 8), ("/deltas/", 1)]
        for number, (path, put) in enumerate(moments):
            store = Store(uri=f"s3://{BUCKET}/{number}", endpoint=proxy.endpoint, region="us-east-1")
            room.require_writable(store)
            dead = threading.Event()

            def kill(pid: int = server.pid, dead: threading.Event = dead) -> None:
                os.kill(pid, signal.SIGKILL)
                dead.set()

            proxy.start_over(Fault("pass", method="PUT", path=path, first=put, then=kill))
            run = pool.submit(room.publish, delta.folder, store)
            assert dead.wait(60)
            server = stack.enter_context(seaweedfs(tmp_path / "server"))
            proxy.upstream = server.endpoint
            try:
                assert run.result(120) == delta.digest
                same_run += 1
            except StoreUnreachableError:  # the restart took longer than a publish waits
                assert room.publish(delta.folder, store) == delta.digest
            place = Place(store, store, str(number), server._client(server.admin))
            assert place.visible() == [delta.digest]
            room.fetch_delta(delta.digest, store, tmp_path / "out")
            assert contents(tmp_path / "out") == delta.files
            stored = Counter(x.path for x in proxy.exchanges("PUT", "/(objects|deltas)/") if x.status == 200)
            assert set(stored.values()) == {1}, "an acknowledged object was sent again"
            through += 1
    figures(
        f"{through} kills during a publish, {same_run} survived by the same run, the rest by the next; 0 sent twice"
    )


def test_bad_credentials_are_refused_before_any_work(
    s3_store: Store, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for identity, secret, message in [
        (s3_server.user, "wrong", r"refused \((403|SignatureDoesNotMatch)\); check AWS_ACCESS_KEY_ID"),
        (s3_server.reader, s3_server.reader.secret_key, r"PutObject refused \(AccessDenied\)"),
    ]:
        act_as(monkeypatch, identity)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        with pytest.raises(StoreUnreachableError, match=message):
            room.require_writable(s3_store)


def test_expired_credentials_are_refused_before_any_work(
    s3_store: Store, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An expired role or single sign-on session: the credential command returns expired credentials."""
    (tmp_path / "credentials.json").write_text(
        f'{{"Version": 1, "AccessKeyId": "{s3_server.user.access_key}", "SecretAccessKey": '
        f'"{s3_server.user.secret_key}", "SessionToken": "t", "Expiration": "2020-01-01T00:00:00Z"}}'
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {tmp_path / 'credentials.json'}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreUnreachableError, match="expired") as caught:
        room.require_writable(s3_store)
    assert "\n" not in str(caught.value)


def gateway_that_drops(server: S3Server, *dropped: str) -> Rewrite:
    """Drop headers with these prefixes, as some gateways do, and sign the request again."""

    def rewrite(method: str, path: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        kept = {
            name: value
            for name, value in headers.items()
            if not name.lower().startswith((*dropped, "authorization", "x-amz-date", "x-amz-content-sha256", "host"))
        }
        request = AWSRequest(method, server.endpoint + path, headers=kept, data=body)
        S3SigV4Auth(Credentials(server.user.access_key, server.user.secret_key), "s3", "us-east-1").add_auth(request)
        return dict(request.headers.items()) | {"Host": server.endpoint.removeprefix("http://")}

    return rewrite


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (("if-",), r"of them succeeded \(If-None-Match\)"),
        pytest.param(("x-amz-checksum", "x-amz-sdk-checksum"), "a wrong checksum", marks=pytest.mark.faults),
        pytest.param(("if-match",), r"\(If-Match\)", marks=pytest.mark.faults),
        pytest.param((), None, marks=pytest.mark.faults),
    ],
)
def test_a_gateway_that_drops_conditions_or_checksums_is_refused(
    s3_store: Store,
    s3_server: S3Server,
    delta: Published,
    dropped: tuple[str, ...],
    message: str | None,
    figures: Callable[[str], None],
) -> None:
    """A gateway in front of SeaweedFS drops these headers; the last case drops none, so the gateway itself works."""
    with proxied(s3_server.endpoint, gateway_that_drops(s3_server, *dropped)) as gateway:
        store = s3_store.model_copy(update={"endpoint": gateway.endpoint})
        if message is None:
            assert room.publish(delta.folder, store) == delta.digest
        else:
            with pytest.raises(StoreError, match=message):
                room.probe(store)
            with pytest.raises(StoreError, match=message):
                room.publish(delta.folder, store)
            assert gateway.exchanges("PUT", "/deltas/(objects|deltas)/") == []
    figures(f"headers dropped {dropped}: {'refused' if message else 'published'}")
