"""The nearest matrices of low rank: for a delta within an error budget, and for the part of a Base split off by PiSSA.

Eckart and Young 1936: the first singular vectors give the nearest matrix of their rank, and the squared error is the
sum of the squared singular values left out. Both are computed in float64 from the eigenvectors of the Gram matrix of
the smaller side. Memory: the matrix and min(rows, columns)^2.
"""

import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.delta.dense import Storage, write_dense
from shadowft_core.delta.factors import Factors
from shadowft_core.delta.folder import Delta
from shadowft_core.delta.format import DENSE, rounded
from shadowft_core.delta.lora import write_factors
from shadowft_core.errors import ParamsError, say
from shadowft_core.files import WORKERS
from shadowft_core.weights import build_header, open_safetensors, write_safetensors

_BLOCK = 1024  # rows or columns converted to float64 at a time


def require_budget(budget: float) -> None:
    """Raise ParamsError unless 0 < budget < 1."""
    if not 0 < budget < 1:
        raise ParamsError(f"lowrank {budget}: expected the relative error of every tensor, above 0 and below 1")


def lower(delta: Delta, budget: float, folder: Path, storage: Storage) -> tuple[dict[str, Any], float]:
    """Write a delta as factors of the smallest ranks whose relative Frobenius error |D - BA| / |D| is at most `budget`.

    The budget applies to each tensor. The error in its entry is measured on the float32 product that a reader computes.
    A tensor stays exact if it is not a matrix, or if no factors within the budget take fewer bytes than it takes now.
    Returns the certificate's entries and the relative error over all tensors. A few matrices are in memory at a time.
    """
    spill = folder / "factors"
    spill.mkdir()
    names, most = sorted(delta.names), _most(delta)
    found = {name: factors for name in delta.names if (factors := delta.factors(name)) is not None}
    errors: dict[str, float] = {}
    lost = total = 0.0

    def fitted(name: str) -> tuple[float, Factors | None, float]:
        square = sum(_square(part) for _, part in delta.chunks(name))
        fitting = _fit(delta.read(name), math.sqrt(square), budget, most[name]) if most[name] and square else None
        if fitting is None:
            return square, None, 0.0
        return square, _spilled(spill / f"{names.index(name)}.safetensors", *fitting[:2]), fitting[2]

    with ThreadPoolExecutor(WORKERS) as pool:
        for number, (name, (square, factors, error)) in enumerate(zip(names, pool.map(fitted, names), strict=True), 1):
            total, lost = total + square, lost + error * error * square
            if factors is not None:
                found[name], errors[name] = factors, rounded(error)
            if number % 25 == 0:
                say(f"extract: low rank, tensor {number}/{len(names)}")
    dense = {name: delta.shape(name) for name in delta.names if name not in found}
    entries: dict[str, Any] = {}
    if found:
        entries |= write_factors(folder, {name: delta.shape(name) for name in found}, found)
    if dense:
        reader = lru_cache(2)(delta.parts)
        entries |= write_dense(folder, dense, lambda name, number: (reader(name)(number), 0.0), storage)
    for name, error in errors.items():
        entries[name]["error"] = error
    shutil.rmtree(spill)
    return entries, rounded(math.sqrt(lost / total))


def _most(delta: Delta) -> dict[str, int]:
    """For each tensor, the highest rank worth storing; 0 for tensors that are not matrices.

    For a dense tensor: the highest rank at which float32 factors take fewer bytes. For factors: their own rank.
    """
    entries = delta.certificate["tensors"]
    stored = open_safetensors(delta.path / DENSE) if any(e["form"] != "factors" for e in entries.values()) else None
    most = {}
    for name, entry in entries.items():
        if len(entry["shape"]) != 2:
            most[name] = 0
        elif entry["form"] == "factors" or stored is None:
            most[name] = entry["rank"]
        else:
            most[name] = (stored.info(name).nbytes - 1) // (4 * sum(entry["shape"]))
    return most


def _fit(matrix: np.ndarray, norm: float, budget: float, most: int) -> tuple[np.ndarray, np.ndarray, float] | None:
    """`(left, right, error)` of the smallest rank within the budget, float32; None if it would exceed `most`."""
    squares, vectors = spectrum(matrix)
    tails = np.cumsum(squares[::-1])[::-1] / norm**2  # tails[r]: what rank r leaves out, summed from the smallest
    rank = max(1, int(np.sum(tails > budget**2)))
    while rank <= min(most, len(squares)):
        left, right = (f.astype(np.float32) for f in project(matrix, vectors[:, :rank]))
        error = math.sqrt(_distance(matrix, left, right)) / norm
        if error <= budget:
            return left, right, error
        rounding = error**2 - (tails[rank] if rank < len(tails) else 0.0)
        if rounding >= budget**2:  # no rank helps: the budget is below the precision of float32 factors
            return None
        rank = max(rank + 1, int(np.sum(tails > budget**2 - rounding)))
    return None


def spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values, descending, and the singular vectors of the smaller side as columns; float64.

    Left vectors of a wide matrix, right vectors of a tall one. The largest entry of every vector is positive.
    """
    wide = _wide(matrix)
    gram = np.zeros((len(wide), len(wide)))
    for block in _blocks(wide):
        gram += block @ block.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    peaks = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(len(wide))]
    return values, vectors * np.where(peaks < 0, -1.0, 1.0)


def project(matrix: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(left, right)`, float64. Their product is the matrix projected on `vectors`, columns that `spectrum` returns."""
    wide = _wide(matrix)
    coordinates = np.concatenate([vectors.T @ block for block in _blocks(wide)], axis=1)
    return (vectors, coordinates) if wide is matrix else (coordinates.T, vectors.T)


def _wide(matrix: np.ndarray) -> np.ndarray:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def _blocks(wide: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, wide.shape[1], _BLOCK):
        yield wide[:, start : start + _BLOCK].astype(np.float64)


def _distance(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """Squared Frobenius distance to the product as a reader computes it: in float64, rounded once to float32."""
    wide, total = right.astype(np.float64), 0.0
    for start in range(0, len(matrix), _BLOCK):
        rows = slice(start, start + _BLOCK)
        total += _square(matrix[rows].astype(np.float64) - (left[rows].astype(np.float64) @ wide).astype(np.float32))
    return total


def _square(part: np.ndarray) -> float:
    return float(np.sum(np.square(part, dtype=np.float64)))


def _spilled(file: Path, left: np.ndarray, right: np.ndarray) -> Factors:
    """Store factors on disk until factors.safetensors is written, because its header needs all ranks."""
    arrays = {"left": np.ascontiguousarray(left), "right": np.ascontiguousarray(right)}
    header = build_header({side: ("F32", array.shape) for side, array in arrays.items()})
    write_safetensors(file, header, lambda side: iter([arrays[side].reshape(-1)]))
    stored = open_safetensors(file)
    return Factors(left.shape[1], 1.0, lambda: stored.read("left"), lambda: stored.read("right"))
