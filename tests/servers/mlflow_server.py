"""A real MLflow server on loopback that can be killed and restarted, for tests and benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

START_SECONDS = 120


class MLflowServer:
    """An MLflow server that proxies artifacts and stores its data in an existing `folder`.

    `database` is MLflow's backend store URI, by default a database file in the folder. `start` and `kill` may be called
    alternately; the address `uri` stays the same. `environment` is added to that of this process.
    """

    def __init__(self, folder: Path, database: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder.absolute()
        self._database = database or f"sqlite:///{self._folder}/mlflow.db"
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers. Raises RuntimeError with the end of its log when it does not."""
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self._database]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with open(self._folder / "mlflow.log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | quiet | self._environment,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.3)
        self.kill()
        tail = (self._folder / "mlflow.log").read_text(errors="replace").splitlines()[-3:]
        raise RuntimeError(f"MLflow did not answer within {START_SECONDS} s: {' | '.join(tail)}")

    def kill(self) -> None:
        """Kill the server and its worker with SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # it was started in a new session
            self._process.wait()
            self._process = None
