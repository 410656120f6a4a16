"""The command line of the flow: settings, a Prefect server for the length of the run, signals and the exit code."""

import atexit
import importlib
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from shadowft_core.errors import RegistrationPendingError, ShadowError
from shadowft_core.files import make_private_file, process
from shadowft_core.params import load_params, refuse_password

START_SECONDS = 120  # of the Prefect server; a first start makes its database

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)


@app.command()
def run(
    workspace: Annotated[
        Path, typer.Option(help="folder with params.yaml and dvc.yaml", exists=True, file_okay=False)
    ] = Path("."),
    store: Annotated[str | None, typer.Option(help="where the delta goes: a folder or s3://bucket/prefix")] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of an S3 server other than AWS")] = None,
    name: Annotated[str | None, typer.Option(help="name of the registered model")] = None,
) -> None:
    """Retrain, graft, judge and register, stage by stage; what is up to date is not done again.

    With PREFECT_API_URL set, the run is recorded there; without it, a server of its own keeps the records in
    WORKSPACE/var/prefect. Exit code 0 with any verdict, 1 on an error, 11 when all is done but a registration waits for
    MLflow, 130 when interrupted.

    Example: python -m flows.retrain

    Example: python -m flows.retrain --store s3://my-bucket/deltas --endpoint http://127.0.0.1:8333 --name my-model
    """
    run_flow("flows.retrain", workspace, store, endpoint, name)


def run_flow(
    module: str, workspace: Path, store: str | None = None, endpoint: str | None = None, name: str | None = None
) -> None:
    """Run the flow `retrain` of a module as a program does; what `--help` says of the exit code holds.

    Prefect reads its settings when it is imported, so the module is imported here.
    """
    started = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell starts what it runs in the background with Ctrl-C ignored
        signal.signal(number, _interrupt)
    try:
        load_params(workspace / "params.yaml")  # a typing error there should not wait for a server
        for option, value in (("--store", store), ("--endpoint", endpoint)):
            refuse_password(option, value or "")  # Prefect stores a flow's parameters
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        with Console(stderr=True).status("starting Prefect"), _prefect_server(workspace.resolve() / "var" / "prefect"):
            retrain = importlib.import_module(module).retrain  # seconds, while the server starts
            from shadowft_core.pipeline.steps import WAITING

        state = retrain(str(workspace), store, endpoint, name, return_state=True)
    except KeyboardInterrupt:
        _end("interrupted; all its processes have ended, the next run resumes at the unfinished stage", 130)
    except ShadowError as error:
        _end(str(error), error.exit_code)
    if not state.is_completed():
        _end(state.message or state.type.value, RegistrationPendingError.exit_code if state.name == WAITING else 1)
    print(f"total: {time.monotonic() - started:.0f} seconds")


def main() -> None:
    """Run the command line."""
    if not sys.warnoptions:  # libraries announce their own deprecations; `python -W` brings them back
        warnings.simplefilter("ignore")
    app(prog_name="python -m flows.retrain")


@contextmanager
def _prefect_server(home: Path) -> Iterator[None]:
    """A Prefect server of this process, unless PREFECT_API_URL names one; started on entry, answering on exit.

    Its records and its log stay in `home`. It ends with this process, whatever ends that. Ctrl-C does not reach it, so
    that an interrupted run can still be reported.
    """
    if "PREFECT_API_URL" in os.environ:
        yield
        return
    make_private_file(home / "prefect.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--no-ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    log = home / "server.log"
    with log.open("w", encoding="utf-8") as file:
        server = process.start(command, log=file)
    atexit.register(process.stop, server)  # registered before Prefect's own hooks, so it runs after them
    deadline = time.monotonic() + START_SECONDS
    yield
    while not _answers(f"http://127.0.0.1:{port}/api/health"):
        if server.poll() is not None or time.monotonic() > deadline:
            raise ShadowError(f"prefect: the server did not start within {START_SECONDS} s; its words are in {log}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 a loopback URL made here
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _end(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
