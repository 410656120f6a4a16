"""Two processes that are killed or stopped go on from the newest checkpoint and give the same bytes."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from shadowft_core.params import Store, Train
from shadowft_core.store import open_store
from tests.fixtures.launched import started, train_command
from tests.fixtures.processes import none_left
from tests.fixtures.training import tree
from tests.test_train_launch import mark, ranks, shared, until_step

__all__ = ["mark"]  # a fixture
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "settings",
    [
        shared(epochs=20, launch={"processes": 2, "strategy": strategy}, method=method, learning_rate=0.001)
        for method, strategy in (("lora", "ddp"), ("lora", "fsdp"), ("full", "ddp"), ("full", "fsdp"))
    ],
    ids=lambda settings: f"{settings.method}-{settings.launch.strategy}",
)
def test_killed_and_stopped_processes_end_with_the_same_bytes(
    place: Path, tmp_path: Path, mark: str, settings: Train
) -> None:
    (tmp_path / "whole").mkdir()
    with started(train_command(place, tmp_path / "whole/out", settings)) as whole:
        said, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, said

    words = train_command(place, tmp_path / "out", settings, checkpoint_steps=2)
    with started(words) as killed:
        until_step(killed, 4)
        ranks(mark)[1].send_signal(signal.SIGKILL)
        said, _ = killed.communicate(timeout=60)
    assert killed.returncode == 6
    assert "rank 1 was killed by signal 9" in said
    assert none_left(mark, seconds=1)
    with started(words) as stopped:
        first = until_step(stopped, 8)
        stopped.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        said, _ = stopped.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert stopped.returncode == 128 + signal.SIGTERM, said
    assert any(line.startswith("train: resumed at step ") for line in first)
    last = said.splitlines()[-1]
    assert last.startswith("error: stopped by SIGTERM after step ")
    assert said.count("error: ") == 1
    step = int(last.rpartition(" ")[2])
    assert f"after step {step} of 60; run the same command again to go on from step {step}" in last
    assert not (tmp_path / "out").exists()
    assert none_left(mark, seconds=1)
    with started(words) as end:
        said, _ = end.communicate(timeout=120)
    assert end.returncode == 0, said
    assert f"train: resumed at step {step} of 60" in said
    assert tree(tmp_path / "out") == tree(tmp_path / "whole/out")
    assert json.loads((tmp_path / "out/train.json").read_text())["strategy"] == settings.launch.strategy
    assert not any((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_go_on_from_the_store(place: Path, tmp_path: Path, mark: str, strategy: str) -> None:
    settings = shared(epochs=20, launch={"processes": 2, "strategy": strategy}, learning_rate=0.001)
    (tmp_path / "whole").mkdir()
    with started(train_command(place, tmp_path / "whole/out", settings)) as whole:
        said, _ = whole.communicate(timeout=120)
    assert whole.returncode == 0, said
    words = train_command(place, tmp_path / "out", settings, checkpoint_steps=2)
    params = yaml.safe_load((tmp_path / "out.yaml").read_text())
    params["checkpoint"]["store"] = True
    params["store"] = {"uri": str(tmp_path / "store")}
    (tmp_path / "out.yaml").write_text(yaml.safe_dump(params))
    with started(words) as killed:
        until_step(killed, 6)
        ranks(mark)[0].send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
    assert killed.returncode == 6
    shutil.rmtree(tmp_path / "kept")
    with started(words) as end:
        said, _ = end.communicate(timeout=120)
    assert end.returncode == 0, said
    assert said.count("train: fetched checkpoint-") == 1
    assert "train: resumed at step " in said
    assert tree(tmp_path / "out") == tree(tmp_path / "whole/out")
    assert list(open_store(Store(uri=str(tmp_path / "store"))).list("")) == []
