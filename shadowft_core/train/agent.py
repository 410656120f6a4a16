"""A program that starts the processes of one node with torchrun's agent: `python agent.py JOB ARGUMENTS...`.

JOB is JSON: processes, nodes, rank, address and port of the rendezvous, scratch. Every process runs the Python of this
one with ARGUMENTS. All end when one fails. `scratch/ended.json` then has [rank, exit code] of each failed process
in the order in which they were seen to end; -n is signal n.
"""

import json
import logging
import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.launcher.api import LaunchConfig, launch_agent

PATIENCE = 24 * 3600  # seconds that processes may take to end after SIGTERM; schedulers kill them much earlier
JOINING = 900  # seconds in which all nodes must have joined


class LoopbackRendezvous(StaticTCPRendezvous):  # type: ignore[misc]  # torch is not typed here
    """The rendezvous of one node. Its store listens on 127.0.0.1; torch's own listens on all addresses."""

    def get_backend(self) -> str:
        """The name it is registered by."""
        return "loopback"

    def next_rendezvous(self) -> RendezvousInfo:
        """Start the store on a free port."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            self._store = TCPStore(
                "127.0.0.1", port, 1, is_master=True, timeout=self.timeout, master_listen_fd=listener.detach()
            )
        return RendezvousInfo(PrefixStore(self.run_id, self._store), 0, 1, RendezvousStoreInfo("127.0.0.1", port))


def _loopback(parameters: Any) -> LoopbackRendezvous:
    return LoopbackRendezvous("127.0.0.1", 0, 0, 1, parameters.run_id, JOINING)


def main(job: dict[str, Any], arguments: list[str]) -> int:
    """Start the processes and wait for them; returns the exit code."""
    logging.disable(logging.CRITICAL)
    rendezvous_handler_registry.register("loopback", _loopback)
    alone, scratch = job["nodes"] == 1, Path(job["scratch"])
    silent = {local: Std.ALL for local in range(job["processes"]) if local or job["rank"]}
    config = LaunchConfig(
        min_nodes=job["nodes"],
        max_nodes=job["nodes"],
        nproc_per_node=job["processes"],
        run_id="shadowft" if not alone else uuid.uuid4().hex,
        rdzv_backend="loopback" if alone else "static",
        rdzv_endpoint=f"{job['address']}:{job['port'] or 1}",
        rdzv_configs={"rank": job["rank"], "timeout": JOINING},
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch / "logs"), redirects=silent or Std.NONE),
        shutdown_timeout=PATIENCE,
    )
    try:
        launch_agent(config, sys.executable, arguments)
    except ChildFailedError as error:
        ended = [[rank, failure.exitcode] for rank, failure in error.failures.items()]
        (scratch / "ended.json").write_text(json.dumps(ended))
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    os._exit(main(json.loads(sys.argv[1]), sys.argv[2:]))  # no thread of a store delays the end
