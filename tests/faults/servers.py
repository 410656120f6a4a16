"""A real PostgreSQL and a real MLflow server on loopback, to be killed and started again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POSTGRESQL = Path("/usr/lib/postgresql/15/bin")
START_SECONDS = 120


def why_no_postgresql() -> str | None:
    """None when PostgreSQL 15 can be run here, otherwise the reason."""
    if not (POSTGRESQL / "initdb").exists():
        return f"no PostgreSQL 15 in {POSTGRESQL}; install postgresql-15"
    if os.getuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        return "PostgreSQL refuses root, and there is no user postgres to run it as"
    return None


@contextmanager
def postgresql() -> Iterator[str]:
    """Run PostgreSQL with an empty database `mlflow`; yields the address of it that MLflow wants."""
    folder, port = Path(tempfile.mkdtemp(prefix="postgresql-")), free_port()
    who: dict[str, Any] = {"cwd": "/"}
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        who |= {"user": "postgres", "group": "postgres", "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        command = [str(POSTGRESQL / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who)

    data = str(folder / "data")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    try:
        run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-locale")
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", settings, "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "mlflow")
            yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/mlflow?async_fallback=true"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


class MLflowServer:
    """An MLflow server over a database; `start` and `kill` may alternate, the address stays."""

    def __init__(self, database: str, folder: Path) -> None:
        self._database, self._folder, self._port = database, folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError with the end of its log when it does not."""
        shim = Path(__file__).with_name("asyncpg_in_threads")
        environment = os.environ | {
            "PYTHONPATH": str(shim),
            "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a connection belongs to the thread that opened it
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", "1", "--backend-store-uri", self._database]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with open(self._folder / "mlflow.log", "ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.3)
        self.kill()
        tail = (self._folder / "mlflow.log").read_text(errors="replace").splitlines()[-3:]
        raise RuntimeError(f"MLflow did not answer within {START_SECONDS} s: {' | '.join(tail)}")

    def kill(self) -> None:
        """End it and its worker by SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session of its own
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_on_postgresql(folder: Path) -> Iterator[MLflowServer]:
    """Both servers, until the block ends."""
    with postgresql() as database:
        server = MLflowServer(database, folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
