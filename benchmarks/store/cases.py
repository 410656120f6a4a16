"""The timed cases: whole processes that send a delta to a real S3 server on loopback, and fetch it."""

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.graft.cases import SHADOWFT, Case
from shadowft_core.files import bytes_digest, canonical_json, file_digest
from shadowft_core.params import Store
from shadowft_core.store import open_store
from shadowft_core.store.probe import PASSED, PROBED
from shadowft_core.weights import build_header
from tests.servers.seaweedfs import S3Server

ROOT = Path(__file__).parent.parent.parent
WEIGHTS = "dense.safetensors"
MATRIX = 2 << 20  # elements: 8 MiB, as a compressed matrix of a model of 2 to 4 billion weights
LARGE = 24 << 20  # elements: 96 MiB, as one of 70 billion
BLOCK = 1 << 18  # elements: 1 MiB
AWS_CONFIG = """[default]
region = us-east-1
s3 =
  addressing_style = path
  payload_signing_enabled = false
  multipart_threshold = 64MB
  multipart_chunksize = 64MB
  max_concurrent_requests = 2
"""


def use(server: S3Server, scratch: Path) -> None:
    """Set credentials and settings for the clients started later."""
    config = scratch / "aws-config"
    config.write_text(AWS_CONFIG)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": server.admin.access_key,
        "AWS_SECRET_ACCESS_KEY": server.admin.secret_key,
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "SHADOWFT_STORE_URI", "SHADOWFT_STORE_ENDPOINT"):
        os.environ.pop(name, None)


def make_delta(
    folder: Path, size: int, seed: int, changed: int | None = None, sparse: bool = False, matrix: int = MATRIX
) -> Path:
    """A delta folder of about `size` bytes: plain matrices of `matrix` elements after as many norms of 16 KiB, seeded.

    `changed` is the number of a matrix that gets other values. With `sparse`, the file is a hole except for 8 bytes in
    every MiB, so that all chunks differ.
    """
    folder.mkdir(parents=True)
    matrix = min(matrix, max(1, size // 16))  # also a small delta has four matrices
    count = max(1, round(size / (4 * matrix)))
    layout = {
        f"layers.{n}.{part}": ("F32", (many,)) for part, many in (("n", 4096), ("w", matrix)) for n in range(count)
    }
    tensors = {}
    with (folder / WEIGHTS).open("wb") as file:
        file.write(build_header(layout))
        for number, (name, (_, (elements,))) in enumerate(layout.items()):
            draw = np.random.default_rng([seed, number, name == f"layers.{changed}.w"])
            sha, squares = hashlib.sha256(), 0.0
            for begin in range(0, elements, BLOCK):
                values = np.zeros(min(BLOCK, elements - begin), np.float32)
                marks = values[:2] if sparse else values
                draw.standard_normal(out=marks, dtype=np.float32)
                sha.update(values)
                squares += float(np.square(marks, dtype=np.float64).sum())
                file.write(marks)
                file.seek(values.nbytes - marks.nbytes, os.SEEK_CUR)
            norm = float(f"{squares**0.5:.9g}")
            digest = f"sha256:{sha.hexdigest()}"
            tensors[name] = {"form": "plain", "shape": [elements], "norm": norm, "digest": digest}
        file.truncate()
    sample = {f"sample.{name}": ("F32", (64,)) for name in layout}
    drawn = np.random.default_rng(seed).standard_normal(64 * len(sample), dtype=np.float32)
    (folder / "base.safetensors").write_bytes(build_header(sample) + drawn.tobytes())
    base = {"digest": bytes_digest(b"synthetic base"), "tokenizer_digest": None, "tied": False}
    base |= {"sample": file_digest(folder / "base.safetensors")}
    certificate = {"format": 2, "kind": "dense", "base": base, "tensors": tensors, "train": None, "waivers": []}
    certificate |= {"created_by": f"benchmark seed {seed}"}
    (folder / "delta.json").write_bytes(canonical_json(certificate))
    return folder


@dataclass(frozen=True)
class Bench:
    """A new bucket for every run, so that every chunk has to be sent, and the bucket can be deleted."""

    server: S3Server
    scratch: Path

    def bucket(self, name: str) -> Store:
        """An empty bucket that is marked as probed: the probe runs once per store."""
        self.server.create_bucket(name)
        return self.ready(Store(uri=f"s3://{name}/deltas", endpoint=self.server.endpoint, region="us-east-1"))

    def ready(self, store: Store) -> Store:
        open_store(store).put_if_absent(PROBED, PASSED, bytes_digest(PASSED))
        return store

    def drop(self, name: str) -> None:
        client: Any = self.server._client(self.server.admin)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", ()):
                client.delete_object(Bucket=name, Key=entry["Key"])
        client.delete_bucket(Bucket=name)

    def ours(self, name: str, store: Store, delta: Path, about: tuple[str, str]) -> list[Case]:
        """Publish and fetch."""
        params = self._params(f"ours{name}", store)
        up, down = f"publish{name}", f"fetch{name}"
        got = self.scratch / "out" / down / "got"
        publish = [SHADOWFT, "store", "publish", "--delta", str(delta), "--params", str(params)]
        fetch = [SHADOWFT, "store", "fetch", file_digest(delta / "delta.json"), "--out", str(got)]
        fetch += ["--params", str(params)]
        return [
            Case(up, about[0], (publish,), (delta,), self.scratch / "out" / up),
            Case(down, about[1], (fetch,), (), got.parent, got),
        ]

    def start(self, store: Store) -> Case:
        params = self._params("start", store)
        command = [SHADOWFT, "store", "ls", "--params", str(params)]
        return Case("start", "ours, an empty store listed", (command,), (), self.scratch / "out" / "start")

    def _params(self, name: str, store: Store) -> Path:
        """Write the settings to a params.yaml, as a user does."""
        raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params = self.scratch / f"{name}.yaml"
        params.write_text(yaml.safe_dump(raw | {"store": store.model_dump()}))
        return params

    def boto3(self, bucket: str, file: Path) -> list[Case]:
        got = self.scratch / "out" / "boto3-down" / "got"
        command = [sys.executable, "-m", "benchmarks.store.peers"]
        where = [bucket, "delta", self.server.endpoint]
        start = self.scratch / "out" / "boto3-start"
        return [
            Case(
                "boto3-start", "the same client, one HEAD of the bucket", ([*command, "start", "-", *where],), (), start
            ),
            Case(
                "boto3-up",
                "upload_file, 64 MiB x 2 threads, payload unsigned",
                ([*command, "up", str(file), *where],),
                (file.parent,),
                self.scratch / "out" / "boto3-up",
            ),
            Case(
                "boto3-down",
                "download_file, 64 MiB x 2 threads",
                ([*command, "down", str(got / WEIGHTS), *where],),
                (),
                got.parent,
                got,
            ),
        ]

    def aws(self, bucket: str, file: Path) -> list[Case]:
        """Empty when the command is not installed."""
        program = shutil.which("aws")
        if program is None:
            return []
        got = self.scratch / "out" / "aws-down" / "got"
        start = self.scratch / "out" / "aws-start"
        there, more = f"s3://{bucket}/delta", ["--only-show-errors", "--endpoint-url", self.server.endpoint]
        look = [program, "s3", "ls", f"s3://{bucket}", *more[1:]]
        return [
            Case("aws-start", "aws s3 ls of an empty bucket", (look,), (), start),
            Case(
                "aws-up",
                "aws s3 cp, the same settings in its configuration",
                ([program, "s3", "cp", str(file), there, *more],),
                (file.parent,),
                self.scratch / "out" / "aws-up",
            ),
            Case(
                "aws-down",
                "aws s3 cp, the same settings in its configuration",
                ([program, "s3", "cp", there, str(got / WEIGHTS), *more],),
                (),
                got.parent,
                got,
            ),
        ]
