"""A real PostgreSQL and a real MLflow server on loopback, which tests kill and restart."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.mlflow_server import MLflowServer

POSTGRESQL = Path("/usr/lib/postgresql/15/bin")


def why_no_postgresql() -> str | None:
    """The reason why PostgreSQL 15 cannot run here; None when it can."""
    if not (POSTGRESQL / "initdb").exists():
        return f"no PostgreSQL 15 in {POSTGRESQL}; install postgresql-15"
    if os.getuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        return "PostgreSQL refuses root, and there is no user postgres to run it as"
    return None


@contextmanager
def postgresql() -> Iterator[str]:
    """Run PostgreSQL with an empty database `mlflow`; yields its URI for MLflow."""
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


@contextmanager
def mlflow_on_postgresql(folder: Path) -> Iterator[MLflowServer]:
    """Run both servers until the block ends."""
    with postgresql() as database:
        shim = Path(__file__).with_name("asyncpg_in_threads")
        # A connection may be used only by the thread that opened it, so none is pooled.
        server = MLflowServer(
            folder, database, {"PYTHONPATH": str(shim), "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
        )
        try:
            server.start()
            yield server
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
