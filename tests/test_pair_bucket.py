"""`s3://` references against a real S3 server: ranges for a sample, verified files for a full check and `fetch`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.errors import CheckpointError, InputError, StoreCorruptError, StoreError, SwappedError
from shadowft_core.files import bytes_digest
from shadowft_core.pair import check_pair, compare_models, fetch, opened, resolve
from shadowft_core.pair.sigma import RANGE, RANGES
from shadowft_core.params import Fetch, Store
from shadowft_core.store.backends import Backend, open_backend
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair, save_tokenizer, write_model
from tests.servers.seaweedfs import S3Server

DATA = bytes(range(256)) * 5000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair that a sample does not read whole, the Base in two shards, the Instruct in one file."""
    noise = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("bucket")
    made = Pair(folder / "base", folder / "instruct")
    base = {name: 0.02 * noise.standard_normal((900, 500)) for name in ("model.layers.0.a.weight", "lm_head.weight")}
    near = {name: array + 0.0004 * noise.standard_normal(array.shape) for name, array in base.items()}
    for place, tensors, shards in ((made.base, base, 2), (made.instruct, near, 1)):
        write_model(place, {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}, shards)
        save_tokenizer(place, template=place == made.instruct)
    return made


@pytest.fixture
def bucket(s3_server: S3Server, s3_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of a new, empty bucket; the environment names the server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    return s3_store.uri.removesuffix("/deltas")


def upload(server: S3Server, address: str, folder: Path, checksum: bool = False) -> None:
    """Upload files as an ordinary client does, with or without a SHA-256 for the store to keep."""
    name, _, prefix = address.removeprefix("s3://").partition("/")
    more: dict[str, Any] = {"ChecksumAlgorithm": "SHA256"} if checksum else {}
    for file in folder.iterdir():
        key = f"{prefix}/{file.name}" if prefix else file.name
        server._client(server.admin).put_object(Bucket=name, Key=key, Body=file.read_bytes(), **more)


def test_a_sampled_check_reads_ranges_of_objects(
    s3_server: S3Server, bucket: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3_server, f"{bucket}/team/base", pair.base)
    upload(s3_server, f"{bucket}/team/instruct", pair.instruct)
    asked: list[tuple[str, int]] = []
    from shadowft_core.store.backends.s3 import S3Backend

    read_range = S3Backend.read_range

    def counted(self: S3Backend, key: str, start: int, length: int) -> bytes:
        asked.append((key, length))
        return read_range(self, key, start, length)

    monkeypatch.setattr(S3Backend, "read_range", counted)
    with opened(f"{bucket}/team/base") as (base, label), opened(f"{bucket}/team/instruct") as (instruct, _):
        found = compare_models(base, instruct, full=False)
        assert label == ""
    expected = check_pair(pair.base, pair.instruct)["sigma"]["overall"]
    assert found["sigma"]["overall"] == pytest.approx(expected, rel=0.02)
    assert found["sigma"]["weights"] == {"read": 2 * RANGES * RANGE, "of": 900_000}
    assert sum(length for key, length in asked) == 2 * (2 * RANGES * RANGE * 2) + 3 * 100_000 + 128 * 1000
    assert not base.path.exists(), "nothing is left behind"
    assert not (tmp_path / "cache" / "s3").exists()  # the cache may hold digests of the local pair


def test_the_verb_reads_a_bucket(s3_server: S3Server, bucket: str, pair: Pair) -> None:
    upload(s3_server, f"{bucket}/base", pair.base)
    words = ["pair", "--base", f"{bucket}/base", "--instruct", str(pair.instruct), "--json"]
    code = "import sys; from shadowft_core.cli import main; sys.argv = ['shadowft', *sys.argv[1:]]; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=os.environ, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["sampled"]) == ("ok", True)
    assert found["base"]["ref"] == f"{bucket}/base"


@pytest.mark.parametrize("checksum", [False, True])
def test_fetch_downloads_verified_files(
    s3_server: S3Server, bucket: str, pair: Pair, tmp_path: Path, checksum: bool
) -> None:
    others = [pair.base / name for name in ("modeling.py", ".own.json", ".own.safetensors")]
    for other in others:
        other.write_text("x")
    upload(s3_server, f"{bucket}/base", pair.base, checksum)
    upload(s3_server, f"{bucket}/base/deep", pair.base, checksum)
    for other in others:
        other.unlink()
    upload(s3_server, f"{bucket}/instruct", pair.instruct, checksum)
    references = {"base": f"{bucket}/base", "instruct": f"{bucket}/instruct"}
    fetch(Fetch(**references), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "pair.json").read_bytes())
    for role, source in (("base", pair.base), ("instruct", pair.instruct)):
        fetched = open_checkpoint(tmp_path / "out" / role)
        assert record[role] == {"ref": references[role], "label": "", "digest": open_checkpoint(source).digest()}
        assert fetched.digest() == record[role]["digest"]
        assert {f.name for f in (tmp_path / "out" / role).iterdir()} == {f.name for f in source.iterdir()}
    assert record["sampled"] is False
    first = resolve(references["base"])[0]
    assert {f.name for f in first.iterdir()} == {f.name for f in pair.base.iterdir()}, "no code is downloaded"
    upload(s3_server, f"{bucket}/base", pair.base, checksum)
    same = resolve(references["base"])[0]
    assert open_checkpoint(same).digest() == record["base"]["digest"]
    upload(s3_server, f"{bucket}/base", pair.instruct, checksum)
    assert resolve(references["base"])[0] != first, "other content is another download"


def test_a_model_that_changes_during_the_download_is_refused(
    s3_server: S3Server, bucket: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3_server, f"{bucket}/instruct", pair.instruct)
    from shadowft_core.store.backends.s3 import S3Backend

    read_range, changed = S3Backend.read_range, []

    def meddled(self: S3Backend, key: str, start: int, length: int) -> bytes:
        data = read_range(self, key, start, length)
        if length > 100_000 and not changed:
            changed.append(key)
            whole = bytearray((pair.instruct / key).read_bytes())
            whole[-1] ^= 1
            name = bucket.removeprefix("s3://")
            s3_server._client(s3_server.admin).put_object(Bucket=name, Key=f"instruct/{key}", Body=bytes(whole))
        return data

    monkeypatch.setattr(S3Backend, "read_range", meddled)
    with pytest.raises(InputError, match=r"model.safetensors changed from .* to .* during the download; run it again"):
        resolve(f"{bucket}/instruct")
    assert changed == ["model.safetensors"]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()], "nothing is half there"


def test_refusals_precede_weights_and_keep_their_class(
    s3_server: S3Server, bucket: str, pair: Pair, tmp_path: Path
) -> None:
    upload(s3_server, f"{bucket}/base", pair.base)
    upload(s3_server, f"{bucket}/instruct", pair.instruct)
    with pytest.raises(SwappedError):
        fetch(Fetch(base=f"{bucket}/instruct", instruct=f"{bucket}/base"), tmp_path / "out")
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"s3://.*/nothing: 0 objects, no \*.safetensors among them"):
        resolve(f"{bucket}/nothing")
    cut = tmp_path / "cut"
    cut.mkdir()
    data = (pair.instruct / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[:-10])
    upload(s3_server, f"{bucket}/instruct", cut)
    with (
        pytest.raises(CheckpointError, match=r"s3://.*/instruct: .*its header describes"),
        opened(f"{bucket}/instruct"),
    ):
        pass


def test_a_file_beside_the_weights_has_a_limit(
    s3_server: S3Server, bucket: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3_server, f"{bucket}/base", pair.base)
    monkeypatch.setattr("shadowft_core.pair.bucket.TOKENIZER_BYTES", 10)
    with pytest.raises(StoreCorruptError, match="larger than the 10 bytes allowed"):
        resolve(f"{bucket}/base")


def test_a_missing_bucket_and_a_bad_address_are_one_line(bucket: str) -> None:
    for address, message in (("s3://no-such-bucket/x", "no-such-bucket"), ("s3://B/x", "is not s3://BUCKET/PREFIX")):
        with pytest.raises(StoreError, match=message) as caught:
            resolve(address)
        assert "\n" not in str(caught.value)


@pytest.fixture(params=["s3", "folder"])
def objects(request: pytest.FixtureRequest) -> Backend:
    store: Store = request.getfixturevalue(f"{request.param}_store")
    return open_backend(store.uri, store.endpoint, store.region)


def test_a_range_of_an_object_has_its_bytes(objects: Backend) -> None:
    objects.put_if_absent("a/b", DATA, bytes_digest(DATA))
    for start, length in ((0, 1), (255, 3), (len(DATA) - 7, 7), (1000, 1 << 20), (5, 0)):
        assert objects.read_range("a/b", start, length) == DATA[start : start + length]
    for start, length in ((len(DATA) - 7, 8), (len(DATA), 1), (len(DATA) + 10, 1)):
        with pytest.raises(StoreError, match="a/b"):
            objects.read_range("a/b", start, length)
    with pytest.raises(StoreError, match="y is missing"):
        objects.read_range("y", 0, 1)
