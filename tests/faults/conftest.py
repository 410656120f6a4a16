"""Shared by the fault tests: a proxied real S3 server, fresh prefixes in it, a real delta, figures at the end."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core import store as room
from shadowft_core.delta import extract
from shadowft_core.files import bytes_digest, file_digest
from shadowft_core.params import Store
from shadowft_core.store.backends import open_backend
from shadowft_core.store.probe import PASSED, PROBED
from tests.faults import victim
from tests.faults.proxy import Proxy, proxied
from tests.fixtures.models import Pair, shifted, write_model
from tests.fixtures.s3 import act_as
from tests.servers.seaweedfs import S3Server

_numbers = itertools.count()
BUCKET = "faults"


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """`figures("45 kills, 45 re-runs")`: printed after the last test."""
    return lambda text: record_property("figures", text)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = [
        f"{report.nodeid.partition('::')[2]}: {text}"
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, text in getattr(report, "user_properties", ())
        if name == "figures" and getattr(report, "when", "") == "call"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@dataclass(frozen=True)
class Place:
    """A prefix of the bucket, as a store directly and through the proxy, and with an administrator's client."""

    direct: Store
    through: Store
    prefix: str
    client: Any

    def keys(self, below: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self.prefix}/{below}")
        return [entry["Key"].removeprefix(self.prefix + "/") for page in pages for entry in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")["Body"].read())

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}", Body=data)

    def objects_of(self, digest: str) -> dict[str, list[str]]:
        """Keys of a published delta by class: claim, manifest, certificate (delta.json), chunk."""
        claim = f"deltas/{digest.removeprefix('sha256:')}"
        manifest = object_key(json.loads(self.read(claim))["manifest"])
        files = json.loads(self.read(manifest))["files"]
        chunks = {name: [object_key(chunk[0]) for chunk in file["chunks"]] for name, file in files.items()}
        certificate = chunks.pop("delta.json")
        return {
            "claim": [claim],
            "manifest": [manifest],
            "certificate": certificate,
            "chunk": [key for keys in chunks.values() for key in keys],
        }

    def visible(self) -> list[str]:
        """Digests of the deltas that a reader can see. Fails unless every object they need is right, byte for byte."""
        found = [f"sha256:{key.removeprefix('deltas/')}" for key in self.keys("deltas/")]
        for digest in found:
            for keys in list(self.objects_of(digest).values())[1:]:
                for key in keys:
                    assert hashlib.sha256(self.read(key)).hexdigest() == key.rpartition("/")[2], f"{key} is wrong"
        return found


def object_key(digest: str) -> str:
    value = digest.removeprefix("sha256:")
    return f"objects/sha256/{value[:2]}/{value}"


@pytest.fixture(scope="session")
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    s3_server.create_bucket(BUCKET)
    with proxied(s3_server.endpoint) as running:
        yield running


@pytest.fixture
def fresh_place(s3_server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Place]:
    """`fresh_place()`: a new prefix of the bucket, marked as probed."""
    act_as(monkeypatch, s3_server.user)
    monkeypatch.setattr(room, "CHUNK", victim.CHUNK)
    client = s3_server._client(s3_server.admin)

    def make() -> Place:
        prefix = f"place-{os.getpid()}-{next(_numbers)}"
        direct = Store(uri=f"s3://{BUCKET}/{prefix}", endpoint=s3_server.endpoint, region="us-east-1")
        backend = open_backend(direct.uri, direct.endpoint, direct.region)
        backend.put_if_absent(PROBED, PASSED, bytes_digest(PASSED))
        proxy.start_over()
        return Place(direct, direct.model_copy(update={"endpoint": proxy.endpoint}), prefix, client)

    return make


@dataclass(frozen=True)
class Published:
    """A real delta folder, read-only, and the files that a fetch of it must return."""

    folder: Path
    digest: str
    files: dict[str, bytes]


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A Base in two shards and a similar Instruct, with other files too; 80 kB of tensors each."""
    folder, noise = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    shapes = {f"model.layers.{n}.{part}.weight": (64, 64) for n in range(2) for part in ("q", "k")} | {
        "lm_head.weight": (40, 64),
        "model.embed_tokens.weight": (40, 64),
        "model.norm.weight": (64,),
    }
    tensors = {name: noise.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
    pair = Pair(write_model(folder / "base", tensors, shards=2), folder / "instruct")
    (pair.base / "generation_config.json").write_text('{"max_new_tokens": 9}')
    shifted(pair.base, pair.instruct, 0.001, seed=1)
    (pair.instruct / "chat_template.jinja").write_text("{{ messages }}")
    return pair


@pytest.fixture(scope="session")
def delta(tmp_path_factory: pytest.TempPathFactory, tiny_pair: Pair) -> Published:
    """A dense delta of a tiny model, of more than four chunks."""
    return make_delta(tmp_path_factory.mktemp("delta"), tiny_pair, seed=5)


def make_delta(folder: Path, pair: Pair, seed: int) -> Published:
    shifted(pair.base, folder / "tuned", 0.01, seed=seed)
    extract(pair.base, folder / "tuned", folder / "delta")
    files = contents(folder / "delta")
    assert max(map(len, files.values())) > 4 * victim.CHUNK
    return Published(folder / "delta", file_digest(folder / "delta" / "delta.json"), files)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
