"""The delta folder: its format, its rules, and reading it as float32 tensors. Specification: docs/delta-format.md."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.delta.frames import HEAD, body_bytes, decode
from shadowft_core.errors import DeltaError
from shadowft_core.files import WORKERS, bytes_digest, canonical_json, file_digest, read_json_object
from shadowft_core.kernels.scratch import scratch
from shadowft_core.weights import CHUNK, Checkpoint, open_safetensors

FORMAT = 2
CERTIFICATE, DENSE, FACTORS, BASE = "delta.json", "dense.safetensors", "factors.safetensors", "base.safetensors"
Layout = dict[str, tuple[str, tuple[int, ...] | None]]
KINDS = ("lora", "dense", "lowrank")
NOTHING_KNOWN: Mapping[tuple[str, int, int], str] = {}
_TALL = 128  # rows of a product at a time: a matrix library is slow on fewer
_WIDE = 1 << 20  # elements of it, float64, at most, unless one part has more
MARKS, SAMPLE = "token_marks", "sample."  # tensors of base.safetensors


def step(shape: tuple[int, ...]) -> int:
    """Elements per part of a tensor: whole rows, about `CHUNK`. Part of the result's definition for factors."""
    row = shape[-1] if len(shape) > 1 else 1
    return max(1, CHUNK // max(row, 1)) * max(row, 1)


class Delta:
    """A delta folder, opened by `open_delta`. Tensors are float32 and verified against the certificate when read."""

    def __init__(self, path: Path, certificate: dict[str, Any], digest: str, weights: dict[str, Checkpoint]) -> None:
        self.path = path
        self.certificate = certificate
        self.digest = digest
        self.kind: str = certificate["kind"]
        self.base_digest: str = certificate["base"]["digest"]
        self.tokenizer_digest: str | None = certificate["base"]["tokenizer_digest"]
        self.base_tied: bool = certificate["base"]["tied"]
        """whether the Base used its embedding as head"""
        self.ignore: tuple[str, ...] = tuple(certificate.get("ignored", {}).get("patterns", ()))
        """patterns, given at extraction, of tensors that only one side may hold"""
        self._tensors: dict[str, dict[str, Any]] = certificate["tensors"]
        self._weights = weights

    @property
    def recorded(self) -> dict[str, Any]:
        """What a recipe says of it."""
        return {"digest": self.digest}

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folders that are read."""
        return (self.path,)

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def norm(self, name: str) -> float:
        """The Frobenius norm of a tensor's delta, as certified."""
        return float(self._tensors[name]["norm"])

    def read(self, name: str) -> np.ndarray:
        """The whole delta of one tensor, float32; the same bits as its parts."""
        whole = np.empty(math.prod(self.shape(name)), np.float32)
        for start, part in self.chunks(name):
            whole[start : start + part.size] = part
        return whole.reshape(self.shape(name))

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(start, flat float32 part)`, `step(shape)` elements at a time; a part may be overwritten by the next.

        Raises DeltaError when the bytes do not match the certificate, at the latest at the end of the pass.
        """
        form, shape = self._tensors[name]["form"], self.shape(name)
        stride, size = step(shape), math.prod(shape)
        if form == "plain":
            yield from self._weights[DENSE].chunks(name, stride, hashed=True)
            self._verify(DENSE, name, self._tensors[name]["digest"])
        elif form == "frames":
            yield from self._frames(name, stride, size)
        else:
            yield from self._products(name, stride, size)

    def parts(self, name: str) -> Callable[[int], np.ndarray]:
        """Parts in any order: a function from a part's number to its flat float32 elements, the same as `chunks` gives.

        For rows that are needed out of order. The stored bytes are verified first. Raises DeltaError.
        """
        entry, shape = self._tensors[name], self.shape(name)
        stride, size = step(shape), math.prod(shape)
        if entry["form"] == "factors":
            left, right = self._factors(name)
            rows = stride // right.shape[1]

            def product(number: int) -> np.ndarray:
                block = left[number * rows : (number + 1) * rows].astype(np.float64)
                values: np.ndarray = (block @ right).astype(np.float32).reshape(-1)
                return values

            return product
        weights = self._weights[DENSE]
        self._verify(DENSE, name, entry["digest"])

        def plain(number: int) -> np.ndarray:
            values = np.empty(min(stride, size - number * stride), np.float32)
            weights.read_into(name, number * stride, values)
            return values

        if entry["form"] == "plain":
            return plain
        starts = [0]
        for start in range(0, size, stride):
            starts.append(self._frame(name, starts[-1], min(stride, size - start), None))
        self._require_end(name, starts[-1])

        def frame(number: int) -> np.ndarray:
            values = np.empty(min(stride, size - number * stride), np.float32)
            self._frame(name, starts[number], values.size, values)
            return values

        return frame

    def _frames(self, name: str, stride: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
        values, end, sha = np.empty(min(stride, size), np.float32), 0, hashlib.sha256()
        for start in range(0, size, stride):
            part = values[: min(stride, size - start)]
            end = self._frame(name, end, part.size, part, sha)
            yield start, part
        self._require_end(name, end)
        self._compare(DENSE, name, f"sha256:{sha.hexdigest()}", self._tensors[name]["digest"])

    def _frame(self, name: str, start: int, elements: int, out: np.ndarray | None, sha: Any = None) -> int:
        """Decode the frame at byte `start` of a stored tensor into `out`; returns where the next one starts."""
        weights, where = self._weights[DENSE], f"{self.path / DENSE}: tensor {name}"
        size = weights.info(name).size
        if start + HEAD.size > size:
            raise DeltaError(f"{where}: {size} bytes, a frame is wanted at {start}; fetch or extract it again")
        head = np.empty(HEAD.size, np.uint8)
        weights.read_into(name, start, head)
        length = body_bytes(head.tobytes(), elements, where)
        end = start + HEAD.size + length
        if end > size:
            raise DeltaError(f"{where}: {size} bytes, a frame reaches to {end}; fetch or extract it again")
        if out is not None:
            body = scratch.array("body", length, np.uint8)
            weights.read_into(name, start + HEAD.size, body)
            if sha is not None:
                sha.update(head)
                sha.update(body)
            decode(head.tobytes(), body.data, out, where)
        return end

    def _require_end(self, name: str, end: int) -> None:
        if end != (size := self._weights[DENSE].info(name).size):
            raise DeltaError(
                f"{self.path / DENSE}: tensor {name}: {size} bytes, its frames end at {end}; fetch it again"
            )

    def _products(self, name: str, stride: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
        left, right = self._factors(name)
        columns = right.shape[1]
        rows = stride // columns
        taken = rows * max(1, min(-(-_TALL // rows), _WIDE // stride))  # of several parts at once
        wide = np.empty(min(taken, len(left)) * columns)  # no scratch: products of several deltas are read in turn
        values = np.empty(min(stride, size), np.float32)
        for first in range(0, len(left), taken):
            block = left[first : first + taken]
            tall = scratch.array("left", block.size, np.float64).reshape(block.shape)
            np.copyto(tall, block)
            product = wide[: len(block) * columns]
            np.matmul(tall, right, out=product.reshape(len(block), columns))
            for start in range(0, product.size, stride):
                part = values[: min(stride, product.size - start)]
                np.copyto(part, product[start : start + part.size], casting="same_kind")
                yield first * columns + start, part

    def _factors(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, rank), float32, and (rank, columns), float64 and scaled; verified.

        The product is summed in float64 and rounded once to float32: matrix libraries sum in different orders, and the
        digest of a grafted model must not depend on which one, or how many threads, a machine has.
        """
        entry, weights = self._tensors[name], self._weights[FACTORS]
        a, left = (weights.read(f"{name}.{side}", hashed=True) for side in ("lora_A", "lora_B"))
        self._verify(FACTORS, f"{name}.lora_A", entry["digest_a"])
        self._verify(FACTORS, f"{name}.lora_B", entry["digest_b"])
        return left, np.multiply(a, entry["scaling"], dtype=np.float64)

    def verify(self, known: Mapping[tuple[str, int, int], str] = NOTHING_KNOWN) -> None:
        """Hold every stored tensor against the certificate. Raises DeltaError naming the first that differs.

        `known` are digests of pieces of the files that their writer vouches for, by (file name, offset, bytes): a
        tensor that is one of them is not read.
        """
        for model in self._weights.values():
            places = {name: model.info(name) for name in model.names}
            keys = {name: (info.file.name, info.offset, info.nbytes) for name, info in places.items()}
            model.add_digests({name: known[key] for name, key in keys.items() if key in known})
        with ThreadPoolExecutor(WORKERS) as pool:
            for _ in pool.map(self._verify_entry, self._tensors):
                pass

    def _verify_entry(self, name: str) -> None:
        entry = self._tensors[name]
        if entry["form"] == "factors":
            self._verify(FACTORS, f"{name}.lora_A", entry["digest_a"])
            self._verify(FACTORS, f"{name}.lora_B", entry["digest_b"])
        else:
            self._verify(DENSE, name, entry["digest"])

    def base_sample(self) -> dict[str, np.ndarray]:
        """A few values of every tensor of the Base, float32, at the positions `sample_positions` names."""
        model = self._weights[BASE]
        names = (name for name in model.names if name.startswith(SAMPLE))
        return {name.removeprefix(SAMPLE): model.read(name).astype(np.float32) for name in names}

    def base_token_marks(self) -> np.ndarray | None:
        """uint64 by token id of the Base's vocabulary (checkpoint.token_marks); None when it had no tokenizer.json."""
        model = self._weights[BASE]
        return model.read(MARKS) if MARKS in model else None

    def _verify(self, file: str, name: str, expected: str) -> None:
        self._compare(file, name, self._weights[file].tensor_digest(name), expected)

    def _compare(self, file: str, name: str, found: str, expected: str) -> None:
        if found != expected:
            raise DeltaError(
                f"{self.path / file}: tensor {name} is {found}, {CERTIFICATE} says {expected}; extract it again"
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
        raise DeltaError(
            f"{file}: delta format {certificate.get('format')!r}, this version reads {FORMAT}; extract the delta again"
        )
    if canonical_json(certificate) != data:
        raise DeltaError(f"{file}: not canonical JSON, so it was edited; fetch or extract it again")
    try:
        if certificate["kind"] not in KINDS:
            raise DeltaError(f"{file}: kind {certificate['kind']!r}, known are {', '.join(KINDS)}")
        base = certificate["base"]
        _ = base["digest"], base["tokenizer_digest"], base["tied"]
        expected: dict[str, Layout] = {DENSE: {}, FACTORS: {}}
        for name, entry in certificate["tensors"].items():
            _expect(expected, name, entry, file)
        sample = base["sample"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DeltaError(f"{file}: damaged certificate: {error!r}; fetch or extract it again") from None
    weights = {name: open_safetensors(path / name) for name, wanted in expected.items() if wanted}
    for name, model in weights.items():
        found: Layout = {n: (model.info(n).dtype, model.info(n).shape) for n in model.names}
        free = {n for n, (_, shape) in expected[name].items() if shape is None}  # frames have any length
        _hold(path / name, found | {n: (found[n][0], None) for n in free & found.keys()}, expected[name])
    weights[BASE] = open_safetensors(path / BASE)
    if (digest := file_digest(path / BASE)) != sample:
        raise DeltaError(f"{path / BASE}: is {digest}, {CERTIFICATE} says {sample}; fetch or extract it again")
    return Delta(path, certificate, bytes_digest(data), weights)


def _expect(expected: dict[str, Layout], name: str, entry: dict[str, Any], file: Path) -> None:
    """Add what the weight files must hold for this entry. Raises KeyError, TypeError or ValueError if damaged."""
    shape = tuple(int(n) for n in entry["shape"])
    if entry["form"] == "factors":
        rows, columns = shape
        _ = entry["digest_a"], entry["digest_b"], float(entry["scaling"])
        expected[FACTORS] |= {
            f"{name}.lora_A": ("F32", (entry["rank"], columns)),
            f"{name}.lora_B": ("F32", (rows, entry["rank"])),
        }
    elif entry["form"] in ("plain", "frames"):
        _ = entry["digest"]
        expected[DENSE][name] = ("F32", shape) if entry["form"] == "plain" else ("U8", None)
    else:
        raise DeltaError(f"{file}: tensor {name} has form {entry['form']!r}, known are factors, frames and plain")


def _hold(file: Path, found: Layout, expected: Layout) -> None:
    if found != expected:
        odd = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise DeltaError(
            f"{file}: tensor {odd} is {found.get(odd)}, {CERTIFICATE} says {expected.get(odd)}; extract it again"
        )


def sample_positions(size: int) -> np.ndarray:
    """Flat positions at which a tensor of `size` elements is sampled: four runs of 16, evenly spread; all if fewer."""
    if size <= 64:
        return np.arange(size)
    starts = np.linspace(0, size - 16, 4).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(16))


def rounded(norm: float) -> float:
    """Nine digits: sums in float64 agree that far on every machine, and the delta's digest covers the norms."""
    return float(f"{norm:.9g}")
