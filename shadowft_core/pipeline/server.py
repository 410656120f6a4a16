"""A Prefect server that runs as long as this process."""

import atexit
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shadowft_core.errors import ShadowError
from shadowft_core.files import make_private_file, process

START_SECONDS = 120  # a first start creates the database


@contextmanager
def prefect_server(home: Path) -> Iterator[None]:
    """Start a Prefect server on a free port of 127.0.0.1, unless PREFECT_API_URL names one.

    The server is started when the block is entered and is ready when the block is left, so the block can do slow
    imports. Sets PREFECT_HOME and PREFECT_API_URL, which Prefect reads when it is imported. Database and log are in
    `home`. The server always ends with this process. Ctrl-C does not reach it, so an interrupted run can still report
    its state. Raises ShadowError when it does not start.
    """
    if "PREFECT_API_URL" in os.environ:
        yield
        return
    make_private_file(home / "prefect.db")
    port = _free_port()
    os.environ |= {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    options = ["--no-ui", "--host", "127.0.0.1", "--port", str(port)]
    log = home / "server.log"
    with log.open("w", encoding="utf-8") as file:
        server = process.start([sys.executable, "-m", "prefect", "server", "start", *options], log=file)
    atexit.register(process.stop, server)  # registered before Prefect's own hooks, so it runs after them
    deadline = time.monotonic() + START_SECONDS
    yield
    while not _answers(f"http://127.0.0.1:{port}/api/health"):
        if server.poll() is not None or time.monotonic() > deadline:
            raise ShadowError(f"prefect: the server did not start within {START_SECONDS} s; see {log}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 a loopback URL made here
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
