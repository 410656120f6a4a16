"""An HTTP proxy on loopback, between a real client and a real server, that injects network and server faults.

Every request is logged. A fault acts on the N-th request that matches it; `then` is called during the fault, for
instance to kill the client or the server.
"""

import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, cast
from urllib.parse import urlsplit

Kind = Literal[
    "unavailable",  # 503 SlowDown; the server sees nothing
    "reset",  # the connection breaks; the server sees nothing
    "stall",  # no answer until the proxy ends; the server sees nothing
    "truncate_up",  # half of the body reaches the server, then the connection breaks
    "flip_up",  # the server gets one bit changed
    "lost_reply",  # the server executes the request, the reply is lost
    "truncate_down",  # the client gets the headers and half of the body, then the connection breaks
    "flip_down",  # the client gets one bit changed
    "pass",  # nothing goes wrong; for `then`, before the request is forwarded
]
UP, DOWN = ("truncate_up", "flip_up"), ("truncate_down", "flip_down")
HOP = {"connection", "expect", "keep-alive", "transfer-encoding", "content-length"}

Rewrite = Callable[[str, str, dict[str, str], bytes], dict[str, str]]


@dataclass
class Fault:
    """A fault of requests number `first` to `first + times - 1` (from 1) among those that match method and path."""

    kind: Kind
    method: str = ""
    path: str = ""
    first: int = 1
    times: int = 1
    bit: int = 0  # modulo the length of the body
    then: Callable[[], None] = lambda: None
    hits: int = 0
    _seen: int = 0

    def strikes(self, method: str, path: str, body: bytes) -> bool:
        """Count the request if it matches; return whether the fault acts on it. A fault of an upload needs a body."""
        if not (re.search(self.method, method) and re.search(self.path, path)) or (self.kind in UP and not body):
            return False
        self._seen += 1
        struck = self.first <= self._seen < self.first + self.times
        self.hits += struck
        return struck


@dataclass
class Exchange:
    """One logged request; `status` is the server's answer, None when the server got no request or did not answer."""

    method: str
    path: str
    sent: int
    status: int | None = None
    fault: Kind | None = None


@dataclass
class Proxy:
    """A running proxy; set `upstream` when the server restarts at another address."""

    endpoint: str
    upstream: str
    faults: list[Fault] = field(default_factory=list)
    log: list[Exchange] = field(default_factory=list)
    rewrite: Rewrite | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)

    def start_over(self, *faults: Fault) -> None:
        """Clear the log and set these faults."""
        with self._lock:
            self.faults, self.log = list(faults), []

    def exchanges(self, method: str = "", path: str = "") -> list[Exchange]:
        with self._lock:
            return [x for x in self.log if re.search(method, x.method) and re.search(path, x.path)]

    def _enter(self, exchange: Exchange, body: bytes) -> Fault | None:
        with self._lock:
            self.log.append(exchange)
            struck = [fault for fault in self.faults if fault.strikes(exchange.method, exchange.path, body)]
        return struck[0] if struck else None


@contextmanager
def proxied(upstream: str, rewrite: Rewrite | None = None) -> Iterator[Proxy]:
    """Run a proxy for `upstream` (http://host:port). `rewrite(method, path, headers, body)` returns new headers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.block_on_close = False  # a stalled request is not waited for
        proxy = Proxy(f"http://127.0.0.1:{server.server_port}", upstream, rewrite=rewrite)
        server.proxy = proxy  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy._ended.set()
            server.shutdown()
            thread.join()


class _Broken(Exception):
    """Raised to break the connection to the client."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        proxy = cast(Proxy, self.server.proxy)  # type: ignore[attr-defined]
        try:
            self._exchange(proxy)
        except (_Broken, OSError, http.client.HTTPException):  # injected, or the server died: break the connection
            self._break()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_GET

    def _exchange(self, proxy: Proxy) -> None:
        assert "Transfer-Encoding" not in self.headers, "a chunked request body is not needed by any client here"
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) != length:  # the client died while sending
            raise _Broken
        exchange = Exchange(self.command, self.path, len(body))
        fault = proxy._enter(exchange, body)
        kind = exchange.fault = fault.kind if fault else None
        if fault and kind not in ("truncate_up", "truncate_down", "lost_reply"):
            fault.then()
        if kind == "stall":
            proxy._ended.wait()
        if kind in ("reset", "stall"):
            raise _Broken
        if kind == "unavailable":
            self._reply(503, "Slow Down", {}, b"<Error><Code>SlowDown</Code><Message>reduce</Message></Error>")
            return
        if fault and kind == "flip_up":
            body = _flipped(body, fault.bit)
        if fault and kind == "truncate_up":
            self._forward(proxy, body, len(body) // 2).close()
            fault.then()
            raise _Broken
        connection = self._forward(proxy, body, len(body))
        try:
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        exchange.status = answer.status
        if fault and kind == "lost_reply":
            fault.then()
            raise _Broken
        if fault and kind == "flip_down" and data:
            data = _flipped(data, fault.bit)
        self._reply(answer.status, answer.reason, dict(answer.getheaders()), data, half=kind == "truncate_down")
        if fault and kind == "truncate_down":
            fault.then()
            raise _Broken

    def _forward(self, proxy: Proxy, body: bytes, sent: int) -> http.client.HTTPConnection:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        if proxy.rewrite:
            headers = proxy.rewrite(self.command, self.path, headers, body)
        target = urlsplit(proxy.upstream)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=120)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:sent] or None)
        return connection

    def _reply(self, status: int, reason: str, headers: Mapping[str, str], data: bytes, half: bool = False) -> None:
        self.send_response_only(status, reason)
        for name, value in headers.items():
            if name.lower() not in HOP or (self.command == "HEAD" and name.lower() == "content-length"):
                self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)

    def _break(self) -> None:
        """Close so that the other side gets a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


def _flipped(data: bytes, bit: int) -> bytes:
    where = bit % (8 * len(data))
    changed = bytearray(data)
    changed[where // 8] ^= 1 << where % 8
    return bytes(changed)
