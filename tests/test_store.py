"""Publish and fetch: complete or absent, written once, verified; on a real S3 server and in a folder."""

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from shadowft_core import store as room
from shadowft_core.cli import app
from shadowft_core.errors import DeltaError, StoreConflictError, StoreCorruptError, StoreError, StoreUnreachableError
from shadowft_core.files import bytes_digest, canonical_json, file_digest
from shadowft_core.params import Store, load_params
from shadowft_core.store import manifest as manifests
from shadowft_core.store.backends import PATIENCE, Backend, open_backend
from shadowft_core.store.probe import PASSED, PROBED
from shadowft_core.weights import write_safetensors
from tests.fixtures.s3 import act_as
from tests.servers.seaweedfs import S3Server

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["s3", "folder", pytest.param("real", marks=pytest.mark.real_store)])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with small chunks. The first bucket of a server is probed, the others are on the same server."""
    monkeypatch.setattr(room, "CHUNK", 40_000)
    found: Store = request.getfixturevalue(f"{request.param}_store")
    place = "folder" if found.endpoint is None and "://" not in found.uri else found.endpoint
    if place in _probed:
        backend_of(found).put_if_absent(PROBED, PASSED, bytes_digest(PASSED))
    else:
        room.require_writable(found)
        _probed.add(place)
    return found


_probed: set[str | None] = set()


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    return make_delta(tmp_path / "delta", seed=0)


def make_delta(folder: Path, seed: int) -> Path:
    """The files of a delta: a certificate and 160 kB of tensors."""
    from shadowft_core.weights import build_header

    folder.mkdir()
    values = np.random.default_rng(seed).standard_normal(40_000, dtype=np.float32)
    header = build_header({"w": ("F32", (40_000,))})
    digests = write_safetensors(folder / "delta.safetensors", header, lambda _: iter([values]))
    (folder / "delta.json").write_bytes(canonical_json({"format": 1, "tensors": {"w": {"digest": digests["w"]}}}))
    return folder


def backend_of(store: Store) -> Backend:
    return open_backend(store.uri, store.endpoint, store.region)


def keys(store: Store, prefix: str = "") -> list[str]:
    return list(backend_of(store).list(prefix))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace(store: Store, key: str, data: bytes | None) -> None:
    """Overwrite or remove an object, which no verb does."""
    backend = backend_of(store)
    backend.delete(key)
    if data is not None:
        backend.put_if_absent(key, data, bytes_digest(data))


def test_round_trip_and_publishing_again_sends_nothing(
    store: Store, delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = room.publish(delta, store)
    assert digest == file_digest(delta / "delta.json")
    assert room.holds(digest, store)
    first = keys(store)
    assert len(keys(store, "objects")) == 5 + 1 + 1  # five chunks of tensors, the certificate, the manifest
    assert keys(store, "deltas") == [f"deltas/{digest[7:]}"]
    total = sum(len(data) for data in contents(delta).values())
    assert f"{total} of {total} bytes sent" in capsys.readouterr().err
    assert room.publish(delta, store) == digest
    assert f"0 of {total} bytes sent" in capsys.readouterr().err
    assert keys(store) == first
    room.fetch_delta(digest, store, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(delta)


def test_a_second_delta_sends_only_its_own_chunks(
    store: Store, delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room.publish(delta, store)
    other = shutil.copytree(delta, tmp_path / "other")
    data = bytearray((other / "delta.safetensors").read_bytes())
    data[100_000] ^= 1
    (other / "delta.safetensors").write_bytes(data)
    (other / "delta.json").write_bytes(canonical_json({"format": 1, "tensors": {}}))
    capsys.readouterr()
    room.publish(other, store)
    assert f" {40_000 + (other / 'delta.json').stat().st_size} of " in capsys.readouterr().err


def test_eight_processes_publish_the_same_delta_at_once(store: Store, delta: Path, tmp_path: Path) -> None:
    room.require_writable(store)
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(room.publish(delta, store))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [file_digest(delta / "delta.json")] * 8
    room.fetch_delta(digests[0], store, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(delta)


def test_other_weights_under_the_same_certificate_are_a_conflict(store: Store, delta: Path, tmp_path: Path) -> None:
    digest = room.publish(delta, store)
    other = make_delta(tmp_path / "other", seed=1)
    shutil.copy(delta / "delta.json", other / "delta.json")
    with pytest.raises(
        StoreConflictError, match=r"another delta\.safetensors \(chunk 1 is sha256:.*nothing was replaced"
    ):
        room.publish(other, store)
    room.fetch_delta(digest, store, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(delta)


def test_every_damaged_or_missing_object_is_refused(store: Store, delta: Path, tmp_path: Path) -> None:
    digest = room.publish(delta, store)
    damage = [lambda data: data[:50] + bytes([data[50] ^ 4]) + data[51:], lambda data: data[:-1], lambda data: None]
    for number, key in enumerate(keys(store, "objects") + keys(store, "deltas")):
        found = backend_of(store).read(key, 1 << 20)
        assert found is not None
        good, kinds = found[0], [damage[number % 3]] if "://" in store.uri else damage
        for kind in kinds:
            replace(store, key, kind(good))
            with pytest.raises(StoreError, match=key if key.startswith("objects") else r"deltas/|no delta") as caught:
                room.fetch_delta(digest, store, tmp_path / "out")
            assert isinstance(caught.value, StoreCorruptError) or kind(good) is None
            assert [path for path in tmp_path.iterdir() if "out" in path.name] == []
            replace(store, key, good)
    room.fetch_delta(digest, store, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(delta)


def test_publishing_again_repairs_what_was_removed(store: Store, delta: Path, tmp_path: Path) -> None:
    digest = room.publish(delta, store)
    replace(store, keys(store, "objects")[0], None)
    with pytest.raises(StoreError, match="is missing"):
        room.fetch_delta(digest, store, tmp_path / "out")
    room.publish(delta, store)
    room.fetch_delta(digest, store, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(delta)


def _twice(manifest: dict[str, Any]) -> bytes:
    return canonical_json(manifest)[:-1] + b',"format":2}'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["files"].update({"../evil.safetensors": m["files"].pop("delta.safetensors")}),
            "is not delta.json",
        ),
        (lambda m: m["files"].update({"/evil.safetensors": m["files"].pop("delta.safetensors")}), "is not delta.json"),
        (lambda m: m["files"].update({"a\0.safetensors": m["files"].pop("delta.safetensors")}), "is not delta.json"),
        (
            lambda m: m["files"].update({"a" * 300 + ".safetensors": m["files"].pop("delta.safetensors")}),
            "is not delta",
        ),
        (lambda m: m["files"].update({"evil.py": m["files"].pop("delta.safetensors")}), "is not delta.json"),
        (lambda m: m["files"]["delta.safetensors"].update(bytes=10**15), "the chunks have 160"),
        (lambda m: m["files"]["delta.safetensors"]["chunks"][0].__setitem__(1, -5), "between 1 and"),
        (
            lambda m: m["files"].update(
                {"delta.safetensors": {"bytes": 2**28 + 1, "chunks": [["sha256:" + "1" * 64, 2**28 + 1]]}}
            ),
            "between 1 and 268435456 bytes",
        ),
        (lambda m: m["files"]["delta.safetensors"]["chunks"][0].__setitem__(0, "sha256:../../x"), "between 1 and"),
        (
            lambda m: m["files"]["delta.json"]["chunks"][0].__setitem__(0, "sha256:" + "0" * 64),
            "another delta",
        ),
        (lambda m: m["files"].update({"delta.json": m["files"]["delta.safetensors"]}), "belongs to another delta"),
        (lambda m: m.update(format=1), "format"),
        (lambda m: m.update(format=3), "format"),
        (lambda m: m.update(more=1), "more"),
        (_twice, "duplicate key 'format'"),
    ],
)
def test_a_crafted_manifest_is_refused_before_anything_is_written(
    folder_store: Store, delta: Path, tmp_path: Path, change: Any, message: str
) -> None:
    digest = room.publish(delta, folder_store)
    claim_path = Path(folder_store.uri, "deltas", digest[7:])
    claim = json.loads(claim_path.read_bytes())
    name = claim["manifest"]
    manifest = json.loads(Path(folder_store.uri, manifests.object_key(name)).read_bytes())
    changed = change(manifest)
    raw = changed if isinstance(changed, bytes) else canonical_json(manifest)
    backend_of(folder_store).put_if_absent(manifests.object_key(bytes_digest(raw)), raw, bytes_digest(raw))
    claim_path.write_bytes(canonical_json(claim | {"manifest": bytes_digest(raw), "manifest_bytes": len(raw)}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreCorruptError, match=message):
        room.fetch_delta(digest, folder_store, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_claim_of_another_delta_is_refused(store: Store, delta: Path, tmp_path: Path) -> None:
    digest = room.publish(delta, store)
    other = room.publish(make_delta(tmp_path / "other", seed=8), store)
    found = backend_of(store).read(f"deltas/{other[7:]}", 4096)
    assert found is not None
    replace(store, f"deltas/{digest[7:]}", found[0])
    with pytest.raises(StoreCorruptError, match=f"deltas/{digest[7:]} names delta {other}, expected {digest}"):
        room.fetch_delta(digest, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {row.digest: bool(row.problem) for row in room.ls(store)} == {digest: True, other: False}


def test_a_folder_that_is_not_a_delta_is_not_published(folder_store: Store, delta: Path, tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match=r"no delta\.json"):
        room.publish(tmp_path, folder_store)
    (delta / "weights.bin").write_bytes(b"x")
    with pytest.raises(DeltaError, match=r"weights\.bin: a delta folder may contain"):
        room.publish(delta, folder_store)
    (delta / "weights.bin").unlink()
    (delta / "delta.json").write_text('{ "format": 1}')
    with pytest.raises(DeltaError, match="not canonical JSON"):
        room.publish(delta, folder_store)
    assert keys(folder_store, "objects") == []


def test_the_command_line_overrides_the_environment_and_that_overrides_params(
    folder_store: Store, delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHADOWFT_STORE_URI", folder_store.uri + "-other")
    assert load_params(ROOT / "params.yaml").store.uri == folder_store.uri + "-other"
    words = ["store", "publish", "--delta", str(delta), "--params", str(ROOT / "params.yaml")]
    digest = CliRunner().invoke(app, words).stdout.strip().rpartition("\n")[2]
    other = Store(uri=folder_store.uri + "-other")
    assert room.holds(digest, other)
    assert not room.holds(digest, folder_store)
    assert CliRunner().invoke(app, [*words, "--store", folder_store.uri]).exit_code == 0
    assert room.holds(digest, folder_store)


@pytest.mark.parametrize("configured", ["params", "environment", "option"])
def test_another_address_is_on_the_configured_server(
    configured: str, s3_store: Store, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = str(s3_store.endpoint)
    elsewhere = {"uri": "s3://another/place", "endpoint": "http://127.0.0.1:9" if configured != "params" else endpoint}
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"store": elsewhere}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    words = ["store", "ls", "--json", "--store", s3_store.uri, "--params", str(tmp_path / "params.yaml")]
    if configured == "environment":
        monkeypatch.setenv("SHADOWFT_STORE_ENDPOINT", endpoint)
    if configured == "option":
        words += ["--endpoint", endpoint]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, json.loads(done.stdout)["deltas"]) == (0, []), done.output


def test_bad_credentials_and_endpoints_fail_at_the_start_in_bounded_time(
    s3_store: Store, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.require_writable(s3_store)
    act_as(monkeypatch, s3_server.reader)
    with pytest.raises(StoreUnreachableError, match="PutObject refused"):
        room.require_writable(s3_store)
    started = time.monotonic()
    with pytest.raises(StoreUnreachableError, match="check that the server runs"):
        room.require_writable(s3_store.model_copy(update={"endpoint": "http://127.0.0.1:9"}))
    assert time.monotonic() - started < PATIENCE + 5
