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

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.pair import check_pair
from shadowft_core.pair.sigma import RANGE, RANGES
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair, save_tokenizer, write_model

REVISION = "0123456789abcdef0123456789abcdef01234567"
PAIR = """
import sys
from shadowft_core.cli import main
sys.argv = ["shadowft", "pair", "--base", sys.argv[1], "--instruct", sys.argv[2], "--json", *sys.argv[4:]]
main()
"""
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
    """Serves folders as `owner/NAME` at one revision: the tree, and files with ranges. Records the requests."""

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders = folders
        self.log: list[tuple[str, str, str | None]] = []
        self.storage: Storage | None = None
        """the host that serves the weights, as on today's hub; by default this one"""
        self.ranges = True


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
                data = (folder / path.removeprefix(prefix)).read_bytes()
                if self.server.storage and path.endswith(".safetensors"):
                    return self.send_on(f"{self.server.storage.address}/{name}/{path.removeprefix(prefix)}", data)
                return self.answer(data)
        self.answer(b"", status=404)

    def send_on(self, address: str, data: bytes) -> None:
        self.send_response(302)
        headers = {"Location": address, "Content-Length": "0", "X-Repo-Commit": REVISION}
        for key, value in {**headers, "X-Linked-Size": str(len(data)), "X-Linked-ETag": self.oid(data)}.items():
            self.send_header(key, value)
        self.end_headers()

    def answer(self, data: bytes, kind: str = "application/octet-stream", status: int = 200) -> None:
        etag, whole = self.oid(data), len(data)
        if self.server.ranges and (asked := self.headers.get("range")):
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


class Storage(ThreadingHTTPServer):
    """Another host that serves weights, in ranges, to anyone who knows the URL. Records the headers of requests."""

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), StorageHandler)
        self.folders = folders
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[dict[str, str]] = []


class StorageHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Storage

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append({key.lower(): value for key, value in self.headers.items()})
        _, name, file = self.path.split("/")
        data = (self.server.folders[name] / file).read_bytes()
        status = 200
        if asked := self.headers.get("range"):
            first, last = asked.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(tiny_llama_pair: Pair) -> Iterator[Hub]:
    server = Hub({"base": tiny_llama_pair.base, "instruct": tiny_llama_pair.instruct})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def storage(hub: Hub) -> Iterator[Storage]:
    server = Storage(hub.folders)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.storage = server
    yield server
    server.shutdown()
    server.server_close()


def run(
    hub: Hub, tmp_path: Path, base: str, instruct: str, code: str = FETCH, *options: str
) -> subprocess.CompletedProcess[str]:
    places = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_secret",
    }
    return subprocess.run(
        [sys.executable, "-c", code, base, instruct, str(tmp_path / "out"), *options],
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def whole_weights(hub: Hub) -> list[str]:
    return [p for method, p, asked in hub.log if method == "GET" and p.endswith(".safetensors") and asked is None]


def test_a_pinned_pair_is_downloaded_completely(hub: Hub, tiny_llama_pair: Pair, tmp_path: Path) -> None:
    references = [f"hf:owner/{role}@{REVISION}" for role in ("base", "instruct")]
    done = run(hub, tmp_path, *references)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "pair.json").read_bytes())
    for role, source in (("base", tiny_llama_pair.base), ("instruct", tiny_llama_pair.instruct)):
        assert open_checkpoint(tmp_path / "out" / role).digest() == open_checkpoint(source).digest()
        assert record[role]["ref"] == f"hf:owner/{role}@{REVISION}"
    assert len(whole_weights(hub)) == 2


def test_a_pair_that_does_not_fit_is_refused_before_weights_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, f"hf:owner/instruct@{REVISION}", f"hf:owner/base@{REVISION}")
    assert "shadowft_core.errors.SwappedError" in done.stderr
    assert "are Base and Instruct swapped?" in done.stderr
    assert whole_weights(hub) == []
    assert not (tmp_path / "out").exists()


def test_a_failing_hub_is_one_error(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, f"hf:owner/base@{REVISION}", f"hf:owner/nothing@{REVISION}")
    assert "InputError: hf:owner/nothing" in done.stderr
    assert "download the model and pass its folder" in done.stderr
    assert not (tmp_path / "out").exists()


REFERENCES = [f"hf:owner/{role}@{REVISION}" for role in ("base", "instruct")]


def weights_in_cache(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(".safetensors")]


def large_pair(hub: Hub, tmp_path: Path) -> Pair:
    """A pair that a sample does not read whole, in two shards, in place of the tiny one."""
    noise = np.random.default_rng(0)
    base = {name: 0.02 * noise.standard_normal((900, 500)) for name in ("model.layers.0.a.weight", "lm_head.weight")}
    pair = Pair(tmp_path / "models" / "base", tmp_path / "models" / "instruct")
    for folder, tensors in (
        (pair.base, base),
        (pair.instruct, {name: array + 0.0004 * noise.standard_normal(array.shape) for name, array in base.items()}),
    ):
        write_model(folder, {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}, shards=2)
        save_tokenizer(folder, template=folder == pair.instruct)
    hub.folders |= {"base": pair.base, "instruct": pair.instruct}
    return pair


def test_a_sampled_check_reads_ranges_and_downloads_no_weights(hub: Hub, tmp_path: Path) -> None:
    pair = large_pair(hub, tmp_path)
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = check_pair(pair.base, pair.instruct)["sigma"]
    assert found["verdict"] == "ok"
    assert found["sampled"] is True
    assert found["sigma"]["weights"] == {"read": 2 * RANGES * RANGE, "of": 900_000}
    assert found["sigma"]["overall"] == pytest.approx(expected["overall"], rel=0.02)
    assert found["base"] == {"ref": REFERENCES[0], "label": ""}
    assert whole_weights(hub) == []
    assert weights_in_cache(tmp_path) == []
    read = [asked for method, path, asked in hub.log if method == "GET" and path.endswith(".safetensors") and asked]
    spans = [tuple(map(int, asked.removeprefix("bytes=").split("-"))) for asked in read]
    assert sum(last - first + 1 for first, last in spans) == 2 * (2 * RANGES * RANGE * 2) + 4 * 100_000
    assert not (tmp_path / "out").exists()


def test_weights_come_from_the_storage_the_hub_points_to_without_its_token(
    hub: Hub, storage: Storage, tmp_path: Path
) -> None:
    large_pair(hub, tmp_path)
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 0, done.stderr
    assert len(storage.seen) == 2 * (2 * RANGES + 2)
    assert all("range" in headers and "authorization" not in headers for headers in storage.seen)
    heads = [path for method, path, _ in hub.log if method == "HEAD" and path.endswith(".safetensors")]
    assert len(heads) == 4, "the hub is asked once a file"


def test_a_full_check_downloads_and_adds_digests(hub: Hub, tmp_path: Path) -> None:
    pair = large_pair(hub, tmp_path)
    done = run(hub, tmp_path, *REFERENCES, PAIR, "--full")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sampled"] is False
    assert found["sigma"] == check_pair(pair.base, pair.instruct)["sigma"]
    assert found["base"]["digest"] == open_checkpoint(pair.base).digest()


def test_a_folder_and_a_hub_are_paired(hub: Hub, tmp_path: Path) -> None:
    pair = large_pair(hub, tmp_path)
    done = run(hub, tmp_path, str(pair.base), REFERENCES[1], PAIR)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sigma"]["weights"]["read"] == 2 * RANGES * RANGE
    assert whole_weights(hub) == []


def test_a_refusal_reads_no_weights_and_is_json_too(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, *REFERENCES[::-1], PAIR)
    assert done.returncode == 4, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["class"]) == ("refuse", "SwappedError")
    asked = [asked for _, path, asked in hub.log if path.endswith(".safetensors") and asked]
    assert len(asked) == 2, "the headers only"


def test_a_server_without_ranges_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 3
    assert "model.safetensors is not served in ranges; download the model and pass its folder" in done.stderr


def test_a_damaged_model_on_a_hub_is_refused_by_its_class(hub: Hub, tmp_path: Path) -> None:
    pair = large_pair(hub, tmp_path)
    shard = next(pair.instruct.glob("*.safetensors"))
    whole = shard.read_bytes()
    index = pair.instruct / "model.safetensors.index.json"
    right = index.read_text()
    shard.write_bytes(whole[:-100])
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 3
    assert json.loads(done.stdout)["class"] == "CheckpointError"
    assert f"{REFERENCES[1]}: " in done.stderr
    assert "its header describes" in done.stderr
    shard.write_bytes(whole)
    index.write_text(right.replace(shard.name, f"../{shard.name}"))
    done = run(hub, tmp_path / "again", *REFERENCES, PAIR)
    assert done.returncode == 3
    assert "expected a plain *.safetensors file name" in done.stderr
    index.write_text(right)
    tensors = open_checkpoint(pair.instruct)
    data = bytearray(shard.read_bytes())
    at = next(iter(tensors.info(name).offset for name in tensors.names if tensors.info(name).file == shard))
    middle = at + (900 * 500 // 8) * 2
    data[middle : middle + 2] = b"\xc0\x7f"  # a bfloat16 NaN, in the middle of the first range
    shard.write_bytes(bytes(data))
    done = run(hub, tmp_path / "third", *REFERENCES, PAIR)
    assert done.returncode == 5, done.stderr
    assert json.loads(done.stdout)["class"] == "NotFiniteError"
