"""A server process of our own: started by the user's command, waited for, and ended with this process at the latest."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.engines.endpoint import Endpoint
from shadowft_core.files import process
from shadowft_core.params import Server

# vLLM: no usage statistics, and adapters at run time.
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
PAUSE = 0.2  # seconds between two looks at a server that starts
SHOWN = 400  # characters of the end of the server's log in an error


@contextmanager
def launched(server: Server, model: Path) -> Iterator[Endpoint]:
    """Run `server.command` for a model folder on a free port of 127.0.0.1; yield it once it lists its models.

    Raises EvaluationError, with the end of the server's log, when the command is missing, ends early, or does not
    answer within `server.timeout` seconds, and when it ends while the block uses it.
    """
    if shutil.which(server.command[0]) is None:
        raise EvaluationError(
            f"engine.server.command: {server.command[0]} is not a program; install it, or give its full path"
        )
    port = _free_port()
    values = {"{model}": str(model.resolve()), "{name}": server.model, "{port}": str(port)}
    words = list(server.command)
    for placeholder, value in values.items():
        words = [word.replace(placeholder, value) for word in words]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        guard = process.start(words, env={**os.environ, **ENVIRONMENT}, log=log)
        try:
            endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", server.timeout, server.concurrency)
            _wait(guard, endpoint, port, log, server)
            yield endpoint
        except EvaluationError as error:
            if guard.poll() is None:
                raise
            raise EvaluationError(f"{_ended(guard, log, server)}; before that: {error!s:.200}") from None
        finally:
            process.stop(guard)


def _wait(guard: "subprocess.Popen[str]", endpoint: Endpoint, port: int, log: IO[str], server: Server) -> None:
    deadline = time.monotonic() + server.timeout
    while True:
        if guard.poll() is not None:
            raise EvaluationError(_ended(guard, log, server))
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PAUSE).close()
            endpoint.models()
            return
        except (OSError, EvaluationError):
            pass  # not yet: no port, or HTTP 503 while it loads
        if time.monotonic() > deadline:
            raise EvaluationError(
                f"engine.server.command: {server.command[0]} does not answer {server.timeout:g} s after its start; "
                f"raise engine.server.timeout; its log ends with: {_tail(log)}"
            )
        time.sleep(PAUSE)


def _ended(guard: "subprocess.Popen[str]", log: IO[str], server: Server) -> str:
    return (
        f"engine.server.command: {server.command[0]} ended with exit code {guard.returncode}; correct the command; "
        f"its log ends with: {_tail(log)}"
    )


def _tail(log: IO[str]) -> str:
    log.seek(0)
    return " ".join(log.read().split())[-SHOWN:] or "(nothing)"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
