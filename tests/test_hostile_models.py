"""Hostile model folders: nothing outside the folder is read, nothing takes long, every field has its type."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core import limits
from shadowft_core.errors import CheckpointError
from shadowft_core.loading import load, own_code
from shadowft_core.pair import check_pair
from shadowft_core.pair.tokens import Vocabularies
from shadowft_core.plan.shape import shape_of
from shadowft_core.weights import INDEX, SINGLE, open_checkpoint, open_remote, parse_header, read_vocabulary
from shadowft_core.weights.header import build_header
from shadowft_core.weights.remote import RemoteFiles
from shadowft_core.weights.settings import TokenizerConfig, read_config, read_settings
from tests.fixtures.models import write_model

Act = Callable[[Path], Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models--o--n" / "snapshots" / ("a" * 40), {"w": np.zeros(2, np.float32)})


def link(name: str, target: str) -> Act:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)

    return make


def blob(name: str, content: bytes = b"{}") -> Act:
    """A file as a hub's cache holds it: a link into blobs/."""

    def make(folder: Path) -> None:
        blobs = folder.parent.parent / "blobs"
        blobs.mkdir(exist_ok=True)
        (blobs / "0123abc").write_bytes(content)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(os.path.relpath(blobs / "0123abc", (folder / name).parent))

    return make


def blob_elsewhere(folder: Path) -> None:
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "0").symlink_to("/etc/passwd")
    (folder / "notes.json").symlink_to("../../blobs/0")


def blobs_elsewhere(folder: Path) -> None:
    (folder.parent.parent / "blobs").symlink_to("/etc")
    (folder / "notes.json").symlink_to("../../blobs/passwd")


ENTRIES: dict[str, tuple[Act, str | None]] = {
    "a link out": (
        link("notes.json", "/etc/passwd"),
        "notes.json: a link that leads out of its folder, to /etc/passwd",
    ),
    "a link up": (link("notes.json", "../other.json"), "broken link"),
    "a link out below": (link("additional_chat_templates/a.jinja", "/etc/passwd"), "leads out"),
    "templates elsewhere": (link("additional_chat_templates", "/etc"), "leads out"),
    "a cache's link on": (blob_elsewhere, "leads out"),
    "a cache elsewhere": (blobs_elsewhere, "leads out"),
    "a pipe": (lambda folder: os.mkfifo(folder / "notes.json"), "pipe, socket or device"),
    "a pipe of that name": (lambda folder: os.mkfifo(folder / INDEX), "pipe, socket or device"),
    "a device": (link("notes.json", "/dev/zero"), "pipe, socket or device"),
    "a loop": (link("notes.json", "notes.json"), "broken link"),
    "a link inside": (link("notes.json", "config.json"), None),
    "a cache's link": (blob("notes.json"), None),
    "a cache's link below": (blob("additional_chat_templates/a.jinja"), None),
    "hidden": (link(".git", "/etc"), None),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_every_entry_of_a_model_folder_is_its_own(model: Path, case: str) -> None:
    make, said = ENTRIES[case]
    make(model)
    if said is None:
        assert open_checkpoint(model).other_files()
    else:
        for read in (open_checkpoint, lambda folder: load(object, folder)):
            with pytest.raises(CheckpointError, match=said):
                read(model)


def test_blobs_are_those_of_a_cache(tmp_path: Path) -> None:
    model = write_model(tmp_path / "mine" / "model", {"w": np.zeros(2, np.float32)})
    blob("notes.json")(model)
    with pytest.raises(CheckpointError, match="leads out"):
        open_checkpoint(model)


def header(entries: str) -> bytes:
    return struct.pack("<Q", len(entries)) + entries.encode()


def tensor(name: str, shape: str) -> str:
    return f'{{"{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}'


LONG = {
    "has 50000 dimensions": header(tensor("a", ",".join(["9223372036854775807"] * 50_000))),
    "expected natural numbers, found 9999": header(tensor("a", "9" * 2_000_000)),
    "1100001 times '{'": header(f'{{"a":[{",".join(["{}"] * 1_100_000)}]}}'),
    r"2100001 times '\['": header(f'{{"a":[{",".join(["[]"] * 2_100_000)}]}}'),
    "1999999 times ','": header(f'{{"a":[{",".join(["1"] * 2_000_000)}]}}'),
    "duplicate key 'a+": header(f'{{"{"a" * 5000}":1,"{"a" * 5000}":2}}'),
    "expected natural numbers, found -0": header(tensor("a", "-0")),
    "larger than any file": header('{"a":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}'),
    "none of them a control character": header(tensor("a\x9b", "1")),
    "of 1025 characters": header(tensor("a" * 1025, "1")),
}


@pytest.mark.parametrize("said", LONG)
def test_a_header_is_refused_before_it_takes_long(tmp_path: Path, said: str) -> None:
    raw, path = LONG[said], tmp_path / "m"
    begun = time.thread_time()
    with pytest.raises(CheckpointError, match=f"malformed safetensors header: .*{said}") as caught:
        parse_header(raw, path)
    remote = RemoteFiles({SINGLE: len(raw) + 1}, lambda name, start, length: (raw + b"\0")[start : start + length])
    with pytest.raises(CheckpointError, match="malformed safetensors header"):
        open_remote(path, remote)
    assert time.thread_time() - begun < 1
    assert len(str(caught.value)) < 600


def test_a_header_at_the_limits_is_read(tmp_path: Path) -> None:
    for name, shape in (("a" * 1024, "1"), ("a", ",".join(["1"] * 16))):
        assert list(parse_header(header(tensor(name, shape)), tmp_path)) == [name]
    start = struct.pack("<Q", limits.HEADER_BYTES + 1)
    with pytest.raises(CheckpointError, match="header of 100000001 bytes, the limit is 100000000"):
        open_remote(tmp_path, RemoteFiles({SINGLE: 1 << 30}, lambda name, at, length: start))


def test_a_source_that_sends_fewer_bytes_than_its_header_has(tmp_path: Path) -> None:
    raw = build_header({f"{n}": ("U8", (1,)) for n in range(3000)})
    remote = RemoteFiles({SINGLE: len(raw) + 3000}, lambda name, start, length: raw[start : start + min(length, 150)])
    with pytest.raises(CheckpointError, match="bytes of header, read"):
        open_remote(tmp_path, remote)


def test_an_index_names_no_more_files_than_a_model_can_have(model: Path) -> None:
    names = {f"w{n}": f"{n}.safetensors" for n in range(limits.SHARDS + 1)}
    (model / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match=r"names 10001 files, the limit is 10000"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    "name", ["a.bin", "a\n.safetensors", "a\\b.safetensors", ".a.safetensors", "../a.safetensors", 7]
)
def test_an_index_names_plain_files(model: Path, name: Any) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match=r"tensor 'w' is in .*; expected a plain \*\.safetensors file name"):
        open_checkpoint(model)


def test_a_file_beside_the_weights_has_a_limit(model: Path) -> None:
    with (model / "notes.txt").open("wb") as file:
        file.truncate(limits.SIDE_FILE_BYTES + 1)
    with pytest.raises(CheckpointError, match=r"notes\.txt: 1073741825 bytes, the limit"):
        open_checkpoint(model).other_files()


BAD_FIELDS: list[tuple[str, dict[str, Any] | bytes, str]] = [
    ("config.json", {"vocab_size": -1}, "vocab_size"),
    ("config.json", {"vocab_size": 2**80}, "vocab_size"),
    ("config.json", {"vocab_size": True}, "vocab_size"),
    ("config.json", {"vocab_size": 0}, "vocab_size"),
    ("config.json", {"rope_parameters": 3}, "rope_parameters"),
    ("config.json", {"vision_config": 3}, "vision_config"),
    ("config.json", {"text_config": {"vocab_size": "64"}}, r"text_config\.vocab_size"),
    ("config.json", {"text_config": []}, "text_config"),
    ("config.json", {"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    ("config.json", {"architectures": "Llama"}, "architectures"),
    ("config.json", {"model_type": {}}, "model_type"),
    ("config.json", {"quantization_config": "int4"}, "quantization_config"),
    ("config.json", {"rope_scaling": 3}, "rope_scaling"),
    ("config.json", {"num_hidden_layers": 4097}, "num_hidden_layers is 4097, expected at most 4096"),
    ("config.json", {"vision_config": {"depth": 10**9}}, "depth is 1e"),
    ("config.json", b"{" + b" " * limits.CONFIG_BYTES + b"}", "4194306 bytes, the limit is 4194304"),
    ("tokenizer_config.json", {"chat_template": 7}, "chat_template"),
    ("tokenizer_config.json", {"chat_template": [7]}, "chat_template"),
    ("tokenizer_config.json", {"eos_token": 7}, "eos_token"),
    ("tokenizer_config.json", {"pad_token": 7}, "pad_token"),
    ("tokenizer_config.json", b"[]", "tokenizer_config.json"),
    ("generation_config.json", {"eos_token_id": [-1]}, "eos_token_id"),
    ("generation_config.json", {"eos_token_id": 1 << 24}, "eos_token_id"),
    ("generation_config.json", {"eos_token_id": True}, "eos_token_id"),
    ("tokenizer.json", {"model": {"vocab": "abc"}}, "unknown form"),
    ("tokenizer.json", {"model": {"vocab": [["a", 0], []]}}, "unknown form"),
    ("tokenizer.json", {"model": {"vocab": {"a": -1}}}, "expected text and an integer"),
    ("tokenizer.json", {"model": {"vocab": {"a": 1 << 24}}}, "expected text and an integer"),
    ("tokenizer.json", {"model": {"vocab": {"a": True}}}, "expected text and an integer"),
    ("tokenizer.json", {"model": None}, "unknown form"),
    ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": [{"id": [], "content": "a"}]}, "unknown form"),
    ("chat_template.json", {"chat_template": {"a": 1}}, "chat_template"),
    ("chat_template.jinja", b"x" * (limits.CONFIG_BYTES + 1), "the limit is"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD_FIELDS)
def test_a_field_of_another_type_or_range_is_named(
    tiny_llama_pair: Any, tmp_path: Path, name: str, content: dict[str, Any] | bytes, said: str
) -> None:
    folder = shutil.copytree(tiny_llama_pair.instruct, tmp_path / "instruct")
    old = json.loads((folder / name).read_bytes()) if isinstance(content, dict) and (folder / name).exists() else {}
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(old | content).encode())

    def read(folder: Path) -> None:
        check_pair(tiny_llama_pair.base, folder)
        load(object, folder)

    with pytest.raises(CheckpointError, match=said) as caught:
        read(folder)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("value", [-1, 0, 10**12, "8", [8], 8.0, True])
def test_the_plan_takes_only_lengths(tiny_llama_pair: Any, tmp_path: Path, value: Any) -> None:
    folder = shutil.copytree(tiny_llama_pair.instruct, tmp_path / "instruct")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": value}))
    with pytest.raises(CheckpointError, match="num_attention_heads is"):
        shape_of(open_checkpoint(folder))


def test_the_files_of_code_have_a_limit(model: Path) -> None:
    (model / "processor_config.json").write_bytes(b" " * (limits.CONFIG_BYTES + 1))
    with pytest.raises(CheckpointError, match="the limit is"):
        own_code(model)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_model_has_a_limit_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    model = write_model(tmp_path / "m", {name: np.zeros(2, np.float32) for name in "abc"}, shards)
    monkeypatch.setattr("shadowft_core.weights.opening.TENSORS", 3)
    assert open_checkpoint(model).names
    monkeypatch.setattr("shadowft_core.weights.opening.TENSORS", 2)
    with pytest.raises(CheckpointError, match=["more than 2 tensors", "names 3 tensors"][shards - 1]):
        open_checkpoint(model)


def test_a_config_has_a_limit_and_templates_have_three_forms(model: Path) -> None:
    for held in ("x", {"default": "x"}, [{"name": "default", "template": "x"}]):
        assert TokenizerConfig(chat_template=held).templates == ["x"]  # type: ignore[arg-type]
    (model / "config.json").write_bytes(b"{" + b" " * limits.CONFIG_BYTES + b"}")
    with pytest.raises(CheckpointError, match="the limit is"):
        read_config(model)
    with pytest.raises(CheckpointError, match="the limit is"):
        read_settings(model, "config.json", TokenizerConfig)


def test_a_tokenizer_has_a_limit_of_its_own(tiny_llama_pair: Any, tmp_path: Path) -> None:
    base, instruct = (
        shutil.copytree(one, tmp_path / one.name) for one in (tiny_llama_pair.base, tiny_llama_pair.instruct)
    )
    with (instruct / "tokenizer.json").open("ab") as file:
        file.write(b" " * (64 * limits.MIB))  # more than other files of JSON may have
    assert check_pair(base, instruct)["tokenizer_digest"]
    with (instruct / "tokenizer.json").open("ab") as file:
        file.truncate(limits.TOKENIZER_BYTES + 1)
    sides = open_checkpoint(base), open_checkpoint(instruct)
    for read in (lambda: Vocabularies(*sides), lambda: read_vocabulary(instruct)):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: 268435457 bytes, the limit is 268435456"):
            read()


def test_a_config_with_infinity_is_read(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "x", "clip": Infinity, "vocab_size": null}')
    assert open_checkpoint(model).config["clip"] == float("inf")
    assert read_vocabulary(model) is None
