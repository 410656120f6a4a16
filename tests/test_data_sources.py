"""`data add hf:...` and `s3://...`: a small hub on loopback with the real client, and a real S3 server."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shadowft_core.errors import InputError
from shadowft_core.files import file_digest
from shadowft_core.params import Store
from shadowft_core.remote.data import download_data, name_of
from tests.fixtures.checkouts import run
from tests.servers.hub import REVISION, Hub
from tests.servers.seaweedfs import S3Server

ROW = '{"question": "q%d", "answer": "a%d"}\n'
SET = {
    "README.md": "---\nlicense: cc-by-4.0\n---\n# Ours\n",
    ".gitattributes": "hidden",
    "data/train-00000-of-00001.jsonl": "".join(ROW % (i, i) for i in range(20)),
    "data/test-00000-of-00001.jsonl": "".join(ROW % (i, i) for i in range(20, 30)),
    "train_extra.parquet": "not really parquet",
    "trainer.py": "print('never run')",
}
PINNED = f"hf:owner/ours@{REVISION}"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a new DVC repository."""
    place = tmp_path / "workspace"
    place.mkdir()
    run(place, "git", "init", "-q")
    run(place, "dvc", "init", "-q")
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name, text in SET.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(text)
    server = Hub({"ours": tmp_path / "set"})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield server
    server.shutdown()
    server.server_close()


def add(place: Path, *words: str, code: int = 0) -> str:
    """Run `data add` as a process, because the hub's client reads its settings on import."""
    return run(place, sys.executable, "-m", "shadowft_core.cli", "data", "add", *words, code=code)


def files_in(folder: Path) -> dict[str, str]:
    return {f.relative_to(folder).as_posix(): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("", {name for name in SET if name != ".gitattributes"}),
        (":train", {"README.md", "data/train-00000-of-00001.jsonl", "train_extra.parquet"}),
        (":data/*", {"README.md", "data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"}),
    ],
)
def test_a_set_or_a_part_is_downloaded_unchanged(hub: Hub, workspace: Path, part: str, names: set[str]) -> None:
    done = add(workspace, PINNED + part, "--version", "1")
    assert files_in(workspace / "data/ours") == {name: SET[name] for name in names}
    assert f"file 1/{len(names)}, README.md" in done
    record = yaml.safe_load((workspace / "data/ours.dvc").read_text())
    meta = record["meta"]["shadowft"]
    pinned = {"source": "hf:owner/ours", "revision": REVISION}
    assert meta["origin"] == (pinned | {"part": part[1:]} if part else pinned)
    assert (meta["licence"], meta["version"], meta["files"]) == ("cc-by-4.0", "1", len(names))
    assert record["desc"] == "version 1; licence cc-by-4.0; from hf:owner/ours"
    before = len(hub.log)
    assert "already added" in add(workspace, PINNED + part)
    again = [path for method, path, _ in hub.log[before:] if method == "GET" and "/resolve/" in path]
    assert again == [], "a complete file is not downloaded again"
    [cached] = (workspace.parent / "hf").rglob("snapshots/*/README.md")
    assert not cached.samefile(workspace / "data/ours/README.md"), "an edit must not change the hub's cache"


def test_the_licence_and_the_folder_are_those_given(hub: Hub, workspace: Path) -> None:
    add(workspace, PINNED, "--licence", "CC0-1.0", "--out", "elsewhere/set")
    assert yaml.safe_load((workspace / "elsewhere/set.dvc").read_text())["meta"]["shadowft"]["licence"] == "CC0-1.0"
    assert not (workspace / "data").exists()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:owner/ours", f"not pinned; use {PINNED}, which is main now"),
        ("hf:owner/ours@main:train", f"not pinned; use {PINNED}:train, which is main now"),
        (f"{PINNED}0", "not pinned; use hf:owner/ours@REVISION with the 40 hex digits of a commit; the current one"),
        ("hf:owner/none", "not pinned; use hf:owner/none@REVISION with the 40 hex digits of a commit; the current one"),
        (f"hf:owner/none@{REVISION}", "the hub failed"),
        ("hf:ours", "expected hf:OWNER/NAME@REVISION"),
        (PINNED + ":valid", "none of 5 files matches valid; choose from README.md, data/test-00000-of-00001.jsonl"),
    ],
)
def test_references_that_are_not_pinned_or_match_nothing_are_refused(
    hub: Hub, workspace: Path, reference: str, message: str
) -> None:
    done = add(workspace, reference, code=3)
    [line] = [line for line in done.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {reference}: ")
    assert message in line
    assert not (workspace / "data").exists()


def test_damage_in_transit_is_refused(hub: Hub, workspace: Path, tmp_path: Path) -> None:
    """The hub's client compares sizes only; the listing has digests."""
    add(workspace, PINNED)
    before = files_in(workspace / "data")
    for name, kind in (("train_extra.parquet", "sha256:"), ("README.md", "git ")):
        [cached] = (tmp_path / "hf").rglob(f"snapshots/*/{name}")
        right = cached.read_bytes()
        cached.write_bytes(right[::-1])
        done = add(workspace, PINNED, code=3)
        assert f"{name}: expected {kind}" in done
        assert f"remove {cached.resolve()} and run it again" in done
        assert files_in(workspace / "data") == before
        cached.write_bytes(right)


def test_a_folder_of_the_user_is_not_replaced_and_nothing_is_downloaded(hub: Hub, workspace: Path) -> None:
    (workspace / "data/ours").mkdir(parents=True)
    (workspace / "data/ours/mine").write_text("mine")
    assert "data/ours: the folder exists, and DVC does not track it" in add(workspace, PINNED, code=3)
    assert files_in(workspace / "data") == {"ours/mine": "mine"}
    outside = workspace.parent / "outside"
    outside.mkdir()
    assert "expected a folder of a DVC repository" in add(outside, PINNED, code=3)
    assert "--out is only for downloads" in " ".join(add(workspace, "x", "--out", "y", code=2).split())
    assert hub.log == []


@pytest.fixture
def bucket(s3_server: S3Server, s3_store: Store) -> str:
    """An address with three objects below it; two have a checksum in the store."""
    name = s3_store.uri.removeprefix("s3://").removesuffix("/deltas")
    client = s3_server._client(s3_server.admin)
    for key, body in (("rows/a.jsonl", ROW % (1, 1)), ("rows/deep/b.jsonl", ROW % (2, 2))):
        client.put_object(Bucket=name, Key=key, Body=body.encode(), ChecksumAlgorithm="SHA256")
    client.put_object(Bucket=name, Key="rows/.hidden/x.jsonl", Body=b"hidden")
    client.put_object(Bucket=name, Key="rows/c.jsonl", Body=(ROW % (3, 3)).encode())
    client.put_object(Bucket=name, Key="other/d.jsonl", Body=b"not below")
    return f"s3://{name}"


def test_the_objects_below_a_prefix_are_downloaded(bucket: str, s3_server: S3Server, workspace: Path) -> None:
    """The endpoint is that of the store in params.yaml, the environment or --endpoint."""
    done = add(workspace, f"{bucket}/rows", "--licence", "CC0-1.0", "--endpoint", s3_server.endpoint)
    expected = {"a.jsonl": ROW % (1, 1), "c.jsonl": ROW % (3, 3), "deep/b.jsonl": ROW % (2, 2)}
    assert files_in(workspace / "data/rows") == expected
    assert "file 3/3" in done
    origin = yaml.safe_load((workspace / "data/rows.dvc").read_text())["meta"]["shadowft"]["origin"]
    etags = origin.pop("etags")
    assert origin == {"source": f"{bucket}/rows", "objects": 3, "endpoint": s3_server.endpoint}
    assert "already added" in add(workspace, f"{bucket}/rows", "--endpoint", s3_server.endpoint)

    client = s3_server._client(s3_server.admin)
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="rows/c.jsonl", Body=(ROW % (4, 4)).encode())
    printed = add(workspace, f"{bucket}/rows", "--endpoint", s3_server.endpoint, "--json")
    [answer] = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert answer["changed"] is True
    assert answer["origin"]["etags"] != etags


def test_one_object_and_missing_ones(bucket: str, s3_server: S3Server, tmp_path: Path) -> None:
    origin = download_data(f"{bucket}/rows/a.jsonl", tmp_path / "one", s3_server.endpoint, "us-east-1")
    assert files_in(tmp_path / "one") == {"a.jsonl": ROW % (1, 1)}
    assert origin.fields["objects"] == 1
    for reference in (f"{bucket}/nothing", f"{bucket}/nothing/x"):
        with pytest.raises(InputError, match="no objects there; check the bucket, the prefix and the endpoint"):
            download_data(reference, tmp_path / "two", s3_server.endpoint, "us-east-1")
    assert not (tmp_path / "two").exists()


def test_an_object_that_changes_during_the_download_is_refused(
    bucket: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shadowft_core.store.backends.s3 import S3Backend

    download_data(f"{bucket}/rows", tmp_path / "out", s3_server.endpoint, "us-east-1")
    before = file_digest(tmp_path / "out/c.jsonl")
    read_range = S3Backend.read_range

    def meddled(self: S3Backend, key: str, start: int, length: int) -> bytes:
        data = read_range(self, key, start, length)
        client = s3_server._client(s3_server.admin)
        client.put_object(Bucket=self.bucket, Key=f"rows/{key}", Body=data[::-1])
        return data

    monkeypatch.setattr(S3Backend, "read_range", meddled)
    with pytest.raises(InputError, match=r"c.jsonl changed from .* during the download; run it again"):
        download_data(f"{bucket}/rows", tmp_path / "out", s3_server.endpoint, "us-east-1")
    assert file_digest(tmp_path / "out/c.jsonl") == before, "the folder is as before"


@pytest.mark.parametrize(
    ("reference", "name"),
    [(PINNED + ":a/b*", "ours"), ("hf:owner/ours", "ours"), ("s3://bucket/a/b/", "b"), ("s3://bucket", "bucket")],
)
def test_the_folder_has_the_name_of_the_source(reference: str, name: str) -> None:
    assert name_of(reference) == name


def test_an_object_that_is_deleted_meanwhile_is_refused(
    bucket: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shadowft_core.store.backends.s3 import S3Backend

    read_range = S3Backend.read_range

    def deleted(self: S3Backend, key: str, start: int, length: int) -> bytes:
        data = read_range(self, key, start, length)
        s3_server._client(s3_server.admin).delete_object(Bucket=self.bucket, Key=f"rows/{key}")
        return data

    monkeypatch.setattr(S3Backend, "read_range", deleted)
    with pytest.raises(InputError, match=r"rows: c\.jsonl was deleted during the download"):
        download_data(f"{bucket}/rows", tmp_path / "out", s3_server.endpoint, "us-east-1")
    assert not (tmp_path / "out").exists()
