"""A small Hugging Face hub on loopback, and a storage host that it can redirect to."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves folders as models and as data sets `owner/NAME` at one revision: the tree, and files with ranges.

    Records the requests. Parquet files are listed as large ones, with a SHA-256.
    """

    def __init__(self, folders: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders = folders
        self.log: list[tuple[str, str, str | None]] = []
        self.storage: Storage | None = None
        """a separate host for the weights, as on the real hub; None: this server sends them"""
        self.ranges = True
        self.more = 0
        """bytes that are sent after the end of a range"""


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
            if path in (f"/api/models/owner/{name}/tree/{REVISION}", f"/api/datasets/owner/{name}/tree/{REVISION}"):
                return self.answer(json.dumps(self.tree(folder)).encode(), "application/json")
            if path in (
                f"/api/models/owner/{name}",
                f"/api/datasets/owner/{name}",
                f"/api/datasets/owner/{name}/revision/main",
            ):
                about = {"id": f"owner/{name}", "sha": REVISION, "siblings": []}
                return self.answer(json.dumps(about).encode(), "application/json")
            for prefix in (f"/owner/{name}/resolve/{REVISION}/", f"/datasets/owner/{name}/resolve/{REVISION}/"):
                if path.startswith(prefix) and (folder / path.removeprefix(prefix)).is_file():
                    data = (folder / path.removeprefix(prefix)).read_bytes()
                    if self.server.storage and path.endswith(".safetensors"):
                        return self.send_on(f"{self.server.storage.address}/{name}/{path.removeprefix(prefix)}", data)
                    return self.answer(data)
        self.answer(b"", status=404)

    def tree(self, folder: Path) -> list[dict[str, Any]]:
        """All files; a model has none in subfolders."""
        rows = []
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            data = file.read_bytes()
            row = {"type": "file", "path": file.relative_to(folder).as_posix(), "size": len(data)}
            row["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if file.suffix == ".parquet":
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            rows.append(row)
        return rows

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
            data, status = data[int(first) : int(last or whole) + 1 + self.server.more], 206
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
    """Another host that serves weights in ranges to anyone who knows the URL. Records the headers of requests."""

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
