"""The probe refuses a server that ignores conditions or checksums."""

import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowft_core import store as room
from shadowft_core.errors import StoreError
from shadowft_core.params import Store
from shadowft_core.store.probe import run_probe
from tests.fixtures.deltas import noise, write_delta


class ServerThatIgnoresConditions(http.server.BaseHTTPRequestHandler):
    """Accepts every PUT and ignores conditions and checksums, as some gateways do."""

    objects: dict[str, bytes]

    def do_PUT(self) -> None:
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.objects[self.path] = data
        self._answer(200, b"", data)

    def do_GET(self) -> None:
        data = self.objects.get(self.path.partition("?")[0])
        if data is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", None)
        else:
            self._answer(200, data, data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, body: bytes, data: bytes | None) -> None:
        self.send_response(status)
        if data is not None:
            self.send_header("ETag", f'"{hash(data)}"')
            self.send_header("Last-Modified", self.date_time_string())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def careless_store(s3_store: Store) -> Iterator[Store]:
    handler = type("Handler", (ServerThatIgnoresConditions,), {"objects": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield s3_store.model_copy(update={"endpoint": f"http://127.0.0.1:{server.server_port}"})
        server.shutdown()
        thread.join()


def test_a_store_that_ignores_conditions_is_refused(careless_store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot hold deltas safely: 8 writers raced .* \d of them succeeded"):
        room.probe(careless_store)
    with pytest.raises(StoreError, match="cannot hold deltas safely"):
        room.publish(write_delta(tmp_path / "delta", {"w": noise(0, 100)}), careless_store)


def test_a_store_that_ignores_checksums_is_refused(careless_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[run_probe.__module__], "ROUNDS", 0)  # skip the race
    with pytest.raises(StoreError, match="accepted a wrong checksum"):
        room.probe(careless_store)


@pytest.mark.parametrize("kind", ["s3", "folder", pytest.param("real", marks=pytest.mark.real_store)])
def test_seaweedfs_and_a_folder_pass_the_probe(request: pytest.FixtureRequest, kind: str) -> None:
    store: Store = request.getfixturevalue(f"{kind}_store")
    room.probe(store)
    room.require_writable(store)
