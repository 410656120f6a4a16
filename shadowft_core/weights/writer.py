"""Writes safetensors files: reserves the space, then writes and hashes tensors in parallel."""

import hashlib
import math
import os
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.errors import CheckpointError, say
from shadowft_core.files.ordered_map import in_order
from shadowft_core.weights.checkpoint import SINGLE
from shadowft_core.weights.header import DTYPES, TensorInfo, build_header, dtype_name, parse_header

FLUSH = 64 << 20  # bytes
Producer = Callable[[str], Iterator[np.ndarray] | Generator[np.ndarray, None, Any]]
"""yields the flat parts of a tensor; a generator may also return a small fact for `Written`"""
Bytes = bytes | memoryview


@dataclass(frozen=True)
class Written:
    """A written tensor: `sha256:<hex>` of its bytes, and what its producer returned."""

    digest: str
    fact: Any


def write_safetensors(path: Path, header: bytes, produce: Producer) -> dict[str, str]:
    """Write one safetensors file as `write_shards` does and return `{tensor name: digest}`."""
    return {name: written.digest for name, written in write_shards({path: header}, produce).items()}


def write_shards(files: Mapping[Path, bytes], produce: Producer, label: str = "") -> dict[str, Written]:
    """Write safetensors files, given as `{path: header}`, and return digest and fact of every tensor.

    A header comes from `build_header`, or verbatim from a file with the same layout. `produce(name)` yields the
    tensor's flat parts in order, in the dtype of the header; a part may be overwritten once the next is requested.
    Each worker (`in_order`) takes whole tensors, so sums and hashes within a tensor run in file order. Workers may be
    processes that lose what a producer changes in memory, so it returns a fact instead. Call this inside `new_folder`,
    which syncs and publishes. With a `label`, progress is printed to stderr.

    Raises CheckpointError when a producer yields too much or too little, OSError when the disk is full.
    """
    opened: dict[Path, int] = {}
    tensors: dict[str, TensorInfo] = {}
    flush = _Flush()
    try:
        for path, header in files.items():
            found = parse_header(header, path)
            opened[path] = file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            size = len(header) + sum(info.nbytes for info in found.values())
            os.posix_fallocate(file, 0, size)  # a full disk fails here, before the work
            _write_fully(file, memoryview(header), 0)
            tensors |= found
        longest_first = sorted(tensors, key=lambda name: -tensors[name].nbytes)  # so that all workers finish together

        def write(name: str) -> tuple[Written, bytes]:
            return _write_tensor(opened[tensors[name].file], name, tensors[name], produce), b""

        work = in_order(write, longest_first)
        done: dict[str, Written] = {}
        for name, (written, _) in zip(longest_first, work, strict=True):
            done[name] = written
            flush.wrote(opened[tensors[name].file], tensors[name].nbytes)
            if label and len(done) % 100 == 0:
                say(f"{label}: tensor {len(done)}/{len(tensors)}")
        return {name: done[name] for name in tensors}
    finally:
        flush.end()
        for file in opened.values():
            os.close(file)


def append_safetensors(
    path: Path, layout: Mapping[str, tuple[str, tuple[int, ...] | None]], pieces: Iterable[tuple[str, Bytes]]
) -> dict[str, str]:
    """Write tensors of one dtype as their bytes arrive, and return `{name: digest}`.

    `layout` is `{name: (dtype, shape)}`; shape None means one dimension with as many elements as arrive. `pieces` are
    `(name, bytes)`, tensor by tensor in the order of `layout`. Space for the header is reserved at the start and filled
    at the end. Call this inside `new_folder`. Raises CheckpointError when bytes and shapes disagree.
    """
    most = (10**15,)  # no tensor has more elements, so no header is longer
    room = len(build_header({n: (dtype, most if shape is None else shape) for n, (dtype, shape) in layout.items()}))
    sizes, hashes = dict.fromkeys(layout, 0), {name: hashlib.sha256() for name in layout}
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    flush = _Flush()
    try:
        end = room
        for name, piece in pieces:
            hashes[name].update(piece)
            _write_fully(file, memoryview(piece), end)
            sizes[name] += len(piece)
            end += len(piece)
            flush.wrote(file, len(piece))
        found = {
            n: (t, (sizes[n] // DTYPES[t].itemsize,) if shape is None else shape) for n, (t, shape) in layout.items()
        }
        for name, (dtype, shape) in found.items():
            if math.prod(shape) * DTYPES[dtype].itemsize != sizes[name]:
                raise CheckpointError(f"{path}: tensor {name}: {sizes[name]} bytes were given for {dtype} {shape}")
        text = build_header(found)[8:].ljust(room - 8)
        _write_fully(file, memoryview(struct.pack("<Q", len(text)) + text), 0)
    finally:
        flush.end()
        os.close(file)
    return {name: f"sha256:{sha.hexdigest()}" for name, sha in hashes.items()}


def write_checkpoint(folder: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write arrays as `model.safetensors` into an existing folder; for models that fit in memory.

    Raises CheckpointError for a duplicate name or a dtype that safetensors does not have.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, array in tensors:
        if name in arrays:
            raise CheckpointError(f"{folder}: tensor {name} is given twice")
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)  # it makes a scalar one-dimensional
    header = build_header({name: (dtype_name(array.dtype), array.shape) for name, array in arrays.items()})
    write_safetensors(folder / SINGLE, header, lambda name: iter([arrays[name].reshape(-1)]))


class _Flush:
    """Flushes files to disk while they are being written, which shortens the final sync."""

    def __init__(self) -> None:
        self._bytes: dict[int, int] = {}
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def wrote(self, file: int, count: int) -> None:
        self._bytes[file] = self._bytes.get(file, 0) + count
        if self._running is None or self._running.done():
            most = max(self._bytes, key=self._bytes.__getitem__)
            if self._bytes[most] >= FLUSH:
                self._bytes[most], self._running = 0, self._thread.submit(os.fdatasync, most)

    def end(self) -> None:
        """Wait for the last flush; the final sync reports errors of the disk."""
        self._thread.shutdown()


def _write_tensor(file: int, name: str, info: TensorInfo, produce: Producer) -> Written:
    sha, done, fact = hashlib.sha256(), 0, None

    def produced() -> Iterator[np.ndarray]:
        nonlocal fact
        fact = yield from produce(name)  # type: ignore[func-returns-value]

    for part in produced():
        if part.size == 0:
            continue
        if dtype_name(part.dtype) != info.dtype:
            raise CheckpointError(f"{info.file}: tensor {name}: parts are {part.dtype}, expected {info.dtype}")
        if done + part.nbytes > info.nbytes:
            raise CheckpointError(f"{info.file}: tensor {name}: its parts exceed the expected {info.nbytes} bytes")
        view = part.view(np.uint8).data
        sha.update(view)
        _write_fully(file, view, info.offset + done)
        done += part.nbytes
    if done != info.nbytes:
        raise CheckpointError(f"{info.file}: tensor {name}: {done} bytes were given, expected {info.nbytes}")
    return Written(f"sha256:{sha.hexdigest()}", fact)


def _write_fully(file: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
