"""`shadowft doctor` names what is wrong with ports and servers, found on real sockets."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from shadowft_core.doctor import FAIL, OK, WARN, Finding, services
from tests.fixtures.doctor import NONE, closed_port, here

__all__ = ["here"]  # a fixture that every test uses


@pytest.fixture
def health() -> Iterator[Callable[..., int]]:
    """The port of a server that answers every request with these bytes, of a `bare` one without the words of HTTP."""
    servers = []

    def serve(said: bytes, bare: bool = False) -> int:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not bare:
                    self.send_response(404 if "//" in self.path else 200)
                    self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return int(servers[-1].server_port)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_port_is_free_taken_by_another_program_or_served(
    monkeypatch: pytest.MonkeyPatch, health: Callable[..., int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.settimeout(0)
        port, free, served = taken.getsockname()[1], closed_port(), health(b"OK")
        other, ssh = health(b"<html>a page</html>"), health(b"SSH-2.0-OpenSSH_9\r\n", bare=True)
        places = {"prefect": port, "mlflow": served, "free": free, "other": other, "ssh": ssh}
        monkeypatch.setattr(services, "SERVERS", {name: (at, "/health", "--port N") for name, at in places.items()})
        monkeypatch.setattr(services, "ANSWER_SECONDS", 0.5)
        found = {one.check: one for one in services.ports(NONE)}
    assert {found[f"port {at}"].state for at in (port, other, ssh)} == {WARN}
    assert found[f"port {port}"].said == "taken by another program, so a prefect server cannot listen there"
    assert found[f"port {port}"].remedy == "end that program, or choose a port: --port N"
    assert found[f"port {served}"] == Finding(f"port {served}", OK, "a mlflow server answers")
    assert found[f"port {free}"] == Finding(f"port {free}", OK, "free for a free server")


def test_the_server_that_prefect_api_url_names_must_answer(
    monkeypatch: pytest.MonkeyPatch, health: Callable[..., int]
) -> None:
    port = health(b"true")
    monkeypatch.setattr(services, "SERVERS", {"prefect": (port, "/api/health", "--port N")})
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api/")
    assert [one.state for one in services.ports(NONE)] == [OK]
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:hunter2@127.0.0.1:{closed_port()}/api")
    found = services.ports(NONE)[0]
    assert (found.check, found.state) == ("prefect", FAIL)
    assert "hunter2" not in found.said
