"""The tasks of the flow: one asks DVC for one stage, the others are the acts that DVC does not own."""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from shadowft_core.errors import (
    InputError,
    RegistrationPendingError,
    RegistryError,
    ShadowError,
    StoreUnreachableError,
    without_passwords,
)
from shadowft_core.files import make_folder, process
from shadowft_core.params import Params, load_params
from shadowft_core.pipeline.dvc_stages import changed

if TYPE_CHECKING:
    from shadowft_core.registry import Git

FLOOR = 10**9  # bytes that must be free when the sizes of the models are not known yet
REFUSED = "Refused"  # the name of a failed state that a second try cannot mend
WAITING = "Waiting"  # the name of a state: all is done, but MLflow has not accepted a registration yet
Say = Callable[[str], None]

_children: set[subprocess.Popen[str]] = set()


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False, retry_delay_seconds=5)
def reproduce(stage: str, stale: bool, say: Say) -> State:
    """Have DVC bring one stage up to date, in a child that dies with this process.

    Completed, named Unchanged when DVC has nothing to do; Failed with the stage's own one-line error. Every line the
    stage writes goes to `say` and to Prefect's log.
    """
    if not (stale and changed(stage)):
        return Completed(name="Unchanged", message=f"{stage}: inputs, parameters and outputs are those of dvc.lock")
    logger = get_run_logger()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    child = process.start(
        [sys.executable, "-P", str(Path(__file__).with_name("reproduce.py")), stage],
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
    )
    _children.add(child)
    try:
        error = ""
        for line in map(str.strip, child.stdout or ()):
            if line := without_passwords(line):
                say(line)
                logger.info(line)
                error = line if _explains(line) >= _explains(error) else error
        code = child.wait()
    finally:
        process.stop(child)
        _children.discard(child)
    if code:
        return Failed(message=f"{stage}: {_reason(code, error)}")
    return Completed(message=f"{stage}: reproduced")


def stop_all() -> None:
    """End every stage that still runs, with all its processes."""
    for child in list(_children):
        process.stop(child)
        _children.discard(child)


_SHELL_WORDS = {signal.strsignal(number) for number in signal.Signals}  # "Killed": what a shell says of a dead child


def _explains(line: str) -> int:
    """How well a line explains a failure: a stage's own error best, then DVC's, then any other."""
    if line.removesuffix(" (core dumped)") in _SHELL_WORDS:
        return -1
    return 2 if line.startswith("error:") else 1 if line.startswith("ERROR:") else 0


def _reason(code: int, error: str) -> str:
    """Why a stage ended with an exit code that is not 0; `error` is the line that explains it best, or empty."""
    number = -code if code < 0 else code - 128  # negative when the guard itself was killed
    words = re.sub(r"^error:\s*", "", error, flags=re.IGNORECASE)
    if number not in set(signal.Signals) or (_explains(error) == 2 and number != signal.SIGKILL):
        return words or f"exit code {code}, without a message"
    reason = f"killed by signal {number} ({signal.Signals(number).name})"
    if number == signal.SIGKILL:
        reason += (
            ", as the kernel does when memory runs out; add memory, or give the stage less to do at once "
            "(its batch_size, max_length, rank), then run again"
        )
    return f"{reason}. Its last line: {words}" if words else reason


def _failed(error: ShadowError) -> State:
    """A server that does not answer may answer later; anything else is refused for good."""
    return Failed(
        message=str(error), name="Failed" if isinstance(error, StoreUnreachableError | RegistryError) else REFUSED
    )


def _may_pass(task: object, run: object, state: State) -> bool:
    return state.name != REFUSED


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5, retry_condition_fn=_may_pass)
def publish(params: Params, delta: str, say: Say) -> State:
    """Put the delta into the store; Completed with its digest as the message."""
    from shadowft_core import store

    try:
        with captured_stderr(say):
            return Completed(message=store.publish(Path(delta), params.store))
    except ShadowError as error:
        return _failed(error)


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5, retry_condition_fn=_may_pass)
def register(params: Params, git: "Git", say: Say) -> State:
    """Register the recipe; Completed with the version and its alias as the message.

    An outage of MLflow does not undo a training: Completed, named Waiting, with what to do later as the message; the
    flow reports it.
    """
    from shadowft_core import registry

    try:
        with captured_stderr(say):
            version = registry.register(params, git=git)
        return Completed(message=f"models:/{version.name}/{version.number} (alias {registry.CANDIDATE})")
    except RegistrationPendingError as error:
        return Completed(name=WAITING, message=str(error))
    except ShadowError as error:
        return _failed(error)


@contextlib.contextmanager
def captured_stderr(say: Say) -> Iterator[None]:
    """Pass what the block writes to stderr to `say` when it ends."""
    with contextlib.redirect_stderr(io.StringIO()) as words:
        try:
            yield
        finally:
            for line in words.getvalue().splitlines():
                say(without_passwords(line))


def preflight(params_file: Path, model_name: str | None) -> Params:
    """Everything that can be refused before the first stage: params, data, store. Raises a ShadowError.

    A registry that does not answer is only told of: by the end of the run it may, and till then a registration waits.
    """
    from shadowft_core import registry

    make_folder(var := Path("var"))
    with contextlib.suppress(PermissionError):  # a link to a folder that someone else owns
        var.chmod(0o700)  # made by an earlier version, or by hand
    params = load_params(params_file)
    if model_name:
        params = params.model_copy(update={"registry": params.registry.named(model_name)})
    for name, path in (("prepare.data", params.prepare.data), ("evaluate.tasks", params.evaluate.tasks)):
        if not Path(path).exists():
            raise InputError(f"{params_file}: {name}: {path} does not exist; name an existing file or folder")
    outage = ""
    with captured_stderr(lambda line: None):  # MLflow tells of the tables it makes
        try:
            registry.preflight(params)
        except RegistryError as error:
            outage = str(error)
    if outage:
        print(f"{outage}. The run goes on, its registration will wait in {registry.PENDING}", file=sys.stderr)
    return params


def require_disk(params: Params, pair: tuple[str, ...]) -> None:
    """Raise InputError when the disk is too small for what the run will write at most.

    `pair` holds the paths of the two models. Each route writes one grafted model; a full fine-tune also writes two
    float32 models (tuned and delta), each a second time in DVC's cache. Unknown sizes count as a floor of 1 GB.
    """
    size = sum(file.stat().st_size for path in pair for file in Path(path).rglob("*.safetensors")) // 2
    factor = 1 + (8 if params.train.method == "full" else 0)  # bfloat16 doubles as float32: 2 models x 2 places x 2
    need = max(FLOOR, size * factor * len(params.routes))
    free = shutil.disk_usage(".").free
    if free < need:
        raise InputError(
            f"disk: {free / 1e9:.1f} GB free, the run may write {need / 1e9:.1f} GB; make room or move the workspace"
        )
