"""Malicious model folders: refused or read safely, never followed outside, never run, never half-written."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract
from shadowft_core.errors import CheckpointError
from shadowft_core.grafting import graft
from shadowft_core.weights import INDEX, SINGLE, open_checkpoint
from tests.fixtures.models import write_model

ENTRY = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


def with_header(folder: Path, text: bytes, data: bytes = b"\0") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', "natural numbers"),
        (b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', "natural numbers"),
        (b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', "natural numbers"),
        (b'{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}', "natural numbers"),
        (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', "malformed"),
        (b'{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,1]}}', "require 0"),
        (b'{"a":{"dtype":"U8","shape":[4294967297,4294967297],"data_offsets":[0,1]}}', "has 1 bytes"),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}', "-1 bytes"),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}', "natural numbers"),
        (b'{"a":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}}', "dtype"),
        (b'{"\\ud800":{' + ENTRY.encode() + b"}}", "not valid Unicode"),
        (b'{"a":{' + ENTRY.encode() + b'}}{"b":1}', "malformed"),
        (b'{"a":{' + ENTRY.encode() + b"}}\0", "malformed"),
        (b"", "malformed"),
        (b"{}", "describes"),
    ],
)
def test_invalid_numbers_and_names_are_refused(tmp_path: Path, text: bytes, message: str) -> None:
    refused(with_header(tmp_path / "m", text), message)


@pytest.mark.parametrize(
    "shard",
    [
        "..",
        ".",
        "",
        "a\0b.safetensors",
        "../m/model.safetensors",
        "//x.safetensors",
        ".w.safetensors",
        None,
        ["x"],
        {"x": 1},
    ],
)
def test_shard_names_must_be_plain_file_names(tmp_path: Path, shard: Any) -> None:
    folder = write_model(tmp_path / "m", {"w": np.zeros(2, np.float32)})
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(folder, "plain")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "JSON object"),
        (b"\xff\xfe{}", "not readable as JSON"),
        (b"[" * 200_000, "not readable as JSON"),
        (b'{"weight_map":[]}', "no weight_map"),
        (b'{"weight_map":{}}', "no weight_map"),
        (b'{"weight_map":{"w":"' + b"x" * 300 + b'.safetensors"}}', "plain"),
    ],
)
def test_a_malformed_index_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    folder = write_model(tmp_path / "m", {"w": np.zeros(2, np.float32)})
    (folder / INDEX).write_bytes(text)
    refused(folder, message)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would block forever; a device or a link to itself is not a file either."""
    folder = write_model(tmp_path / "m", {"w": np.zeros(2, np.float32)})

    def each(*makers: Any) -> None:
        for make in makers:
            (folder / SINGLE).unlink() if not (folder / SINGLE).is_dir() else (folder / SINGLE).rmdir()
            make(folder / SINGLE)
            refused(folder, "not a regular file")

    each(os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path))


def test_a_tensor_name_is_never_a_path(tmp_path: Path) -> None:
    names = ["../../evil", f"{tmp_path}/evil", "a b", "x" * 900, "", "CON", "é\u202e", "__metadata"]
    rng = np.random.default_rng(0)
    base = {name: rng.standard_normal((4, 8)).astype(np.float32) for name in names}
    tuned = {name: array + np.float32(0.01) for name, array in base.items()}
    instruct = {name: array + np.float32(0.02) for name, array in base.items()}
    top = tmp_path / "deep" / "deeper"
    for role, tensors in {"base": base, "tuned": tuned, "instruct": instruct}.items():
        write_model(top / role, tensors)
    extract(top / "base", top / "tuned", top / "delta")
    graft(top / "instruct", [(top / "delta", 1.0)], top / "out")
    result = open_checkpoint(top / "out")
    for name in names:
        expected = instruct[name] + (tuned[name] - base[name])
        np.testing.assert_array_equal(result.read(name), expected)
    assert {path.name for path in top.iterdir()} == {"base", "tuned", "instruct", "delta", "out"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


FULL_DISK = """
import sys
from pathlib import Path
from shadowft_core.cli import main
sys.argv = ["shadowft", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("verb", ["extract", "graft"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, verb: str) -> None:
    """A limit on file size simulates a full disk: the call that reserves the space fails in the same way."""
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal((256, 256)).astype(np.float32)}
    for role, move in {"base": 0.0, "tuned": 0.01, "instruct": 0.02}.items():
        write_model(tmp_path / role, {"w": base["w"] + np.float32(move)})
    steps = {
        "extract": ["--base", str(tmp_path / "base"), "--tuned", str(tmp_path / "tuned")],
        "graft": ["--instruct", str(tmp_path / "instruct"), "--delta", str(tmp_path / "delta"), "--scale", "1"],
    }
    if verb == "graft":
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", FULL_DISK, verb, *steps[verb], "--out", str(tmp_path / "out")]

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    env = {
        name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"
    }  # it writes a file too
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=small_files, env=env)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: File too large")
    assert {path.name for path in tmp_path.iterdir()} == before
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == before | {"out"}
