"""The command line of the flow: options, signals and the exit code."""

import contextlib
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from shadowft_core.environment import set_variables
from shadowft_core.errors import InputError, RegistrationPendingError, ShadowError, one_line
from shadowft_core.params import Params, load_params
from shadowft_core.pipeline.inputs import require_inputs, require_options
from shadowft_core.pipeline.server import prefect_server
from shadowft_core.terminal import guard_output

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False)


@app.command()
def run(
    workspace: Annotated[
        Path, typer.Option(help="folder with params.yaml and dvc.yaml", exists=True, file_okay=False)
    ] = Path("."),
    store: Annotated[str | None, typer.Option(help="the store for the delta: a folder or s3://bucket/prefix")] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of an S3 server other than AWS")] = None,
    name: Annotated[str | None, typer.Option(help="name of the registered model")] = None,
) -> None:
    """Retrain, graft, judge and register, stage by stage; stages that are up to date are skipped.

    If PREFECT_API_URL is set, the run is recorded there. Otherwise a Prefect server is started for the run; its records
    are in WORKSPACE/var/prefect. Exit code 0 with any verdict, 11 when everything is done but a registration waits for
    MLflow, 130 when interrupted, another code on an error.

    Example: python -m flows.retrain

    Example: python -m flows.retrain --store s3://my-bucket/deltas --endpoint http://127.0.0.1:8333 --name my-model
    """
    flow = getattr(sys.modules["__main__"], "__file__", None) or "flows/retrain.py"
    run_flow(Path(flow), workspace, store, endpoint, name)


def run_flow(
    flow: Path, workspace: Path, store: str | None = None, endpoint: str | None = None, name: str | None = None
) -> None:
    """Run the flow `retrain` of a file such as flows/retrain.py as a program; `run` lists the exit codes.

    Prefect reads its settings when it is imported, so the file, which imports it, is loaded only here.
    """
    started = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell starts background commands with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        params = load_params(workspace / "params.yaml")  # so that a mistake is reported before a server starts
        require_options({"--workspace": str(workspace), "--store": store, "--endpoint": endpoint, "--name": name})
        if name is not None:
            params.registry.named(name)
        _require_inputs(params, workspace / "params.yaml")
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        with Console(stderr=True).status("starting Prefect"), prefect_server(workspace.resolve() / "var" / "prefect"):
            retrain = _loaded(flow).retrain  # takes seconds, so it runs while the server starts
            from shadowft_core.pipeline.steps import WAITING

        state = retrain(str(workspace), store, endpoint, name, return_state=True)
    except KeyboardInterrupt:
        _end("interrupted; all processes of the run have ended, the next run resumes at the unfinished stage", 130)
    except ShadowError as error:
        _end(str(error), error.exit_code)
    if not state.is_completed():
        _end(state.message or state.type.value, RegistrationPendingError.exit_code if state.name == WAITING else 1)
    print(f"total: {time.monotonic() - started:.0f} seconds")


def main() -> None:
    """Run the command line."""
    set_variables()
    if not sys.warnoptions:  # hide the libraries' deprecation warnings; `python -W` shows them
        warnings.simplefilter("ignore")
    guard_output()
    app(prog_name="python -m flows.retrain")


def _loaded(flow: Path) -> Any:
    """The module of a flow's file, loaded as a worker of Prefect loads it: its imports begin at the file's folder, then
    at the folder above. Raises InputError if it cannot be loaded or has no flow `retrain`."""
    from prefect.exceptions import ScriptError
    from prefect.utilities.importtools import load_script_as_module

    flow = flow.resolve()
    try:
        with contextlib.chdir(flow.parents[1]):
            module = load_script_as_module(str(flow))
    except ScriptError as error:
        cause = error.user_exc
        raise InputError(f"{flow}: {type(cause).__name__}: {cause}; correct the file") from cause
    if not hasattr(module, "retrain"):
        raise InputError(f"{flow}: has no flow `retrain`; name the function that runs everything so")
    return module


def _require_inputs(params: Params, file: Path) -> None:
    """End unless data and tasks are there, with the exit code of a flow that failed for it."""
    try:
        require_inputs(params, file)
    except InputError as error:
        _end(str(error), 1)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _end(message: str, code: int) -> NoReturn:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
