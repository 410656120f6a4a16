"""Reads from the environment which node this is and where the processes of all nodes meet."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shadowft_core.errors import TrainError
from shadowft_core.params import Launch

PORT = 29500  # torchrun's default
# Variables in the order in which they count: a person's or torchrun's, Kubeflow's trainer, Slurm, a Kubernetes Job.
NODE_RANK = ("NODE_RANK", "GROUP_RANK", "PET_NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX")
ADDRESS = ("MASTER_ADDR", "PET_MASTER_ADDR")
PORTS = ("MASTER_PORT", "PET_MASTER_PORT")


@dataclass(frozen=True)
class Node:
    """This node's rank, and address and port of node 0. One node needs no port: its processes meet on loopback."""

    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def in_slurm_step() -> int:
    """The number of tasks that `srun` started, this one included; 0 outside a step."""
    step, tasks = os.environ.get("SLURM_STEP_ID", ""), os.environ.get("SLURM_STEP_NUM_TASKS", "")
    tasks = tasks or os.environ.get("SLURM_NTASKS", "")
    return int(tasks) if step.isdecimal() and tasks.isdecimal() else 0


def node_of(launch: Launch, rank: int | None = None) -> Node:
    """This node of those in `launch`. `rank` is its rank where it is known.

    Raises TrainError if the environment lacks a value, or names other numbers than `launch`.
    """
    environment = os.environ
    for name, wanted, field in (
        ("PET_NNODES", launch.nodes, "nodes"),
        ("SLURM_JOB_NUM_NODES", launch.nodes, "nodes"),
        ("PET_NPROC_PER_NODE", launch.processes, "processes"),
    ):
        given = environment.get(name, "")
        if given.isdecimal() and int(given) != wanted and (name != "SLURM_JOB_NUM_NODES" or launch.nodes > 1):
            raise TrainError(f"{name} is {given}, but train.launch.{field} is {wanted}; set both to the same number")
    if launch.nodes == 1:
        return Node(port=_port(environment)) if rank is not None else Node()
    if rank is None:
        text = next((environment[name] for name in NODE_RANK if name in environment), None)
        if text is None or not text.isdecimal() or int(text) >= launch.nodes:
            raise TrainError(
                f"train.launch.nodes is {launch.nodes}, but the rank of this node is {text or 'not set'}; set "
                f"NODE_RANK to 0 .. {launch.nodes - 1} (also read: {', '.join(NODE_RANK[1:])})"
            )
        rank = int(text)
    address = next((environment[name] for name in ADDRESS if environment.get(name)), None)
    address = address or _first_host(environment.get("SLURM_JOB_NODELIST", ""))
    if not address:
        raise TrainError(
            f"train.launch.nodes is {launch.nodes}, but the address of node 0 is not set; set MASTER_ADDR to its name "
            f"(also read: {ADDRESS[1]}, SLURM_JOB_NODELIST)"
        )
    return Node(rank, address, _port(environment))


def _port(environment: Mapping[str, str]) -> int:
    text = next((environment[name] for name in PORTS if environment.get(name)), None)
    if text is None:
        job = environment.get("SLURM_JOB_ID", "")
        return 20000 + int(job) % 10000 if job.isdecimal() else PORT  # two jobs on one node must not meet
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise TrainError(f"MASTER_PORT: {text!r} is not a port; set it to a free port of node 0")
    return int(text)


def _first_host(hosts: str) -> str:
    """The first host of a Slurm list such as `node[003-004,7],other`; the prefix may have several brackets."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) if first else ""
