"""Where files are cut into chunks, which chunks are sent again, and how much memory that takes."""

import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core import store as room
from shadowft_core.delta.dense import Storage, write_dense
from shadowft_core.errors import CheckpointError, DeltaError, StoreError
from shadowft_core.files import bytes_digest
from shadowft_core.params import Store
from shadowft_core.store import transfer
from shadowft_core.store.backends import Backend
from shadowft_core.store.manifest import object_key, read_claim, read_manifest
from shadowft_core.store.transfer import Progress
from shadowft_core.weights import build_header, read_header
from tests.fixtures.deltas import noise, stored_bytes, trusted, write_delta

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["s3", "folder", pytest.param("real", marks=pytest.mark.real_store)])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(f"{request.param}_store").model_copy(update={"chunk_bytes": 65536})
    trusted(found)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_cuts_cover_the_file_once_and_every_larger_tensor_starts_one(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.choice([0, 1, 7, 1000, 16_384, 16_385, 40_000]) for _ in range(rng.randrange(1, 30))]
    path = tmp_path / "dense.safetensors"
    header = build_header({f"t{number}": ("F32", (size,)) for number, size in enumerate(sizes)})
    path.write_bytes(header + rng.randbytes(4 * sum(sizes)))
    largest = rng.choice([4096, 10_000, 65_536, 1 << 20])
    pieces = transfer.cut(path, largest)
    assert b"".join(piece.read() for piece in pieces) == path.read_bytes()
    assert all(0 < piece.size <= largest for piece in pieces)
    starts = {piece.offset for piece in pieces} | {path.stat().st_size}
    for info in read_header(path)[1].values():
        if info.nbytes > transfer.SMALL:
            assert {info.offset, info.offset + info.nbytes} <= starts
        elif info.nbytes <= largest:
            last = info.offset + info.nbytes
            assert not [s for s in starts if info.offset < s < last], "a small tensor is never cut"
    assert len(header) in starts
    groups = [size for size in sizes if 4 * size > transfer.SMALL]
    if not groups and largest > 4 * sum(sizes):
        assert len(pieces) <= len(range(0, len(header), largest)) + 1, "small tensors share chunks"


def test_a_malformed_weight_file_is_not_published(folder_store: Store, tmp_path: Path) -> None:
    delta = write_delta(tmp_path / "delta", {"w": noise(0, 2000)})
    with (delta / "dense.safetensors").open("ab") as file:
        file.write(b"more")
    backend = trusted(folder_store)
    with pytest.raises(CheckpointError, match="its header describes"):
        room.publish(delta, folder_store)
    assert list(backend.list("objects")) == list(backend.list("deltas")) == []


def test_one_changed_tensor_sends_its_own_chunks_only(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = trusted(store)
    tensors = {name: noise(seed, 50_000) for seed, name in enumerate(["a", "b", "c", "d"])}
    room.publish(write_delta(tmp_path / "one", tensors), store)
    before, total = stored_bytes(backend), 200_000 * 4
    assert before > total
    changed = tensors | {"b": noise(9, 50_000)}
    other = write_delta(tmp_path / "two", changed)
    capsys.readouterr()
    digest = room.publish(other, store)
    sent = int(re.search(r": (\d+) of \d+ bytes sent", capsys.readouterr().err)[1])  # type: ignore[index]
    certificate = (other / "delta.json").stat().st_size
    assert sent == 200_000 + certificate, "that tensor and the certificate"
    manifest = read_claim(backend, digest).manifest_bytes
    assert stored_bytes(backend) == before + sent + manifest


@pytest.mark.parametrize("whole", [True, False])
def test_only_chunks_that_may_exist_are_looked_up_before_they_are_sent(
    s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    backend = trusted(s3_store)
    tensors = {f"t{number}": noise(number, 20_000) for number in range(12)}
    old, new = dict(list(tensors.items())[:6]), tensors
    cuts = [
        transfer.cut(write_delta(tmp_path / name, some) / "dense.safetensors", 1 << 20)
        for name, some in (("old", old), ("new", new))
    ]
    stored = {key.rpartition("/")[2] for key in map(object_key, transfer.send(cuts[0], backend, Progress("old", 1)))}
    for number in range(20):
        chaff = str(number).encode()
        backend.put_if_absent(object_key(bytes_digest(chaff)), chaff, bytes_digest(chaff))
    headed, sent = set(), set()

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        {"HeadObject": headed, "PutObject": sent}.get(model.name, set()).add(params["url_path"].rpartition("/")[2])

    if not whole:
        monkeypatch.setattr(transfer, "LISTED", 1)
    backend._client.meta.events.register("before-call.s3", note)  # type: ignore[attr-defined]
    needed = {digest.removeprefix("sha256:") for digest in transfer.send(cuts[1], backend, Progress("new", 1))}
    assert sent == needed - stored, "chunks in the store are not sent again"
    assert len(needed & stored) == 6
    listed = sorted(key.rpartition("/")[2] for key in backend.list("objects") if key.rpartition("/")[2] not in sent)
    beyond = "~" if whole else listed[len(cuts[1]) - 1]
    assert headed == (needed & stored) | {key for key in needed if key > beyond}


@pytest.mark.parametrize("storage", ["compressed", "float32"])
def test_the_norms_of_all_layers_share_one_chunk(tmp_path: Path, storage: Storage) -> None:
    shapes = {f"{n}.{part}": shape for n in range(4) for part, shape in (("norm", (64,)), ("w", (300, 200)))}
    values = {name: noise(seed, math.prod(shape)) for seed, (name, shape) in enumerate(shapes.items())}
    write_dense(tmp_path, shapes, lambda name, _: (values[name].copy(), 0.0), storage)
    assert len(transfer.cut(tmp_path / "dense.safetensors", 1 << 24)) == 1 + 1 + 4, "header, norms, matrices"


def test_a_tensor_of_two_deltas_is_stored_once_wherever_it_is(folder_store: Store, tmp_path: Path) -> None:
    backend, shared = trusted(folder_store), noise(0, 30_000)
    first = room.publish(write_delta(tmp_path / "one", {"x": noise(1, 100), "w": shared}), folder_store)
    before = stored_bytes(backend)
    second = room.publish(write_delta(tmp_path / "two", {"w": shared, "y": noise(2, 77_777)}), folder_store)
    assert stored_bytes(backend) - before < 77_777 * 4 + 3000
    common = set(_chunks(backend, first)) & set(_chunks(backend, second))
    assert [size for _, size in common] == [120_000]


def _chunks(backend: Backend, digest: str) -> list[tuple[str, int]]:
    return list(read_manifest(backend, read_claim(backend, digest)).chunks())


def test_an_interrupted_publish_resumes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend, delta = trusted(store), write_delta(tmp_path / "delta", {"w": noise(0, 160_000)})
    real, put = type(backend).put_if_absent, []

    def dying(self: Backend, key: str, data: bytes, digest: str, ask: bool = True) -> bool:
        if key.startswith("objects"):
            put.append(key)
            if len(put) > 4:
                raise KeyboardInterrupt
        return real(self, key, data, digest, ask)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(backend), "put_if_absent", dying)
        with pytest.raises(KeyboardInterrupt):
            room.publish(delta, store)
    assert list(backend.list("deltas")) == []
    stored = stored_bytes(backend)
    assert stored > 0
    capsys.readouterr()
    digest = room.publish(delta, store)
    total = sum(path.stat().st_size for path in delta.iterdir())
    assert f"published {digest}: {total - stored} of {total} bytes sent" in capsys.readouterr().err
    room.fetch_delta(digest, store, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        p.name: p.read_bytes() for p in delta.iterdir()
    }


def test_the_same_delta_with_other_chunks_has_the_same_digest(folder_store: Store, tmp_path: Path) -> None:
    trusted(folder_store)
    delta = write_delta(tmp_path / "delta", {"w": noise(0, 100_000)})
    digest = room.publish(delta, folder_store)
    assert room.publish(delta, folder_store.model_copy(update={"chunk_bytes": 65536})) == digest


def test_a_file_that_changes_while_it_is_published_is_refused(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, delta = trusted(folder_store), write_delta(tmp_path / "delta", {"w": noise(0, 20_000)})
    pieces = transfer.cut(delta / "dense.safetensors", 65536)
    progress = transfer.Progress("test", 1)
    digests = transfer.send(pieces, backend, progress)
    for key in backend.list("objects"):
        backend.delete(key)
    with (delta / "dense.safetensors").open("r+b") as file:
        file.seek(70_000)
        file.write(b"changed")
    with pytest.raises(DeltaError, match=r"dense\.safetensors: bytes \d+ to \d+ had digest sha256:.* changed while"):
        transfer.send_missing(pieces, digests, backend, progress)
    monkeypatch.setattr(room, "file_digest", lambda _: "sha256:" + "0" * 64)  # as if read just before a change
    with pytest.raises(DeltaError, match=r"delta\.json changed while it was published"):
        room.publish(delta, folder_store)
    assert list(backend.list("deltas")) == []
    os.truncate(delta / "dense.safetensors", 70_000)
    for act in (pieces[-1].read, lambda: transfer.send(pieces, backend, progress)):
        with pytest.raises(DeltaError, match=r"expected at least \d+ bytes, found 70000; it changed"):
            act()


def test_a_delta_that_does_not_fit_the_disk_is_refused_before_the_download(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted(folder_store)
    digest = room.publish(write_delta(tmp_path / "delta", {"w": noise(0, 20_000)}), folder_store)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(room.StoreError, match="1000 bytes are free, the delta needs 80"):
        room.fetch_delta(digest, folder_store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


MEASURE = """
import sys
from pathlib import Path
from shadowft_core import store
from shadowft_core.params import Store
folder = Store(uri=sys.argv[2])
digest = store.publish(Path(sys.argv[1]), folder)
store.fetch_delta(digest, folder, Path(sys.argv[3]))
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


def test_memory_does_not_grow_with_the_delta(tmp_path: Path) -> None:
    peaks = []
    for mib in (64, 256):
        folder = write_delta(tmp_path / str(mib) / "delta", {"small": noise(0, 10)})
        header = build_header({"w": ("F32", (mib << 18,))})
        with (folder / "dense.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + (mib << 20))
            for block in range(mib // 16):  # all chunks differ; most of the file is a hole
                file.seek(len(header) + (block << 24))
                file.write(np.uint64(block).tobytes())
        command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / str(mib) / "store"), str(folder) + "-out"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert max(peaks) < 300, peaks
    assert abs(peaks[1] - peaks[0]) < 40, peaks


def test_after_a_failure_no_queued_work_starts() -> None:
    begun: list[int] = []

    def act(number: int) -> int:
        begun.append(number)
        time.sleep(0.2)
        if number < transfer.THREADS:
            raise StoreError(f"number {number}")
        return number

    with pytest.raises(StoreError, match="number 0"):
        list(transfer.each(act, ((number,) for number in range(100))))
    assert sorted(begun) == list(range(transfer.THREADS))
