"""`hf:` references against a small hub on loopback, with the real client: pinned, checked before weights, whole."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.checkpoint import open_checkpoint
from tests.fixtures.models import Pair

REVISION = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys
from pathlib import Path
from shadowft_core.pair import fetch
from shadowft_core.params import Fetch
from huggingface_hub import constants
try:
    fetch(Fetch(base=sys.argv[1], instruct=sys.argv[2]), Path(sys.argv[3]))
finally:
    assert constants.HF_HUB_OFFLINE, "the offline switch must be down again"
"""


class Hub(ThreadingHTTPServer):
    """Serves folders as `owner/NAME` at one revision: the tree, and files with ranges. Remembers what was asked."""

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders = folders
        self.log: list[tuple[str, str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.log.append((self.command, path, self.headers.get("range")))
        for name, folder in self.server.folders.items():
            if path == f"/api/models/owner/{name}/tree/{REVISION}":
                files = sorted(file for file in folder.iterdir() if file.is_file())
                rows = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": self.oid(f.read_bytes())}
                    for f in files
                ]
                return self.answer(json.dumps(rows).encode(), "application/json")
            prefix = f"/owner/{name}/resolve/{REVISION}/"
            if path.startswith(prefix) and (folder / path.removeprefix(prefix)).is_file():
                return self.answer((folder / path.removeprefix(prefix)).read_bytes())
        self.answer(b"", status=404)

    def answer(self, data: bytes, kind: str = "application/octet-stream", status: int = 200) -> None:
        etag, whole = self.oid(data), len(data)
        if asked := self.headers.get("range"):
            first, last = asked.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last or whole) + 1], 206
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", REVISION)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    @staticmethod
    def oid(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tiny_llama_pair: Pair) -> Iterator[Hub]:
    server = Hub({"base": tiny_llama_pair.base, "instruct": tiny_llama_pair.instruct})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(hub: Hub, tmp_path: Path, base: str, instruct: str) -> subprocess.CompletedProcess[str]:
    places = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "cache")}
    return subprocess.run(
        [sys.executable, "-c", FETCH, base, instruct, str(tmp_path / "out")],
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def whole_weights(hub: Hub) -> list[str]:
    return [p for method, p, asked in hub.log if method == "GET" and p.endswith(".safetensors") and asked is None]


def test_a_pinned_pair_arrives_whole(hub: Hub, tiny_llama_pair: Pair, tmp_path: Path) -> None:
    references = [f"hf:owner/{role}@{REVISION}" for role in ("base", "instruct")]
    done = run(hub, tmp_path, *references)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "pair.json").read_bytes())
    for role, source in (("base", tiny_llama_pair.base), ("instruct", tiny_llama_pair.instruct)):
        assert open_checkpoint(tmp_path / "out" / role).digest() == open_checkpoint(source).digest()
        assert record[role]["ref"] == f"hf:owner/{role}@{REVISION}"
    assert len(whole_weights(hub)) == 2


def test_a_misfit_is_refused_before_weights_move(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, f"hf:owner/instruct@{REVISION}", f"hf:owner/base@{REVISION}")
    assert "shadowft_core.errors.Swapped" in done.stderr
    assert "are Base and Instruct swapped?" in done.stderr
    assert whole_weights(hub) == []
    assert not (tmp_path / "out").exists()


def test_a_hub_that_does_not_deliver_is_one_error(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, f"hf:owner/base@{REVISION}", f"hf:owner/nothing@{REVISION}")
    assert "InputError: hf:owner/nothing" in done.stderr
    assert "download it and pass a folder" in done.stderr
    assert not (tmp_path / "out").exists()
