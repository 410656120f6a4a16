"""Weights on disk: strict reading, complete writing, digests that depend only on the weights."""

import hashlib
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.errors import CheckpointError
from shadowft_core.weights import INDEX, SINGLE, build_header, open_checkpoint, write_checkpoint, write_safetensors
from tests.fixtures.models import Pair, write_model

BF16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.standard_normal((300, 700)).astype(ml_dtypes.bfloat16),
    "b.weight": RNG.standard_normal(5).astype(np.float32),
    "c.steps": np.array(7, np.int64),
    "d.empty": np.zeros((0, 4), np.float16),
    "e.mask": RNG.standard_normal((3, 5)) > 0,
}


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def file_with(path: Path, entries: str, data: bytes = b"") -> Path:
    path.mkdir()
    text = entries.encode()
    (path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_the_safetensors_library_reads_what_we_write(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = write_model(tmp_path / "m", TENSORS)
    loaded = load_file(folder / SINGLE)
    assert {n: (a.dtype, a.shape, bits(a)) for n, a in loaded.items()} == {
        n: (a.dtype, a.shape, bits(a)) for n, a in TENSORS.items()
    }


def test_we_read_what_transformers_writes(tiny_llama_pair: Pair) -> None:
    from safetensors import safe_open

    model = open_checkpoint(tiny_llama_pair.base)
    with safe_open(tiny_llama_pair.base / SINGLE, "numpy") as file:
        assert set(file.keys()) == set(model.names)
        for name in model.names:
            assert bits(file.get_tensor(name)) == bits(model.read(name))
    assert model.info("model.norm.weight").dtype == "BF16"
    assert Path("tokenizer.json") in model.other_files()
    assert model.config["model_type"] == "llama"


@pytest.mark.parametrize("shards", [2, 4])
def test_digest_does_not_depend_on_the_shard_layout(tmp_path: Path, shards: int) -> None:
    one, many = write_model(tmp_path / "one", TENSORS), write_model(tmp_path / "many", TENSORS, shards)
    assert open_checkpoint(one).digest() == open_checkpoint(many).digest()
    assert open_checkpoint(one).names != open_checkpoint(many).names, (
        "the layouts are equal, so the test proves nothing"
    )


def test_digest_is_as_documented(tmp_path: Path) -> None:
    def sha(data: bytes) -> str:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    names = {"a.weight": "BF16", "b.weight": "F32", "c.steps": "I64", "d.empty": "F16", "e.mask": "BOOL"}
    facts = {n: [names[n], list(a.shape), sha(bits(a))] for n, a in TENSORS.items()}
    expected = sha(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    model = open_checkpoint(write_model(tmp_path / "m", TENSORS))
    assert model.digest() == expected
    assert model.tensor_digest("a.weight") == facts["a.weight"][2]


def test_chunks_add_up_to_the_tensor(tmp_path: Path) -> None:
    model = open_checkpoint(write_model(tmp_path / "m", TENSORS))
    for elements in (1000, 210_000, 10**9):
        parts = [(start, part.copy()) for start, part in model.chunks("a.weight", elements, hashed=True)]
        assert [start for start, _ in parts] == list(range(0, 210_000, elements))
        assert bits(np.concatenate([part for _, part in parts])) == bits(TENSORS["a.weight"])


A = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
MALFORMED = {
    "duplicate key": (f"{{{A},{A}}}", 8, "duplicate key"),
    "duplicate inner key": ('{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', 8, "duplicate key"),
    "overlap": (f'{{{A},"b":{{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}}}', 12, "overlap"),
    "hole": (f'{{{A},"b":{{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}}}', 16, "holes"),
    "not from the start": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', 8, "holes"),
    "size against shape": ('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', 8, "require 12"),
    "negative shape": ('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', 8, "natural numbers"),
    "true as a size": ('{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', 1, "natural numbers"),
    "huge shape": ('{"a":{"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]}}', 8, "require"),
    "unknown dtype": ('{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', 1, "F4"),
    "extra field": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}', 1, "not exactly"),
    "metadata": ('{"__metadata__":{"a":1}}', 0, "__metadata__"),
    "list": ("[]", 0, "start with"),
    "leading space": (" {}", 0, "start with"),
    "no JSON": ("{nonsense", 0, "malformed"),
    "deep nesting": ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", 0, "malformed"),
    "trailing bytes": (f"{{{A}}}", 9, "describes"),
    "truncated tensor": (f"{{{A}}}", 7, "describes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused(tmp_path: Path, case: str) -> None:
    entries, size, message = MALFORMED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(file_with(tmp_path / "m", entries, bytes(size)))
    assert SINGLE in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1234", "expected at least 8"),
        (struct.pack("<Q", 2**63) + b"{}", "the limit is"),
        (struct.pack("<Q", 100) + b"{}", "truncated"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "malformed"),
    ],
)
def test_a_broken_prefix_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / SINGLE).write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, BF16)})
    file, rng = folder / SINGLE, np.random.default_rng(0)
    intact, outcomes = file.read_bytes(), {"read": 0, "refused": 0}
    for _ in range(3000):
        data = bytearray(intact)
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(0, len(data))
            match rng.integers(0, 3):
                case 0:
                    data[at] = rng.choice([*b'0123456789"{}[],:- \\u', 0, 255])
                case 1:
                    del data[at : at + rng.integers(1, 9)]
                case 2:
                    data[at:at] = intact[at : at + rng.integers(1, 30)]
        file.write_bytes(data)
        try:
            model = open_checkpoint(folder)
            assert sum(model.read(name).nbytes for name in model.names) <= len(data)
            model.digest()
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_many_tensors_are_read_in_linear_time(tmp_path: Path) -> None:
    entries = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(100_000))
    start = time.process_time()
    assert len(open_checkpoint(file_with(tmp_path / "m", f"{{{entries}}}")).names) == 100_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", ".x.safetensors", 3],
)
def test_an_index_may_not_name_a_file_outside_the_folder(tmp_path: Path, shard: Any) -> None:
    write_checkpoint(tmp_path, [("w", np.zeros(2, np.float32))])
    (tmp_path / SINGLE).rename(tmp_path / "outside.safetensors")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CheckpointError, match="plain"):
        open_checkpoint(inner)


def test_index_and_files_must_agree(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", TENSORS, shards=2)
    index = json.loads((folder / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))
    for change, message in [
        ({"a.weight": second}, "the index names"),
        ({"ghost": first}, "in no file"),
        ({"a.weight": "model-00009-of-00009.safetensors"}, "is missing"),
    ]:
        (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | change}))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)
    (folder / INDEX).write_text(json.dumps(index))
    write_checkpoint(folder, [("stray", np.zeros(1, np.float32))])
    with pytest.raises(CheckpointError, match="no index names"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", TENSORS, shards=2)
    second = sorted(folder.glob("*.safetensors"))[1]
    second.unlink()
    write_checkpoint(folder, TENSORS.items())
    (folder / SINGLE).rename(second)
    with pytest.raises(CheckpointError, match="is in"):
        open_checkpoint(folder)


def test_pickled_weights_are_refused_and_never_copied(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match=r"expected safetensors, found only pytorch_model\.bin"):
        open_checkpoint(tmp_path)
    write_checkpoint(tmp_path, TENSORS.items())
    for name in ("modeling.py", "optimizer.pt", "config.json", "tokenizer.model", ".hidden"):
        (tmp_path / name).write_text("{}")
    assert [str(file) for file in open_checkpoint(tmp_path).other_files()] == ["config.json", "tokenizer.model"]


def test_a_file_that_shrinks_after_opening_is_noticed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", TENSORS)
    model = open_checkpoint(folder)
    os.truncate(folder / SINGLE, (folder / SINGLE).stat().st_size - 1000)
    with pytest.raises(CheckpointError, match="ends at byte"):
        model.digest()


@pytest.mark.parametrize("sizes", [[3], [9], [8, 2]])
def test_a_producer_must_yield_exactly_the_tensor(tmp_path: Path, sizes: list[int]) -> None:
    header = build_header({"w": ("F32", (2, 4))})
    with pytest.raises(CheckpointError, match=r"tensor w.*(exceed|expected)"):
        write_safetensors(tmp_path / SINGLE, header, lambda _: iter([np.zeros(n, np.float32) for n in sizes]))
