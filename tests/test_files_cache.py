"""The cache folder, cached digests, and files whose tensors have no known length before they are written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.errors import CheckpointError, InputError
from shadowft_core.files import cache_folder
from shadowft_core.files.cache import DigestCache
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


GOOD = {"w": "sha256:" + "0" * 64}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose digests may be cached at once."""
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shadowft_core.files.cache.SETTLED", -1.0)
    (tmp_path / "weights").write_bytes(b"abc")
    return tmp_path / "weights"


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry | {"digests": {"w": "sha256:0"}},
        lambda entry: entry | {"digests": GOOD | {"v": GOOD["w"].upper()}},
        lambda entry: entry | {"stamp": [0, *entry["stamp"][1:]]},
    ],
)
def test_an_edited_cache_entry_is_ignored(file: Path, change: Callable[[Any], Any]) -> None:
    DigestCache(file).remember(GOOD)
    assert DigestCache(file).digests == GOOD
    (entry,) = (cache_folder() / "digests").iterdir()
    entry.write_text(json.dumps(change(json.loads(entry.read_text()))))
    assert DigestCache(file).digests == {}


def test_a_file_that_changed_while_it_was_hashed_is_not_cached(file: Path) -> None:
    cache = DigestCache(file)
    file.write_bytes(b"abcd")
    cache.remember(GOOD)
    assert not cache_folder().exists()


def test_the_cache_is_in_the_home_folder_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("/home/someone", "/home/someone-else"):
        monkeypatch.setenv("HOME", home)
        monkeypatch.setenv("SHADOWFT_CACHE", "")
        assert cache_folder() == Path(home, ".cache/shadowft")
    monkeypatch.setenv("SHADOWFT_CACHE", "~/mine")
    assert cache_folder() == Path("/home/someone-else/mine")
    monkeypatch.delenv("SHADOWFT_CACHE")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without a home folder
    with pytest.raises(InputError, match="SHADOWFT_CACHE: not set, and there is no home folder"):
        cache_folder()


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
