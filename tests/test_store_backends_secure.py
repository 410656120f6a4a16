"""The S3 backend with TLS, encryption at rest and a bucket owner."""

import http.server
import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shadowft_core.errors import ParamsError, StoreCorruptError, StoreUnreachableError
from shadowft_core.files import bytes_digest
from shadowft_core.params import Store, load_params
from shadowft_core.store.backends import open_backend
from tests.fixtures.s3 import act_as
from tests.servers.seaweedfs import S3Server, _free_ports, seaweedfs

DATA = bytes(range(256)) * 9000


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, str, Path]]:
    """A server with TLS, plain HTTP and an encryption key; its https endpoint and certificate."""
    folder = tmp_path_factory.mktemp("secure")
    certificate, key = self_signed(folder)
    (port,) = _free_ports(1)
    flags = [f"-s3.port.https={port}", f"-s3.cert.file={certificate}", f"-s3.key.file={key}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEED_S3_SSE_KEY", "a passphrase of this test")
        with seaweedfs(folder, flags) as server:
            server.create_bucket("secure")
            yield server, f"https://127.0.0.1:{port}", certificate


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server for tests")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_tls_with_a_trusted_certificate(secure: tuple[S3Server, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    server, endpoint, certificate = secure
    act_as(monkeypatch, server.user)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    backend = open_backend("s3://secure/tls", endpoint)
    assert backend.put_if_absent("a", DATA, bytes_digest(DATA))
    sink = io.BytesIO()
    backend.get("a", len(DATA), bytes_digest(DATA), sink)
    assert sink.getvalue() == DATA
    with pytest.raises(StoreCorruptError, match="the store computed another checksum"):
        backend.put_if_absent("b", DATA, bytes_digest(b""))
    tag = backend.swap("c", b"1", None)
    assert backend.read("c", 10) == (b"1", tag)


def test_a_certificate_nobody_trusts_is_refused_at_once(
    secure: tuple[S3Server, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, endpoint, _ = secure
    act_as(monkeypatch, server.user)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with pytest.raises(StoreUnreachableError, match=r"its certificate is not trusted .* set AWS_CA_BUNDLE"):
        open_backend("s3://secure/tls", endpoint).head("a")


def test_encryption_at_rest_is_requested_and_does_not_change_the_content(
    secure: tuple[S3Server, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _, _ = secure
    act_as(monkeypatch, server.user)
    backend = open_backend("s3://secure/sse", server.endpoint, sse="AES256")
    backend.put_if_absent("a", DATA, bytes_digest(DATA))
    backend.put_if_absent("a", DATA, bytes_digest(DATA))
    sink = io.BytesIO()
    backend.get("a", len(DATA), bytes_digest(DATA), sink)
    assert sink.getvalue() == DATA
    head = server._client(server.admin).head_object(Bucket="secure", Key="sse/a")
    assert head["ServerSideEncryption"] == "AES256"


class Recorder(http.server.BaseHTTPRequestHandler):
    """Records the headers of every request and answers 403, so that no key service is needed."""

    seen: list[tuple[str, dict[str, str]]]

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        self.seen.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_kms_and_the_bucket_owner_are_sent_with_every_request(
    secure: tuple[S3Server, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    act_as(monkeypatch, secure[0].user)
    handler = type("Handler", (Recorder,), {"seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            backend = open_backend(
                "s3://secure/x",
                f"http://127.0.0.1:{server.server_port}",
                sse="aws:kms",
                sse_kms_key="alias/deltas",
                bucket_owner="123456789012",
            )
            for request in (
                lambda: backend.swap("a", b"1", None),
                lambda: backend.head("a"),
                lambda: backend.read("a", 10),
                lambda: list(backend.list("")),
                lambda: backend.delete("a"),
            ):
                with pytest.raises(StoreUnreachableError, match=r"store\.bucket_owner"):
                    request()
        finally:
            server.shutdown()
            thread.join()
    assert [method for method, _ in handler.seen] == ["PUT", "HEAD", "GET", "GET", "DELETE"]
    assert {headers["x-amz-expected-bucket-owner"] for _, headers in handler.seen} == {"123456789012"}
    put = handler.seen[0][1]
    assert put["x-amz-server-side-encryption"] == "aws:kms"
    assert put["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/deltas"
    assert put["if-none-match"] == "*"
    assert "x-amz-checksum-sha256" in put


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({"sse_kms_key": "alias/deltas"}, "set sse to aws:kms"),
        ({"sse": "AES256", "sse_kms_key": "alias/deltas"}, "set sse to aws:kms"),
        ({"sse": "rot13"}, "AES256"),
        ({"bucket_owner": "12"}, "bucket_owner"),
        ({"chunk_bytes": 1}, "chunk_bytes"),
    ],
)
def test_contradictory_store_params_are_refused(tmp_path: Path, store: dict[str, object], message: str) -> None:
    import yaml

    raw = yaml.safe_load(Path(__file__).parent.parent.joinpath("params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"store": store}))
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "params.yaml")
    assert Store(sse="aws:kms", sse_kms_key="alias/deltas", bucket_owner="123456789012").sse_kms_key
