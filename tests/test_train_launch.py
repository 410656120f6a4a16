"""Two processes of real torchrun, gloo, accelerate and TRL on a tiny model: the same training as with one."""

import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from shadowft_core.delta import extract
from shadowft_core.params import Launch, Train
from tests.fixtures.launched import started, train_command
from tests.fixtures.processes import marked, none_left
from tests.fixtures.training import SETTINGS, run, tree

# 54 rows: the last of 11 micro-batches has 4, and a process has none to its last step; so too with 12 to validate.
SHARED = {"batch_size": 5, "accumulation": 4, "epochs": 2}
PACKED = {"packing": True, "gradient_checkpointing": True, "batch_size": 2, "max_steps": 6}


def shared(**changes: Any) -> Train:
    """Settings for two processes unless `launch` is among the changes."""
    return Train.model_validate(
        SETTINGS.model_dump(exclude={"seeds"}) | SHARED | {"launch": {"processes": 2}} | changes
    )


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A value in the environment of every process that the test starts."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("SHADOWFT_TEST_MARK", value)
    return value


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: array for file in sorted(folder.rglob("*.safetensors")) for name, array in load_file(file).items()}


@pytest.mark.parametrize(
    ("method", "strategy", "changes"),
    [
        pytest.param("lora", "ddp", {}, marks=pytest.mark.slow),
        pytest.param("lora", "fsdp", {}, marks=pytest.mark.slow),
        pytest.param("full", "ddp", {}, marks=pytest.mark.slow),
        ("full", "fsdp", {}),
        pytest.param("lora", "fsdp", PACKED, marks=pytest.mark.slow),
    ],
    ids=["lora-ddp", "lora-fsdp", "full-ddp", "full-fsdp", "packed-fsdp"],
)
def test_two_processes_train_as_one(
    place: Path, tmp_path: Path, mark: str, method: str, strategy: str, changes: dict[str, Any]
) -> None:
    """The same rows make each step, so only the order of float32 sums differs: relative 2^-24 for each addition.

    That is 1e-7 a step, which AdamW may grow where a gradient is near zero; the bound leaves a factor of 100.
    """
    rate = {"method": method, "learning_rate": 0.01 if method == "lora" else 0.003} | changes
    settings = shared(launch={"processes": 2, "strategy": strategy}, **rate)
    one = run(place, tmp_path / "one", shared(launch={}, **rate))
    with started(train_command(place, tmp_path / "two", settings)) as command:
        said, _ = command.communicate(timeout=120)
    assert command.returncode == 0, said
    assert none_left(mark, seconds=1)
    assert sum(line.startswith("train: 54 rows") for line in said.splitlines()) == 1
    assert sum(line.startswith("step 6/6 ") for line in said.splitlines()) == 1, said
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "two.yaml", "kept"}

    two = json.loads((tmp_path / "two/train.json").read_text())
    assert (one.pop("processes"), one.pop("strategy")) == (1, None)
    assert (two.pop("processes"), two.pop("strategy")) == (2, strategy)
    assert two["rows_per_step"] == rate.get("batch_size", 5) * 4
    for name in ("first_loss", "last_loss", "valid_loss"):
        assert two.pop(name) == pytest.approx(one.pop(name), rel=1e-5)
    assert two.pop("settings") | {"launch": None} == one.pop("settings") | {"launch": None}
    assert two == one
    for ours, theirs in zip(lines_of(tmp_path / "two"), lines_of(tmp_path / "one"), strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["learning_rate"] == theirs["learning_rate"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert {name: (a.shape, a.dtype) for name, a in ours.items()} == {n: (a.shape, a.dtype) for n, a in theirs.items()}
    for name, array in theirs.items():
        assert abs(ours[name] - array).max() < 1e-5 * max(1, abs(array).max()), name
    for name in ("adapter/adapter_config.json", "model/config.json", "samples.jsonl"):
        files = [tmp_path / folder / name for folder in ("one", "two")]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()
    facts = [extract(place / "base", tmp_path / name, tmp_path / f"delta-{name}") for name in ("one", "two")]
    assert facts[0]["kind"] == facts[1]["kind"]
    assert weights(tmp_path / "delta-one").keys() == weights(tmp_path / "delta-two").keys()


def test_a_large_model_is_saved_in_shards(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a shard is set to 20 kB here."""
    settings = shared(launch={}, method="full", max_steps=1)
    run(place, tmp_path / "one", settings)
    monkeypatch.setattr("shadowft_core.train.models.SHARD", "20KB")
    run(place, tmp_path / "many", settings)
    names = {path.name for path in (tmp_path / "many/model").iterdir()}
    assert {"model-00001-of-00004.safetensors", "model.safetensors.index.json"} < names, names
    ours, theirs = weights(tmp_path / "many"), weights(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == array).all() for name, array in theirs.items())
    for name in ("one", "many"):
        extract(place / "base", tmp_path / name, tmp_path / f"delta-{name}")
    assert tree(tmp_path / "delta-one") == tree(tmp_path / "delta-many")


def until_step(command: subprocess.Popen[str], step: int) -> list[str]:
    """Read until this step is shown or a later one; the lines."""
    seen = []
    for line in command.stdout or ():
        seen.append(line)
        if line.startswith("step ") and int(line.split()[1].partition("/")[0]) >= step:
            return seen
    pytest.fail("".join(seen))


def ranks(mark: str) -> dict[int, psutil.Process]:
    found = {}
    for process in marked(mark):
        if "SHADOWFT_RANK_REPORTS" in process.environ() and (rank := process.environ().get("RANK")):
            found[int(rank)] = process
    return found


def test_a_killed_process_ends_all_and_nothing_listens_beyond_loopback(place: Path, tmp_path: Path, mark: str) -> None:
    command = started(train_command(place, tmp_path / "out", shared(epochs=10000)))
    with command:
        until_step(command, 2)
        processes = ranks(mark)
        assert sorted(processes) == [0, 1]
        listening = {
            place.laddr.ip
            for process in marked(mark)
            for place in process.net_connections("inet")
            if place.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        processes[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        said, _ = command.communicate(timeout=60)
    assert time.monotonic() - killed < 20
    stopping = "train: SIGTERM: stopping"  # rank 0 may say so before it ends
    errors = [line for line in said.splitlines() if not line.startswith(("step ", stopping))]
    assert len(errors) == 1, said
    assert errors[0].startswith("error: rank 1 was killed by signal 9 (SIGKILL)")
    assert command.returncode == 6
    assert none_left(mark, seconds=1)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["out.yaml"], ["kept", "out.yaml"])


@pytest.mark.slow
def test_no_process_survives_the_command(place: Path, tmp_path: Path, mark: str) -> None:
    with started(train_command(place, tmp_path / "out", shared(epochs=10000))) as command:
        until_step(command, 2)
        command.kill()
    assert none_left(mark, seconds=20)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_error_of_all_processes_is_one_line(place: Path, tmp_path: Path, mark: str) -> None:
    with started(train_command(place, tmp_path / "out", shared(max_length=8))) as command:
        said, _ = command.communicate(timeout=60)
    assert command.returncode == 6
    errors = [line for line in said.splitlines() if not line.startswith("train: ")]
    assert len(errors) == 1, said
    assert "train.parquet: 54 of 54 rows are left out (54 longer than train.max_length 8)" in errors[0]
    assert none_left(mark, seconds=1)
    assert sorted(path.name for path in tmp_path.iterdir()) in (["out.yaml"], ["kept", "out.yaml"])


@pytest.mark.slow
def test_torchrun_may_start_the_processes(place: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    torchrun += ["--master-port=29612", "-m", "shadowft_core.cli"]
    right = train_command(place, tmp_path / "right", shared(max_steps=2))
    done = subprocess.run([*torchrun, *right], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "right/train.json").read_text())["processes"] == 2
    wrong = train_command(place, tmp_path / "wrong", shared(launch={}))
    done = subprocess.run([*torchrun, *wrong], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode
    assert "error: started as one of 2 processes (WORLD_SIZE), but train.launch has 1 processes" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"right", "right.yaml", "wrong.yaml", "kept"}


@pytest.mark.slow
def test_two_nodes_train_one_model(place: Path, tmp_path: Path, mark: str) -> None:
    settings = shared(launch={"nodes": 2}, max_steps=2)
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613", "GLOO_SOCKET_IFNAME": "lo"}
    commands = [
        started(train_command(place, tmp_path / f"out{node}", settings), NODE_RANK=str(node), **both) for node in (0, 1)
    ]
    said = [command.communicate(timeout=120)[0] for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said
    assert "step 2/2" in said[0]
    assert said[1] == ""
    assert {path.name for path in tmp_path.iterdir()} == {"out0", "out0.yaml", "out1.yaml", "kept"}
    facts = json.loads((tmp_path / "out0/train.json").read_text())
    assert (facts["processes"], facts["steps"]) == (2, 2)
    assert Launch(nodes=2) == settings.launch
    assert none_left(mark, seconds=1)
