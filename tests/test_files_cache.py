"""Cached digests, and files whose tensors have no known length before they are written."""

import os
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.errors import CheckpointError
from shadowft_core.weights import append_safetensors, open_checkpoint, open_safetensors
from tests.fixtures.models import write_model


def test_a_digest_is_cached_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    weights = np.arange(40, dtype=np.float32)
    folder = write_model(tmp_path / "model", {"a": weights, "b": weights + 1}, shards=2)
    first = open_checkpoint(folder).digest()
    assert not (tmp_path / "cache").exists(), "digests of files written a moment ago are not cached"
    monkeypatch.setattr("shadowft_core.files.cache.SETTLED", -1.0)
    assert open_checkpoint(folder).digest() == first
    monkeypatch.setattr("shadowft_core.weights.checkpoint.Checkpoint.chunks", None)  # reading again would fail
    assert open_checkpoint(folder).tensor_digest("a").startswith("sha256:")
    monkeypatch.undo()
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    file = open_checkpoint(folder).info("a").file
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    before = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size and mtime; only ctime differs
    assert open_checkpoint(folder).digest() != first
    for entry in (tmp_path / "cache" / "digests").iterdir():
        entry.write_text("{}")
    assert open_checkpoint(folder).digest() != first, "a damaged cache entry is ignored"


def test_tensors_of_unknown_length_become_a_file_that_safetensors_reads(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    pieces = [("x", b"abc"), ("x", b"de"), ("empty", b""), ("y", b"f" * 100_000)]
    digests = append_safetensors(
        tmp_path / "a.safetensors", {"x": ("U8", None), "empty": ("U8", None), "y": ("U8", (100_000,))}, iter(pieces)
    )
    loaded = load_file(tmp_path / "a.safetensors")
    assert {name: bytes(array) for name, array in loaded.items()} == {"x": b"abcde", "empty": b"", "y": b"f" * 100_000}
    ours = open_safetensors(tmp_path / "a.safetensors")
    assert digests == {name: ours.tensor_digest(name) for name in ours.names}
    with pytest.raises(CheckpointError, match="tensor y: 3 bytes were given"):
        append_safetensors(tmp_path / "b.safetensors", {"y": ("U8", (4,))}, iter([("y", b"abc")]))
