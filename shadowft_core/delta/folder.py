"""The delta folder: its format, its rules, and reading it as float32 tensors."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.checkpoint import (
    CHUNK,
    FLOATS,
    Checkpoint,
    bytes_digest,
    canonical_json,
    open_safetensors,
    read_json_object,
)
from shadowft_core.errors import DeltaError

FORMAT = 1
CERTIFICATE, WEIGHTS = "delta.json", "delta.safetensors"


def step(shape: tuple[int, ...]) -> int:
    """Elements per chunk of a tensor: whole rows, about `CHUNK`. Part of the result's definition for `lora` deltas."""
    row = shape[-1] if len(shape) > 1 else 1
    return max(1, CHUNK // max(row, 1)) * max(row, 1)


class Delta:
    """A delta folder, opened by `open_delta`. Tensors are float32 and verified against the certificate when read."""

    def __init__(self, path: Path, certificate: dict[str, Any], digest: str, weights: Checkpoint) -> None:
        self.path = path
        self.certificate = certificate
        self.digest = digest
        self.kind: str = certificate["kind"]
        self.base_digest: str = certificate["base"]["digest"]
        self._tensors: dict[str, dict[str, Any]] = certificate["tensors"]
        self._weights = weights

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def read(self, name: str) -> np.ndarray:
        """The whole delta of one tensor, float32; the same bits as its chunks."""
        whole = np.empty(math.prod(self.shape(name)), np.float32)
        for start, part in self.chunks(name):
            whole[start : start + part.size] = part
        return whole.reshape(self.shape(name))

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(start, flat float32 part)`, `step(shape)` elements at a time; a part may be overwritten by the next.

        Raises DeltaError when the bytes do not match the certificate; for `dense` deltas at the end of the pass.
        """
        return self._product(name) if self.kind == "lora" else self._difference(name)

    def _difference(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        yield from self._weights.chunks(name, step(self.shape(name)), hashed=True)
        self._verify(name, self._tensors[name]["digest"])

    def _product(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        # The product is summed in float64 and rounded once to float32: matrix libraries sum in different orders, and
        # the digest of a grafted model must not depend on which one, or how many threads, a machine has.
        entry, (rows, columns) = self._tensors[name], self.shape(name)
        a = self._weights.read(f"{name}.lora_A").astype(np.float64)
        b = self._weights.read(f"{name}.lora_B").astype(np.float64)
        self._verify(f"{name}.lora_A", entry["digest_a"])
        self._verify(f"{name}.lora_B", entry["digest_b"])
        a *= entry["scaling"]
        stride = step((rows, columns)) // max(columns, 1)
        for row in range(0, rows, stride):
            yield row * columns, (b[row : row + stride] @ a).astype(np.float32).reshape(-1)

    def _verify(self, name: str, expected: str) -> None:
        found = self._weights.tensor_digest(name)
        if found != expected:
            raise DeltaError(
                f"{self.path / WEIGHTS}: tensor {name} is {found}, {CERTIFICATE} says {expected}; "
                "fetch or extract it again"
            )


def open_delta(path: Path) -> Delta:
    """Open a delta folder and hold its certificate against its weights.

    Raises DeltaError on another format version, a certificate that is not canonical, or tensors that are missing, extra
    or of another shape.
    """
    file = path / CERTIFICATE
    if not file.is_file():
        raise DeltaError(f"{path}: no {CERTIFICATE}; a folder made by `shadowft extract` is wanted")
    data = file.read_bytes()
    certificate = read_json_object(file)
    if certificate.get("format") != FORMAT:
        raise DeltaError(f"{file}: delta format {certificate.get('format')!r}, this version reads {FORMAT}")
    if canonical_json(certificate) != data:
        raise DeltaError(f"{file}: not canonical JSON, so it was edited; fetch or extract it again")
    try:
        kind, tensors = certificate["kind"], certificate["tensors"]
        _ = certificate["base"]["digest"]
        expected: dict[str, tuple[int, ...]] = {}
        for name, entry in tensors.items():
            shape = tuple(entry["shape"])
            if kind == "lora":
                rows, columns = shape
                _ = entry["digest_a"], entry["digest_b"], float(entry["scaling"])
                expected |= {f"{name}.lora_A": (entry["rank"], columns), f"{name}.lora_B": (rows, entry["rank"])}
            elif kind == "dense":
                _ = entry["digest"]
                expected[name] = shape
            else:
                raise DeltaError(f"{file}: kind {kind!r}, known are lora and dense")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DeltaError(f"{file}: damaged certificate: {error!r}; fetch or extract it again") from None
    weights = open_safetensors(path / WEIGHTS)
    found = {name: weights.info(name).shape for name in weights.names}
    if found != expected or any(weights.info(name).dtype != "F32" for name in found):
        odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        odd = odd or [name for name in found if weights.info(name).dtype != "F32"]
        raise DeltaError(
            f"{path / WEIGHTS}: tensor {odd[0]} has shape {found.get(odd[0])}, {CERTIFICATE} says "
            f"{expected.get(odd[0])} in F32; fetch or extract it again"
        )
    return Delta(path, certificate, bytes_digest(data), weights)


def require_float(model: Checkpoint, name: str) -> None:
    info = model.info(name)
    if info.dtype not in FLOATS:
        raise DeltaError(
            f"{info.file}: tensor {name} is {info.dtype}, one of {', '.join(FLOATS)} is wanted; dequantise it"
        )


def rounded(norm: float) -> float:
    """Nine digits: sums in float64 agree that far on every machine, and the delta's digest covers the norms."""
    return float(f"{norm:.9g}")
