"""Where a process finds its place: in the environment of torchrun, Slurm, Kubernetes, or a person."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shadowft_core.errors import ShadowError, StoppedError, TrainError
from shadowft_core.params import Launch, Train
from shadowft_core.train.cluster import Node, node_of
from shadowft_core.train.launch import Place, _failure, place

SLURM = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "gpu[007-009]"}
STEP = SLURM | {"SLURM_STEP_ID": "0", "SLURM_NODEID": "2"}
JOB = {"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "tune-0.tune", "MASTER_PORT": "29501"}
KUBEFLOW = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "node-0"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a person's shell."""
    import os

    for name in list(os.environ):
        if re.match(r"SLURM_|PET_|MASTER_|(LOCAL_)?RANK$|WORLD_SIZE$|NODE_RANK$|JOB_COMPLETION_INDEX$", name):
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "launch", "node"),
    [
        ({}, Launch(processes=8), Node()),
        (STEP, Launch(processes=8, nodes=3), Node(2, "gpu007", 23456)),
        (STEP | {"MASTER_PORT": "1234", "MASTER_ADDR": "here"}, Launch(nodes=3), Node(2, "here", 1234)),
        (STEP | {"SLURM_JOB_NODELIST": "a-[2,4]-b[01-02],c"}, Launch(nodes=3), Node(2, "a-2-b01", 23456)),
        (STEP | {"SLURM_JOB_NODELIST": "login,gpu[1-2]"}, Launch(nodes=3), Node(2, "login", 23456)),
        (JOB, Launch(nodes=2), Node(1, "tune-0.tune", 29501)),
        (KUBEFLOW, Launch(processes=4, nodes=2), Node(1, "node-0", 29500)),
        ({"NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1"} | JOB, Launch(nodes=2), Node(0, "tune-0.tune", 29501)),
        (SLURM | {"SLURM_JOB_NUM_NODES": "4"}, Launch(processes=2), Node()),  # a run on one node of four
        (KUBEFLOW | STEP | {"SLURM_JOB_NUM_NODES": "2"}, Launch(processes=4, nodes=2), Node(1, "node-0", 23456)),
        (KUBEFLOW | {"MASTER_ADDR": "first"}, Launch(processes=4, nodes=2), Node(1, "first", 29500)),
    ],
    ids=str,
)
def test_a_node_is_found(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], launch: Launch, node: Node
) -> None:
    given(monkeypatch, environment)
    assert node_of(launch) == node


@pytest.mark.parametrize(
    ("environment", "launch", "message"),
    [
        ({}, Launch(nodes=2), "nodes is 2, but the rank of this node is not set; set NODE_RANK to 0 .. 1"),
        ({"NODE_RANK": "2"}, Launch(nodes=2), "rank of this node is 2; set NODE_RANK to 0 .. 1"),
        ({"NODE_RANK": "1"}, Launch(nodes=2), "address of node 0 is not set; set MASTER_ADDR"),
        (STEP, Launch(nodes=2), "SLURM_JOB_NUM_NODES is 3, but train.launch.nodes is 2"),
        (KUBEFLOW, Launch(processes=4, nodes=3), "PET_NNODES is 2, but train.launch.nodes is 3"),
        (KUBEFLOW, Launch(processes=2, nodes=2), "PET_NPROC_PER_NODE is 4, but train.launch.processes is 2"),
        (JOB | {"MASTER_PORT": "tcp"}, Launch(nodes=2), "MASTER_PORT: 'tcp' is not a port"),
        (JOB | {"MASTER_PORT": "0"}, Launch(nodes=2), "MASTER_PORT: '0' is not a port"),
        (JOB | {"MASTER_PORT": "65536"}, Launch(nodes=2), "MASTER_PORT: '65536' is not a port"),
    ],
    ids=str,
)
def test_a_node_that_is_not_found_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], launch: Launch, message: str
) -> None:
    given(monkeypatch, environment)
    with pytest.raises(TrainError, match=re.escape(message)):
        node_of(launch)


@pytest.mark.parametrize(
    ("environment", "launch", "found"),
    [
        ({}, Launch(), Place()),
        ({}, Launch(processes=2), None),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Launch(), Place()),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, Launch(processes=2, nodes=2), Place(3, 4, 1)),
        (STEP | {"SLURM_NTASKS": "3"}, Launch(processes=8, nodes=3), None),  # one task per node starts eight
        (
            STEP | {"SLURM_NTASKS": "6", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"},
            Launch(processes=2, nodes=3),
            Place(5, 6, 1),
        ),
        (SLURM | {"SLURM_NTASKS": "24"}, Launch(processes=8), None),  # a batch script, not a step
        # A step has fewer tasks than its job.
        (STEP | {"SLURM_NTASKS": "24", "SLURM_STEP_NUM_TASKS": "3"}, Launch(processes=8, nodes=3), None),
    ],
    ids=str,
)
def test_the_place_of_a_process(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], launch: Launch, found: Place | None
) -> None:
    given(monkeypatch, environment)
    assert place(launch) == found


def test_a_task_of_srun_gets_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    given(monkeypatch, STEP | {"SLURM_NTASKS": "6", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"})
    place(Launch(processes=2, nodes=3))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["5", "6", "1", "gpu007", "23456"]


def test_tasks_of_one_node_meet_on_loopback_at_a_port_of_their_job(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    given(monkeypatch, {"SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"})
    given(monkeypatch, {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
    assert place(Launch(processes=2)) == Place(1, 2, 1)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "23456")


def test_one_task_of_srun_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else accelerate would wait for a group of processes."""
    import os

    given(monkeypatch, {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"})
    given(monkeypatch, {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert place(Launch()) == Place()
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("environment", "launch", "message"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
            Launch(),
            "one of 2 processes (WORLD_SIZE), but train.la",
        ),
        ({"WORLD_SIZE": "2"}, Launch(processes=4), "one of 2 processes (WORLD_SIZE), but train.launch has 4 processes"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, Launch(processes=2), "WORLD_SIZE is 2, but LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "two"}, Launch(), "WORLD_SIZE: 'two' is not a number"),
        (
            STEP | {"SLURM_NTASKS": "4"},
            Launch(processes=2, nodes=3),
            "srun started 4 tasks (SLURM_NTASKS), but train.l",
        ),
    ],
    ids=str,
)
def test_processes_in_another_number_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], launch: Launch, message: str
) -> None:
    given(monkeypatch, environment)
    with pytest.raises(TrainError, match=re.escape(message)):
        place(launch)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({}, "accumulation 2 with batch_size 8 has the same 16 sequences per step"),
        ({"accumulation": 3}, "accumulation 4 with batch_size 12 has the same 48 sequences per step"),
        (
            {"batch_size": 1, "accumulation": 3},
            "3 sequences per step cannot be shared by 2; set accumulation to 2 (2 sequences)",
        ),
        (
            {"batch_size": 3, "accumulation": 1},
            "3 sequences per step cannot be shared by 2; set accumulation to 2 (6 sequences)",
        ),
    ],
    ids=str,
)
def test_micro_batches_that_cannot_be_shared_are_refused(settings: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(remedy)):
        Train.model_validate({"launch": {"processes": 2}} | settings)
    Train.model_validate({"launch": {"processes": 2, "nodes": 2}, "accumulation": 8})


@pytest.mark.parametrize(
    ("visible", "launch", "where", "message"),
    [
        (2, Launch(), Place(), "2 CUDA devices are visible, but train.launch.processes is 1; set it to 2"),
        (2, Launch(processes=4), Place(1, 4, 1), "processes is 4, but 2 CUDA devices are visible to each"),
    ],
    ids=str,
)
def test_processes_need_a_device_each(
    monkeypatch: pytest.MonkeyPatch, visible: int, launch: Launch, where: Place, message: str
) -> None:
    """Mocks the number of devices."""
    import torch

    from shadowft_core.train.ranks import take_place

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    if where.world > 1:
        given(monkeypatch, {"WORLD_SIZE": str(where.world), "RANK": "1", "LOCAL_RANK": "1"})
    with pytest.raises(TrainError, match=re.escape(message)):
        take_place(launch)
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    given(monkeypatch, {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"})
    assert take_place(Launch(processes=2, nodes=2)) == Place(3, 4, 1)
    assert taken == [1], "its rank on this node"


CODE: dict[str, Any] = {"error": None, "exit_code": 1, "message": "Traceback\nValueError: odd"}  # not of our own
SAID = {"error": "TrainError", "exit_code": 6, "message": "too short"}
STOPPED = {"error": "StoppedError", "exit_code": 130, "message": "stopped by SIGINT after step 3"}


@pytest.mark.parametrize(
    ("reports", "ended", "code", "raised"),
    [
        ({0: CODE | {"time": 2}, 1: CODE | {"time": 1}}, [], 1, TrainError("rank 1 failed: ValueError: odd")),
        ({0: SAID | {"message": "lost"}, 1: SAID}, [[1, 6], [0, 6]], 1, TrainError("too short")),
        ({0: CODE | {"time": 1}, 1: SAID}, [[0, 1]], 1, TrainError("too short")),
        ({1: STOPPED}, [[1, 130]], 1, StoppedError("stopped by SIGINT after step 3", 2)),
        ({}, [[0, -15], [1, -9]], 1, TrainError("rank 1 was killed by signal 9 (SIGKILL), as the kernel does when")),
        ({}, [[1, -11]], 1, TrainError("rank 1 was killed by signal 11 (SIGSEGV); all processes were ended")),
        ({}, [], 143, StoppedError("stopped by SIGTERM outside of the steps")),
        ({}, [], 3, TrainError("the processes ended with exit code 3 (no message); all were ended")),
    ],
    ids=str,
)
def test_the_error_of_several_processes_is_that_of_the_first(
    tmp_path: Path, reports: dict[int, dict[str, Any]], ended: list[list[int]], code: int, raised: ShadowError
) -> None:
    for rank, report in reports.items():
        (tmp_path / f"{rank}.json").write_text(json.dumps({"time": 0} | report))
    (tmp_path / "ended.json").write_text(json.dumps(ended))
    found = _failure(tmp_path, code)
    assert type(found) is type(raised)
    assert str(found).startswith(str(raised))
    assert found.exit_code == raised.exit_code
