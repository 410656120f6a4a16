"""A model folder: one safetensors file or an index of shards, config.json, tokenizer files. Read-only and streamed."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.errors import CheckpointError
from shadowft_core.files import WORKERS, bytes_digest, canonical_json, file_digest
from shadowft_core.files.cache import DigestCache
from shadowft_core.limits import SIDE_FILE_BYTES
from shadowft_core.weights.entries import TEMPLATES
from shadowft_core.weights.families import Family, ties_of
from shadowft_core.weights.header import DTYPES, TensorInfo
from shadowft_core.weights.remote import RemoteFiles
from shadowft_core.weights.settings import read_config

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 1 << 17  # elements: chunks of 256 KiB (bfloat16) fit in a core's cache; larger ones were slower
# Weights in other formats, pickles and code are never copied with a model.
_NOT_COPIED = (
    *(".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack"),
    *(".gguf", ".onnx", ".npy", ".npz", ".py", ".pyc", ".so", ".sh"),
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")


class Checkpoint:
    """The tensors and side files of one model folder. Made by `open_checkpoint`, which checks every header."""

    def __init__(
        self, path: Path, shards: dict[str, bytes], tensors: dict[str, TensorInfo], remote: RemoteFiles | None = None
    ) -> None:
        self.path = path
        self.remote = remote
        """reads the weights when they are not in `path`"""
        self.shards = shards
        """raw header, length prefix included, by name of the safetensors file"""
        self._tensors = tensors
        self._digests: dict[str, str] = {}
        self._caches: list[DigestCache] = []

    @property
    def names(self) -> list[str]:
        """Tensor names in file order: shard by shard, then by offset."""
        return list(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and position of a tensor. Raises CheckpointError for an unknown name."""
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: no tensor {name} among its {len(self._tensors)}") from None

    def read(self, name: str, hashed: bool = False) -> np.ndarray:
        """The whole tensor, in its own shape and dtype (ml_dtypes.bfloat16 for BF16); `hashed` as in `chunks`."""
        info = self.info(name)
        whole = [part for _, part in self.chunks(name, max(info.size, 1), hashed)]
        return (whole[0] if whole else np.empty(0, DTYPES[info.dtype])).reshape(info.shape)

    def chunks(self, name: str, elements: int, hashed: bool = False) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(start, flat part)` of a tensor, `elements` at a time.

        Every part is a view of one buffer, which the next overwrites. An empty tensor yields nothing. With `hashed`
        a full pass also computes the digest, so that `tensor_digest` need not read again.
        Raises CheckpointError when the file ends early.
        """
        info = self.info(name)
        dtype = DTYPES[info.dtype]
        buffer = np.empty(min(elements, info.size), dtype)
        view = buffer.view(np.uint8).data
        sha = hashlib.sha256() if hashed and name not in self._digests else None
        file = os.open(info.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in range(0, info.size, elements):
                count = min(elements, info.size - start)
                part = view[: count * dtype.itemsize]
                _read_fully(file, part, info.offset + start * dtype.itemsize, info.file)
                if sha:
                    sha.update(part)
                yield start, buffer[:count]
            if sha:
                self._digests[name] = f"sha256:{sha.hexdigest()}"
        finally:
            os.close(file)

    def read_into(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill a flat `out` of the tensor's dtype with its elements from `start` on; for random access.

        Raises CheckpointError when the file ends early.
        """
        info = self.info(name)
        file = os.open(info.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _read_fully(file, out.view(np.uint8).data, info.offset + start * out.dtype.itemsize, info.file)
        finally:
            os.close(file)

    def sample(self, name: str, positions: np.ndarray) -> np.ndarray:
        """The elements at these flat positions, in the tensor's own dtype; one read per run of adjacent positions."""
        runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1) if len(positions) else []
        return np.concatenate([self.part(name, int(run[0]), len(run)) for run in runs] or [self.part(name, 0, 0)])

    def part(self, name: str, start: int, count: int) -> np.ndarray:
        """Elements `start` to `start + count` of the flattened tensor, in its own dtype; read-only, one read.

        Works for remote weights (`open_remote`) too. Raises CheckpointError when bytes are missing.
        """
        info = self.info(name)
        dtype = DTYPES[info.dtype]
        offset, length = info.offset + start * dtype.itemsize, count * dtype.itemsize
        if self.remote:
            data = self.remote.read(info.file.name, offset, length)
        else:
            file = os.open(info.file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(file, length, offset)
            finally:
                os.close(file)
        if len(data) != length:
            raise CheckpointError(f"{info.file}: expected {length} bytes at {offset}, found {len(data)}; get it again")
        return np.frombuffer(data, dtype)

    def tensor_digest(self, name: str) -> str:
        """SHA-256 of the tensor's little-endian bytes; computed once."""
        if name not in self._digests:
            for _ in self.chunks(name, 2 * CHUNK, hashed=True):
                pass
        return self._digests[name]

    def add_digests(self, digests: Mapping[str, str]) -> None:
        """Add digests of tensors that other processes have computed with `tensor_digest`."""
        self._digests |= digests

    def digest(self) -> str:
        """The model digest: independent of shards, file names and machine. Reads the tensors not hashed yet.

        The digests of a model folder are cached as long as its files do not change (files/cache.py).
        """
        with ThreadPoolExecutor(WORKERS) as pool:
            digests = dict(zip(self._tensors, pool.map(self.tensor_digest, self._tensors), strict=True))
        for cache in self._caches:
            cache.remember({n: d for n, d in digests.items() if self._tensors[n].file == cache.file})
        return model_digest({n: (i.dtype, i.shape, digests[n]) for n, i in self._tensors.items()})

    def load_cached_digests(self) -> "Checkpoint":
        """Load the cached digests of these files; returns itself."""
        self._caches = [DigestCache(file) for file in sorted({info.file for info in self._tensors.values()})]
        for cache in self._caches:
            names = {name for name, info in self._tensors.items() if info.file == cache.file}
            if cache.digests.keys() == names:
                self._digests |= cache.digests
        return self

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed config.json. Raises CheckpointError as `read_config` does."""
        return read_config(self.path)

    @cached_property
    def family(self) -> Family:
        """The model's family. Raises CheckpointError when config.json cannot be read."""
        return Family(self.config, self._tensors)

    @cached_property
    def ties(self) -> dict[str, str]:
        """As `ties_of`: tied tensors by name, each with the stored one that represents both (`home`)."""
        return ties_of(self)

    @property
    def head_is_tied(self) -> bool:
        """Whether the embedding serves as head."""
        return any(self.family.is_head(name) for pair in self.ties.items() for name in pair)

    def home(self, name: str) -> str:
        """The stored tensor that represents this one: for a tied head, the embedding; for most, the tensor itself."""
        return self.ties.get(name, name)

    def named(self, name: str, family: Family | None = None) -> str | None:
        """This model's name for the tensor that another model calls `name`; None when there is no such tensor.

        `family` is the other model's, by default this one's. Names differ when only one of the two was saved by its own
        class. The `home` of the returned name is stored."""
        if self.home(name) in self:
            return name
        memory = (family or self.family).in_memory(name)
        names = (self.family.in_files(name), self.family.in_files(memory), memory)
        return next((found for found in names if self.home(found) in self), None)

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors have the same bytes; for remote weights, only the first and last `CHUNK` are compared."""
        if self.remote is None:
            return self.tensor_digest(one) == self.tensor_digest(other)
        ends = [(start, min(CHUNK, self.info(one).size)) for start in (0, max(0, self.info(one).size - CHUNK))]
        return all(np.array_equal(self.part(one, *end), self.part(other, *end)) for end in ends)

    def other_files(self) -> list[Path]:
        """Relative paths of the files copied with the weights: configs, tokenizer, templates; never weights or code.

        Raises CheckpointError for a name that is not UTF-8, since a recipe is JSON and names each of them, and for a
        file larger than any that belongs to a model.
        """
        folders = [self.path, *(f for f in [self.path / TEMPLATES] if f.is_dir())]
        files = sorted(
            file.relative_to(self.path)
            for folder in folders
            for file in folder.iterdir()
            if file.is_file() and not file.name.startswith(".") and not file.name.endswith(_NOT_COPIED)
        )
        for file in files:
            if any("\ud800" <= letter <= "\udfff" for letter in file.name):
                raise CheckpointError(f"{self.path / file}: the file's name is not UTF-8; rename or remove the file")
            if (size := (self.path / file).stat().st_size) > SIDE_FILE_BYTES:
                raise CheckpointError(
                    f"{self.path / file}: {size} bytes, the limit for a file beside the weights is {SIDE_FILE_BYTES}; "
                    "move it out of the folder"
                )
        return files

    def tokenizer_digest(self) -> str | None:
        """SHA-256 of the canonical JSON `{file name: file digest}` of the tokenizer's files; None without any."""
        files = {n: file_digest(self.path / n) for n in _TOKENIZER_FILES if (self.path / n).is_file()}
        return bytes_digest(canonical_json(files)) if files else None


def model_digest(tensors: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """SHA-256 of the canonical JSON `{name: [dtype, shape, tensor digest]}`."""
    return bytes_digest(canonical_json({n: [d, list(shape), digest] for n, (d, shape, digest) in tensors.items()}))


def _read_fully(file: int, view: memoryview, offset: int, path: Path) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], offset + done)
        if count == 0:
            raise CheckpointError(
                f"{path}: ends at byte {offset + done}, expected {len(view) - done} more; download it again"
            )
        done += count
