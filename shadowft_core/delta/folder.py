"""A stored delta, read as float32 tensors and verified against its certificate."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.delta.certificate import Layout, read_certificate
from shadowft_core.delta.factors import Factors
from shadowft_core.delta.format import BASE, CERTIFICATE, DENSE, FACTORS, MARKS, SAMPLE, SAMPLED, step
from shadowft_core.delta.frames import HEAD, body_bytes, decode
from shadowft_core.errors import DeltaError
from shadowft_core.files import WORKERS, file_digest
from shadowft_core.kernels.scratch import scratch
from shadowft_core.limits import TOKENS
from shadowft_core.weights import FLOATS, Checkpoint, Ignored, open_safetensors
from shadowft_core.weights.entries import require_own_files

NO_DIGESTS: Mapping[tuple[str, int, int], str] = {}
_TALL = 128  # rows of a product computed together: matrix libraries are slow on fewer
_WIDE = 1 << 20  # maximum float64 elements of that product, unless one part has more


class Delta:
    """A delta folder, opened by `open_delta`: a `DeltaSource`. Tensors are verified when they are read."""

    is_stored = True

    def __init__(self, path: Path, certificate: dict[str, Any], digest: str, weights: dict[str, Checkpoint]) -> None:
        self.path = path
        self.certificate = certificate
        self.digest = digest
        self.kind: str = certificate["kind"]
        self.base_digest: str = certificate["base"]["digest"]
        self.tokenizer_digest: str | None = certificate["base"]["tokenizer_digest"]
        self.base_tied: bool = certificate["base"]["tied"]
        self.ignore: tuple[str, ...] = tuple(certificate.get("ignored", {}).get("patterns", ()))
        self.ignored: Ignored = {}
        self.trainer: dict[str, Any] | None = certificate.get("trainer")
        self._tensors: dict[str, dict[str, Any]] = certificate["tensors"]
        self._weights = weights

    @property
    def recorded(self) -> dict[str, Any]:
        return {"digest": self.digest}

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def norm(self, name: str) -> float:
        """The Frobenius norm of a tensor's delta, from the certificate."""
        return float(self._tensors[name]["norm"])

    def form(self, name: str) -> str:
        return str(self._tensors[name]["form"])

    def factors(self, name: str) -> Factors | None:
        """The stored factors of a tensor, verified when they are read; None if it has another form."""
        entry = self._tensors[name]
        if entry["form"] != "factors":
            return None

        def read(side: str, digest: str) -> np.ndarray:
            array = self._weights[FACTORS].read(f"{name}.{side}", hashed=True)
            self._verify(FACTORS, f"{name}.{side}", entry[digest])
            return array

        left, right = (lambda: read("lora_B", "digest_b")), (lambda: read("lora_A", "digest_a"))
        return Factors(entry["rank"], entry["scaling"], left, right)

    def differences(self, name: str) -> None:
        """None: the delta itself is stored."""

    def read(self, name: str) -> np.ndarray:
        """The whole delta of one tensor, float32; the same bits as its parts."""
        whole = np.empty(math.prod(self.shape(name)), np.float32)
        for start, part in self.chunks(name):
            whole[start : start + part.size] = part
        return whole.reshape(self.shape(name))

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield `(start, flat float32 part)`. Raises DeltaError, at the latest at the end, when a digest differs."""
        form, shape = self._tensors[name]["form"], self.shape(name)
        stride, size = step(shape), math.prod(shape)
        if (factors := self.factors(name)) is not None:
            yield from self._products(factors, stride, size)
        elif form == "plain":
            yield from self._weights[DENSE].chunks(name, stride, hashed=True)
            self._verify(DENSE, name, self._tensors[name]["digest"])
        else:
            yield from self._frames(name, stride, size)

    def parts(self, name: str) -> Callable[[int], np.ndarray]:
        """Parts by number, in any order; the stored bytes are verified first. Raises DeltaError."""
        entry, shape = self._tensors[name], self.shape(name)
        stride, size = step(shape), math.prod(shape)
        if (factors := self.factors(name)) is not None:
            left, right = _scaled(factors)
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
            raise DeltaError(f"{where}: {size} bytes, expected a frame at byte {start}; fetch or extract it again")
        head = np.empty(HEAD.size, np.uint8)
        weights.read_into(name, start, head)
        length = body_bytes(head.tobytes(), elements, where)
        end = start + HEAD.size + length
        if end > size:
            raise DeltaError(f"{where}: {size} bytes, but a frame ends at byte {end}; fetch or extract it again")
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
                f"{self.path / DENSE}: tensor {name}: {size} bytes, but its frames end at {end}; fetch it again"
            )

    def _products(self, factors: Factors, stride: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
        left, right = _scaled(factors)
        columns = right.shape[1]
        rows = stride // columns
        taken = rows * max(1, min(-(-_TALL // rows), _WIDE // stride))  # several parts together
        wide = np.empty(min(taken, len(left)) * columns)  # not scratch: several deltas are read in turn
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

    def verify(self, known: Mapping[tuple[str, int, int], str] = NO_DIGESTS) -> None:
        """Compare every stored tensor with the certificate. Raises DeltaError naming the first that differs.

        `known` are digests that were computed when the files were written, by (file name, offset, bytes). A tensor that
        is such a piece of a file is not read.
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
        """A few values of every float tensor of the Base, float32, flat, at `sample_positions`."""
        model = self._weights[BASE]
        names = (name for name in model.names if name.startswith(SAMPLE))
        return {name.removeprefix(SAMPLE): model.read(name).astype(np.float32) for name in names}

    def base_token_marks(self) -> np.ndarray | None:
        """uint64 by token id of the Base's vocabulary (weights.token_marks); None when it had no tokenizer.json."""
        model = self._weights[BASE]
        return model.read(MARKS) if MARKS in model else None

    def _verify(self, file: str, name: str, expected: str) -> None:
        self._compare(file, name, self._weights[file].tensor_digest(name), expected)

    def _compare(self, file: str, name: str, found: str, expected: str) -> None:
        if found != expected:
            raise DeltaError(
                f"{self.path / file}: tensor {name} is {found}, {CERTIFICATE} has {expected}; extract it again"
            )


def _scaled(factors: Factors) -> tuple[np.ndarray, np.ndarray]:
    """(rows, rank), float32, and (rank, columns), float64 and scaled.

    The product is summed in float64 and rounded once to float32: matrix libraries sum in different orders, and the
    digest of a grafted model must not depend on the library or its number of threads.
    """
    right = factors.right()
    return factors.left(), np.multiply(right, factors.scaling, dtype=np.float64)


def open_delta(path: Path) -> Delta:
    """Open a delta folder and check that its certificate matches its weight files.

    Raises DeltaError on another format version, a certificate that is not canonical, tensors that are missing, extra
    or of another shape, and an entry that is not a file of its own.
    """
    require_own_files(path, DeltaError)
    fields, digest, expected = read_certificate(path)
    weights = {name: open_safetensors(path / name) for name, layout in expected.items() if layout}
    for name, model in weights.items():
        held: Layout = {n: (model.info(n).dtype, model.info(n).shape) for n in model.names}
        free = {n for n, (_, shape) in expected[name].items() if shape is None}  # frames have any length
        _require_equal(path / name, held | {n: (held[n][0], None) for n in free & held.keys()}, expected[name])
    weights[BASE] = open_safetensors(path / BASE)
    _require_sample(weights[BASE], path / BASE, fields["tensors"])
    sample = fields["base"]["sample"]
    if (found := file_digest(path / BASE)) != sample:
        raise DeltaError(f"{path / BASE}: is {found}, {CERTIFICATE} has {sample}; fetch or extract it again")
    return Delta(path, fields, digest, weights)


def _require_sample(base: Checkpoint, file: Path, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise DeltaError unless a file has nothing but token marks and short samples, of every tensor that changed."""
    for name in base.names:
        info, marks = base.info(name), name == MARKS
        flat = len(info.shape) == 1 and info.size <= (TOKENS if marks else SAMPLED)
        if not flat or not (info.dtype == "U64" if marks else name.startswith(SAMPLE) and info.dtype in FLOATS):
            raise DeltaError(
                f"{file}: tensor {name} is {info.dtype} {info.shape}, expected token marks and samples; fetch or "
                "extract it again"
            )
    for name, entry in tensors.items():
        size = min(math.prod(entry["shape"]), SAMPLED)
        if size and (SAMPLE + name not in base or base.info(SAMPLE + name).size != size):
            raise DeltaError(
                f"{file}: no sample of {size} values of tensor {name}, which {CERTIFICATE} has; fetch or extract "
                "it again"
            )


def _require_equal(file: Path, found: Layout, expected: Layout) -> None:
    if found != expected:
        odd = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise DeltaError(
            f"{file}: tensor {odd} is {found.get(odd)}, {CERTIFICATE} has {expected.get(odd)}; extract it again"
        )
