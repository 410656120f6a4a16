"""`hf:` references against a small hub on loopback, with the real client: pinned, checked before weights, whole."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.pair import check_pair
from shadowft_core.pair.sigma import RANGE, RANGES
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair, save_tokenizer, write_model
from tests.servers.hub import REVISION, Hub, Storage

PAIR = """
import sys
from shadowft_core.cli import main
sys.argv = ["shadowft", "pair", "--base", sys.argv[1], "--instruct", sys.argv[2], "--json", *sys.argv[4:]]
main()
"""
FETCH = """
import sys
from pathlib import Path
from shadowft_core.pair import fetch
from shadowft_core.params import Fetch
from huggingface_hub import constants
try:
    fetch(Fetch(base=sys.argv[1], instruct=sys.argv[2]), Path(sys.argv[3]))
finally:
    assert constants.HF_HUB_OFFLINE, "the offline switch must be down again"
"""


@pytest.fixture
def hub(tiny_llama_pair: Pair) -> Iterator[Hub]:
    server = Hub({"base": tiny_llama_pair.base, "instruct": tiny_llama_pair.instruct})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def storage(hub: Hub) -> Iterator[Storage]:
    server = Storage(hub.folders)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.storage = server
    yield server
    server.shutdown()
    server.server_close()


def run(
    hub: Hub, tmp_path: Path, base: str, instruct: str, code: str = FETCH, *options: str
) -> subprocess.CompletedProcess[str]:
    places = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_secret",
    }
    return subprocess.run(
        [sys.executable, "-c", code, base, instruct, str(tmp_path / "out"), *options],
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def whole_weights(hub: Hub) -> list[str]:
    return [p for method, p, asked in hub.log if method == "GET" and p.endswith(".safetensors") and asked is None]


def test_a_pinned_pair_is_downloaded_completely(hub: Hub, tiny_llama_pair: Pair, tmp_path: Path) -> None:
    references = [f"hf:owner/{role}@{REVISION}" for role in ("base", "instruct")]
    done = run(hub, tmp_path, *references)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "pair.json").read_bytes())
    for role, source in (("base", tiny_llama_pair.base), ("instruct", tiny_llama_pair.instruct)):
        assert open_checkpoint(tmp_path / "out" / role).digest() == open_checkpoint(source).digest()
        assert record[role]["ref"] == f"hf:owner/{role}@{REVISION}"
    assert len(whole_weights(hub)) == 2


def test_a_pair_that_does_not_fit_is_refused_before_weights_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, f"hf:owner/instruct@{REVISION}", f"hf:owner/base@{REVISION}")
    assert "shadowft_core.errors.SwappedError" in done.stderr
    assert "are Base and Instruct swapped?" in done.stderr
    assert whole_weights(hub) == []
    assert not (tmp_path / "out").exists()


def test_a_failing_hub_is_one_error(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, f"hf:owner/base@{REVISION}", f"hf:owner/nothing@{REVISION}")
    assert "InputError: hf:owner/nothing" in done.stderr
    assert "download the model and pass its folder" in done.stderr
    assert not (tmp_path / "out").exists()


REFERENCES = [f"hf:owner/{role}@{REVISION}" for role in ("base", "instruct")]


def weights_in_cache(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(".safetensors")]


ROWS = 16 + 64 + 3 * 16
"""rows of the Base's head, in 5 requests, that are looked at for tokens that were never trained"""


def large_pair(hub: Hub, tmp_path: Path) -> Pair:
    """A pair that a sample does not read whole, in two shards, in place of the tiny one."""
    noise = np.random.default_rng(0)
    base = {name: 0.02 * noise.standard_normal((900, 500)) for name in ("model.layers.0.a.weight", "lm_head.weight")}
    pair = Pair(tmp_path / "models" / "base", tmp_path / "models" / "instruct")
    for folder, tensors in (
        (pair.base, base),
        (pair.instruct, {name: array + 0.0004 * noise.standard_normal(array.shape) for name, array in base.items()}),
    ):
        write_model(folder, {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}, shards=2)
        save_tokenizer(folder, template=folder == pair.instruct)
    hub.folders |= {"base": pair.base, "instruct": pair.instruct}
    return pair


def test_a_sampled_check_reads_ranges_and_downloads_no_weights(hub: Hub, tmp_path: Path) -> None:
    pair = large_pair(hub, tmp_path)
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = check_pair(pair.base, pair.instruct)["sigma"]
    assert found["verdict"] == "ok"
    assert found["sampled"] is True
    assert found["sigma"]["weights"] == {"read": 2 * RANGES * RANGE, "of": 900_000}
    assert found["sigma"]["overall"] == pytest.approx(expected["overall"], rel=0.02)
    assert found["base"] == {"ref": REFERENCES[0], "label": ""}
    assert whole_weights(hub) == []
    assert weights_in_cache(tmp_path) == []
    read = [asked for method, path, asked in hub.log if method == "GET" and path.endswith(".safetensors") and asked]
    spans = [tuple(map(int, asked.removeprefix("bytes=").split("-"))) for asked in read]
    assert sum(last - first + 1 for first, last in spans) == 2 * (2 * RANGES * RANGE * 2) + 4 * 100_000 + ROWS * 1000
    assert not (tmp_path / "out").exists()


def test_weights_come_from_the_storage_the_hub_points_to_without_its_token(
    hub: Hub, storage: Storage, tmp_path: Path
) -> None:
    large_pair(hub, tmp_path)
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 0, done.stderr
    assert len(storage.seen) == 2 * (2 * RANGES + 2) + 5
    assert all("range" in headers and "authorization" not in headers for headers in storage.seen)
    heads = [path for method, path, _ in hub.log if method == "HEAD" and path.endswith(".safetensors")]
    assert len(heads) == 4, "the hub is asked once a file"


def test_a_full_check_downloads_and_adds_digests(hub: Hub, tmp_path: Path) -> None:
    pair = large_pair(hub, tmp_path)
    done = run(hub, tmp_path, *REFERENCES, PAIR, "--full")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sampled"] is False
    assert found["sigma"] == check_pair(pair.base, pair.instruct)["sigma"]
    assert found["base"]["digest"] == open_checkpoint(pair.base).digest()


def test_a_folder_and_a_hub_are_paired(hub: Hub, tmp_path: Path) -> None:
    pair = large_pair(hub, tmp_path)
    done = run(hub, tmp_path, str(pair.base), REFERENCES[1], PAIR)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sigma"]["weights"]["read"] == 2 * RANGES * RANGE
    assert whole_weights(hub) == []


def test_a_refusal_reads_no_weights_and_is_an_error_envelope(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, *REFERENCES[::-1], PAIR)
    assert done.returncode == 4, done.stderr
    assert (done.stdout, json.loads(done.stderr.splitlines()[-1])["error"]) == ("", "SwappedError")
    asked = [asked for _, path, asked in hub.log if path.endswith(".safetensors") and asked]
    assert len(asked) == 2, "the headers only"


def test_a_server_without_ranges_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 3
    assert "model.safetensors is not served in ranges; download the model and pass its folder" in done.stderr


def test_a_server_that_sends_more_than_a_range_is_refused(hub: Hub, tmp_path: Path) -> None:
    large_pair(hub, tmp_path)
    hub.more = 1
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 3
    assert ".safetensors is served with more than the" in done.stderr


def test_a_damaged_model_on_a_hub_is_refused_by_its_class(hub: Hub, tmp_path: Path) -> None:
    pair = large_pair(hub, tmp_path)
    shard = next(pair.instruct.glob("*.safetensors"))
    whole = shard.read_bytes()
    index = pair.instruct / "model.safetensors.index.json"
    right = index.read_text()
    shard.write_bytes(whole[:-100])
    done = run(hub, tmp_path, *REFERENCES, PAIR)
    assert done.returncode == 3
    assert json.loads(done.stderr.splitlines()[-1])["error"] == "CheckpointError"
    assert f"{REFERENCES[1]}: " in done.stderr
    assert "its header describes" in done.stderr
    shard.write_bytes(whole)
    index.write_text(right.replace(shard.name, f"../{shard.name}"))
    done = run(hub, tmp_path / "again", *REFERENCES, PAIR)
    assert done.returncode == 3
    assert "expected a plain *.safetensors file name" in done.stderr
    index.write_text(right)
    tensors = open_checkpoint(pair.instruct)
    data = bytearray(shard.read_bytes())
    at = next(iter(tensors.info(name).offset for name in tensors.names if tensors.info(name).file == shard))
    middle = at + (900 * 500 // 8) * 2
    data[middle : middle + 2] = b"\xc0\x7f"  # a bfloat16 NaN, in the middle of the first range
    shard.write_bytes(bytes(data))
    done = run(hub, tmp_path / "third", *REFERENCES, PAIR)
    assert done.returncode == 5, done.stderr
    assert json.loads(done.stderr.splitlines()[-1])["error"] == "NotFiniteError"
