"""The bytes of docs/delta-format.md: a two-tensor delta of each kind, and the reader printed on the page."""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zstandard
from safetensors.numpy import load_file, save_file

from shadowft_core.delta import Storage, extract, open_delta
from shadowft_core.delta.frames import body_bytes
from shadowft_core.errors import DeltaError
from shadowft_core.files import canonical_json
from tests.fixtures.models import write_model

BF16 = np.dtype(ml_dtypes.bfloat16)
PAGE = Path(__file__).parents[1] / "docs" / "delta-format.md"
NAMES = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def models(folder: Path) -> tuple[Path, Path]:
    """A Base and a tuned model of two tensors, computed without a random number generator."""
    grid = (np.arange(96, dtype=np.float32) - 48).reshape(8, 12) / 64
    moved = grid + np.where(np.arange(96).reshape(8, 12) % 3 == 0, np.float32(2**-11), np.float32(0))
    moved[0, 0] = grid[0, 0] * np.float32(1.5)
    moved[7, 11] = 1e-6
    norm = np.ones(12, np.float32)
    base = {NAMES[0]: grid.astype(BF16), NAMES[1]: norm.astype(BF16)}
    tuned = {NAMES[0]: moved.astype(BF16), NAMES[1]: (norm + np.float32(2**-7)).astype(BF16)}
    return write_model(folder / "base", base), write_model(folder / "tuned", tuned)


def adapter(folder: Path) -> Path:
    """A LoRA adapter of rank 2 for the first tensor."""
    folder.mkdir()
    module = "base_model.model." + NAMES[0].removesuffix(".weight")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    a, b = np.arange(24, dtype=np.float32).reshape(2, 12) / 256, np.arange(16, dtype=np.float32).reshape(8, 2) / 512
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    return folder


def make(folder: Path, kind: str) -> Path:
    base, tuned = models(folder)
    out = folder / "delta"
    if kind == "lora":
        extract(base, adapter(folder / "adapter"), out)
    elif kind == "lowrank":  # one entry changes: every library computes its singular vectors exactly
        arrays = load_file(base / "model.safetensors")
        arrays[NAMES[0]][2, 3] += 0.125
        arrays[NAMES[1]][5] += 0.5
        extract(base, write_model(folder / "sparse", arrays), out, "float32", lowrank=0.5)
    else:
        storage: Storage = kind  # type: ignore[assignment]
        extract(base, tuned, out, storage)
    return out


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in sorted(folder.iterdir())}


PINNED: dict[str, dict[str, str]] = {
    "compressed": {
        "base.safetensors": "7baa16406dee6b23",
        "delta.json": "37273d68f2c76096",
        "dense.safetensors": "b4b29792aa877057",
    },
    "bfloat16": {
        "base.safetensors": "7baa16406dee6b23",
        "delta.json": "438e74e59db46a2f",
        "dense.safetensors": "79208927e48989f7",
    },
    "float32": {
        "base.safetensors": "7baa16406dee6b23",
        "delta.json": "9547e7e1817ae218",
        "dense.safetensors": "7cf2f9688d5124e0",
    },
    "lora": {
        "base.safetensors": "7baa16406dee6b23",
        "delta.json": "85e392ccb7a8941b",
        "factors.safetensors": "2640d54237a350a0",
    },
    "lowrank": {
        "base.safetensors": "7baa16406dee6b23",
        "delta.json": "5e4eb7b0376e61d8",
        "dense.safetensors": "95a1bdde70019457",
        "factors.safetensors": "ab4b9bf20bf85043",
    },
}


@pytest.mark.parametrize("kind", list(PINNED))
def test_every_kind_has_the_recorded_bytes(tmp_path: Path, kind: str) -> None:
    delta = make(tmp_path, kind)
    certificate = json.loads((delta / "delta.json").read_bytes())
    certificate["created_by"] = "shadowft"  # the only field that a release changes
    (delta / "delta.json").write_bytes(canonical_json(certificate))
    assert digests(delta) == PINNED[kind]


def reader() -> Any:
    """Run the lines printed on the page."""
    code = re.search(r"fifteen lines\n\n((?:    .*\n)+)", PAGE.read_text(encoding="utf-8"))
    assert code
    lines = [line.removeprefix("    ") for line in code[1].splitlines()]
    assert len(lines) <= 15
    space: dict[str, Any] = {"struct": struct, "np": np, "zstandard": zstandard}
    exec("\n".join(lines), space)
    return space["part"]


@pytest.mark.parametrize("storage", ["compressed", "bfloat16"])
def test_the_printed_reader_works(tmp_path: Path, storage: str) -> None:
    delta = make(tmp_path, storage)
    opened, stored = open_delta(delta), load_file(delta / "dense.safetensors")
    for name in NAMES:
        np.testing.assert_array_equal(reader()(stored[name].tobytes(), 0, BF16), opened.read(name).reshape(-1))


def test_all_storages_decode_to_the_same_bits(tmp_path: Path) -> None:
    found = {}
    for storage in ("compressed", "bfloat16", "float32"):
        (tmp_path / storage).mkdir()
        delta = open_delta(make(tmp_path / storage, storage))
        found[storage] = [delta.read(name).tobytes() for name in NAMES]
    assert found["compressed"] == found["bfloat16"] == found["float32"]


def with_frame(delta: Path, change: Any) -> None:
    """Change the bytes of the first tensor, and its digest to match: a reader must check more than the digest."""
    file = delta / "dense.safetensors"
    tensors = load_file(file)
    tensors[NAMES[0]] = np.frombuffer(change(bytearray(tensors[NAMES[0]].tobytes())), np.uint8)
    save_file(tensors, file)
    certificate = json.loads((delta / "delta.json").read_bytes())
    digest = f"sha256:{hashlib.sha256(tensors[NAMES[0]].tobytes()).hexdigest()}"
    certificate["tensors"][NAMES[0]]["digest"] = digest
    (delta / "delta.json").write_bytes(canonical_json(certificate))


def patched(at: int, value: int) -> Any:
    def change(data: bytearray) -> bytearray:
        data[at] = value
        return data

    return change


@pytest.mark.parametrize("storage", ["compressed", "bfloat16"])
@pytest.mark.parametrize(
    "change",
    [
        patched(0, 3),  # an unknown word
        patched(1, 2),  # an unknown codec
        patched(2, 1),  # the reserved bytes
        patched(4, 95),  # another number of elements
        patched(8, 255),  # more bytes than there are
        patched(11, 255),
        patched(15, 255),  # more exceptions than elements
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"",
    ],
)
def test_a_malformed_frame_is_refused(tmp_path: Path, storage: str, change: Any) -> None:
    delta = make(tmp_path, storage)
    with_frame(delta, change)
    with pytest.raises(DeltaError):
        open_delta(delta).read(NAMES[0])
    with pytest.raises(DeltaError):
        open_delta(delta).parts(NAMES[0])(0)


def test_an_exception_outside_its_part_is_refused(tmp_path: Path) -> None:
    delta = make(tmp_path, "bfloat16")

    def far(data: bytearray) -> bytearray:
        *_, words, exceptions = struct.unpack("<BBHIII", data[:16])
        assert exceptions
        data[16 + words : 20 + words] = struct.pack("<I", 96)
        return data

    with_frame(delta, far)
    with pytest.raises(DeltaError, match="exceptions do not rise within 96 elements"):
        open_delta(delta).read(NAMES[0])


def test_decompression_stops_at_the_declared_size(tmp_path: Path) -> None:
    delta = make(tmp_path, "compressed")
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(100_000_000))

    def explode(data: bytearray) -> bytes:
        return struct.pack("<BBHIII", 1, 1, 0, 96, len(bomb), 0) + bomb

    with_frame(delta, explode)
    with pytest.raises(DeltaError):
        open_delta(delta).read(NAMES[0])


def test_a_short_frame_does_not_reuse_the_one_before(tmp_path: Path) -> None:
    delta = make(tmp_path, "compressed")
    short = zstandard.ZstdCompressor().compress(bytes(range(1, 101)))
    with_frame(delta, lambda data: struct.pack("<BBHIII", 1, 1, 0, 96, len(short), 0) + short)
    with pytest.raises(DeltaError, match=r"does not decompress \(100 bytes of 192\)"):
        open_delta(delta).read(NAMES[0])


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ((1, 0, 0, 96, 192, 0), 192),
        ((1, 0, 0, 96, 191, 0), None),
        ((0, 1, 0, 96, 9, 0), None),  # zeros have no words
        ((2, 0, 0, 96, 384, 1), None),  # float32 has no exceptions
        ((3, 0, 0, 96, 0, 0), None),
        ((1, 0, 0, 96, 193, 0), None),  # raw words take no more than their size
        ((2, 0, 0, 96, 384, 0), 384),
        ((2, 0, 0, 96, 385, 0), None),
        ((1, 1, 0, 96, 192 + 1024, 96), 192 + 1024 + 8 * 96),
        ((1, 1, 0, 96, 193 + 1024, 0), None),  # a codec does not make them much longer
        ((1, 1, 0, 96, 0, 97), None),
        ((0, 0, 0, 96, 1, 0), None),
        ((1, 1, 0, 95, 0, 0), None),
    ],
)
def test_a_frame_head_with_too_many_bytes_is_refused(head: tuple[int, ...], body: int | None) -> None:
    packed = struct.pack("<BBHIII", *head)
    if body is None:
        with pytest.raises(DeltaError, match=r"^here: [0-9a-f]{32} is not the head of a frame of 96 elements"):
            body_bytes(packed, 96, "here")
    else:
        assert body_bytes(packed, 96, "here") == body


@pytest.mark.parametrize("version", [1, 3, "2", None])
def test_another_version_is_refused(tmp_path: Path, version: object) -> None:
    delta = make(tmp_path, "float32")
    certificate = json.loads((delta / "delta.json").read_bytes())
    certificate["format"] = version
    (delta / "delta.json").write_bytes(canonical_json(certificate))
    with pytest.raises(DeltaError, match="expected 2; extract"):
        open_delta(delta)


def test_interleaved_products_in_blocks_equal_whole_products(tmp_path: Path) -> None:
    """Blocks are taller than parts, the last of each is short, and two deltas share no buffer."""
    random, (rows, columns), rank = np.random.default_rng(7), (700, 5632), 3
    base = write_model(tmp_path / "base", {NAMES[0]: np.ones((rows, columns), BF16)})
    expected, opened = [], []
    for number in range(2):
        shapes = (rank, columns), (rows, rank)  # short values, so that float64 sums are exact in any order
        a, b = (random.standard_normal(shape).astype(BF16).astype(np.float32) for shape in shapes)
        folder = tmp_path / f"adapter{number}"
        folder.mkdir()
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["up_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        module = "base_model.model." + NAMES[0].removesuffix(".weight")
        save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / "adapter_model.safetensors")
        extract(base, folder, tmp_path / f"delta{number}")
        opened.append(open_delta(tmp_path / f"delta{number}"))
        whole = b.astype(np.float64) @ (a.astype(np.float64) * 2)
        expected.append(whole.astype(np.float32))
        norm = opened[number].certificate["tensors"][NAMES[0]]["norm"]
        assert norm == pytest.approx(np.linalg.norm(whole), rel=1e-8)
    found = np.empty((2, rows * columns), np.float32)
    parts = [delta.parts(NAMES[0]) for delta in opened]
    for number, both in enumerate(zip(*(delta.chunks(NAMES[0]) for delta in opened), strict=True)):
        for place, part, (start, values) in zip(found, parts, both, strict=True):
            assert values.size == min(128 * 1024 // columns * columns, rows * columns - start)
            place[start : start + values.size] = values
            assert np.array_equal(values, part(number))
    assert np.array_equal(found, np.reshape(expected, found.shape))


def test_a_damaged_factor_is_refused_when_it_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    name = "model.layers.0.mlp.up_proj.weight"
    base = rng.standard_normal((16, 8)).astype(np.float32)
    tuned = base + 0.01 * np.outer(rng.standard_normal(16), rng.standard_normal(8)).astype(np.float32)
    folders = [write_model(tmp_path / role, {name: array}) for role, array in (("base", base), ("tuned", tuned))]
    extract(*folders, tmp_path / "delta", lowrank=0.1)
    file = tmp_path / "delta/factors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    delta = open_delta(tmp_path / "delta")
    for read in (delta.read, delta.parts):
        with pytest.raises(DeltaError, match=r"factors\.safetensors: tensor .* is sha256:.*, delta\.json has sha256:"):
            read(name)
