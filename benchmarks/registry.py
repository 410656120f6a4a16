"""Time and traffic of a registered version: `python -m benchmarks.registry`, after `make demo`, writes registry.md.

A real MLflow server behind a relay that counts bytes, and SeaweedFS for the deltas and the ledger, all on loopback.
Client start-up (imports, first answers of both servers) is timed separately; all other calls are timed in this process.
"""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.graft import machine
from shadowft_core.errors import ShadowError
from shadowft_core.files import write_atomically
from shadowft_core.params import Registry, Store, load_params
from tests.servers.mlflow_server import MLflowServer
from tests.servers.seaweedfs import seaweedfs

ROOT = Path(__file__).parent.parent
MOST = {"register": 2.0, "rollback": 1.0}  # seconds
MOST_MOVED = 1e6  # bytes of one registration


class Relay:
    """Forwards connections to a server on loopback and counts the bytes of both directions."""

    def __init__(self, port: int) -> None:
        self.moved = 0
        self._port, self._lock = port, threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._socket.accept()
            server = socket.create_connection(("127.0.0.1", self._port))
            for end in (client, server):  # else delayed acknowledgements cost 40 ms per short answer
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    self.moved += len(data)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    scratch: Annotated[Path, typer.Option(help="folder for the servers' data; a subfolder is made and deleted after")],
    root: Annotated[Path, typer.Option(help="a workspace whose run has finished: work/, dvc.lock, params.yaml")] = ROOT,
    rounds: Annotated[int, typer.Option(min=2, help="versions that are registered")] = 5,
    out: Annotated[Path, typer.Option(help="folder for registry.md and registry.json")] = Path("benchmarks/results"),
) -> None:
    """Time registering, promoting and rolling back, and count what registering sends through MLflow.

    Example: make demo && python -m benchmarks.registry --scratch /var/tmp
    """
    here = scratch.resolve() / "shadowft-bench-registry"
    for needed in ("dvc.lock", "work/verdict.json"):
        if not (root / needed).is_file():
            raise ShadowError(f"{root / needed}: no such file; finish a run first (make demo), or name its --root")
    shutil.rmtree(here, ignore_errors=True)
    (here / "mlflow").mkdir(parents=True)
    mlflow = MLflowServer(here / "mlflow")
    try:
        with seaweedfs(here / "s3") as s3:
            mlflow.start()
            s3.create_bucket("shadowft")
            os.environ |= {"AWS_ACCESS_KEY_ID": s3.user.access_key, "AWS_SECRET_ACCESS_KEY": s3.user.secret_key}
            store = Store(uri="s3://shadowft/deltas", endpoint=s3.endpoint, region="us-east-1")
            facts = {"machine": machine.describe(here)} | _measure(here, root, rounds, store, Relay(mlflow.port))
    finally:
        mlflow.kill()
        shutil.rmtree(here, ignore_errors=True)
    write_atomically(out / "registry.md", _page(facts).encode())
    write_atomically(out / "registry.json", json.dumps(facts, indent=1).encode() + b"\n")
    print(_page(facts))


def _measure(here: Path, root: Path, rounds: int, store: Store, relay: Relay) -> dict[str, Any]:
    began = time.perf_counter()
    from shadowft_core import promotion, registry
    from shadowft_core import store as stores

    params = load_params(root / "params.yaml")
    settings = {"store": store, "registry": Registry(name="bench", tracking_uri=relay.uri)}
    params = params.model_copy(update=settings)
    route, reason = registry.candidate_of(root / "work")
    if route is None:
        raise ShadowError(f"{root / 'work'}: no candidate to register: {reason} Finish a run that has one")
    stores.publish(root / "work" / "delta" / route, store)
    registry.preflight(params)
    start = time.perf_counter() - began
    taken: dict[str, list[float]] = {"first register": [], "register": [], "promote": [], "rollback": []}
    moved: list[int] = []

    def timed(what: str, act: Callable[[], Any]) -> None:
        began = time.perf_counter()
        act()
        taken[what].append(time.perf_counter() - began)

    git, lock = registry.git_state(root), here / "dvc.lock"
    for number in range(1, rounds + 1):
        # The key of a version includes dvc.lock: a comment gives the same run a new key.
        lock.write_text((root / "dvc.lock").read_text() + f"# run {number}\n")
        before = relay.moved
        files = root / "work", lock, root / "params.yaml", git, here / "pending"
        timed("register" if number > 1 else "first register", lambda files=files: registry.register(params, *files))
        moved.append(relay.moved - before)
        promote = (params.registry, store, str(number), "timed only")
        timed("promote", lambda promote=promote: promotion.promote(*promote))
    for _ in range(rounds - 1):
        timed("rollback", lambda: promotion.rollback(params.registry, store))
    return {"format": 1, "start": start, "seconds": taken, "moved": moved}


def _page(facts: dict[str, Any]) -> str:
    lines = [
        "# Registry: time and traffic of a version",
        "",
        "A real MLflow server and SeaweedFS on loopback; seconds are median (lowest..highest) of calls in one process",
        f"after its start-up, which took {facts['start']:.1f} s with the first publish and the probe of the store.",
        "",
        "| call | calls | seconds | goal | met |",
        "|---|---|---|---|---|",
    ]
    for what, found in facts["seconds"].items():
        goal, met = "", ""
        if what in MOST:
            goal, met = f"at most {MOST[what]:g}", "yes" if max(found) <= MOST[what] else "**no**"
        lines.append(
            f"| {what} | {len(found)} | {median(found):.2f} ({min(found):.2f}..{max(found):.2f}) | {goal} | {met} |"
        )
    most = max(facts["moved"])
    lines += [
        "",
        "The first of a process also loads MLflow's model code, which looks through all installed packages.",
    ]
    met = "yes" if most <= MOST_MOVED else "**no**"
    lines += [
        "",
        f"Bytes to and from MLflow for one registration: at most {most} (goal: {MOST_MOVED:.0f}, met: {met}).",
    ]
    lines += machine.section(facts["machine"])
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line; an error becomes one line and an exit code, and both servers end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="python -m benchmarks.registry")
    except ShadowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
