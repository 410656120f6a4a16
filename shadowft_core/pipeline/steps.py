"""The steps of a run: the preflight, and Prefect tasks that reproduce a stage, publish a delta, register a recipe."""

import contextlib
import io
import shutil
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
    plain,
    without_passwords,
)
from shadowft_core.files import make_folder
from shadowft_core.params import Params, load_params
from shadowft_core.pipeline.dvc_stages import changed
from shadowft_core.pipeline.inputs import require_inputs
from shadowft_core.pipeline.stage_process import run_command, run_stage

if TYPE_CHECKING:
    from shadowft_core.registry import Git

MIN_FREE_BYTES = 10**9  # required on disk while the sizes of the models are unknown
REFUSED = "Refused"  # name of a failed state that a retry cannot change
UNCHANGED = "Unchanged"  # name of a completed state: DVC had nothing to do
WAITING = "Waiting"  # name of a state: everything is done, but MLflow has not accepted a registration yet
Show = Callable[[str], None]  # shows one line of a running step


def preflight(params_file: Path, model_name: str | None) -> Params:
    """Check params, data, names of tasks, store and registry before the first stage. Raises a ShadowError.

    A registry that does not answer is only reported: if it does not answer at the end either, the registration waits.
    """
    from shadowft_core import prepare, registry
    from shadowft_core.suites import TaskFiles

    make_folder(var := Path("var"))
    with contextlib.suppress(PermissionError):  # a link to a folder of another user
        var.chmod(0o700)  # an earlier version or the user may have created it
    params = load_params(params_file)
    if model_name:
        params = params.model_copy(update={"registry": params.registry.named(model_name)})
    require_inputs(params, params_file)
    prepare.require_pinned(params.prepare)  # DVC does not watch these files
    for name, route in params.routes.items():
        if words := params.train_for(name).words:
            from shadowft_core.train import require_runnable, require_watched

            require_runnable(words)
            require_watched(words, name, route.model)
    tasks = TaskFiles(Path(params.evaluate.tasks))
    for section in (params.evaluate, params.sweep):
        tasks.resolve([*section.domain, *section.guards])  # a misspelt name would end the run after the trainings
    outage = ""
    with captured_stderr(lambda line: None):  # MLflow prints the tables it creates
        try:
            registry.preflight(params)
        except RegistryError as error:
            outage = str(error)
    if outage:
        print(f"{outage}. The run continues; its registration will wait in {registry.PENDING}", file=sys.stderr)
    return params


def reading_the_store(params: Params) -> frozenset[str]:
    """The stages that read what DVC does not watch: `look`, because looks may have been made elsewhere, and `start`, if
    a route starts from the champion, which may have moved."""
    warm = any(params.train_for(route).start == "champion" for route in params.routes)
    return frozenset({"look", "start"} if warm else {"look"})


def require_disk(params: Params, pair: tuple[str, ...]) -> None:
    """Raise InputError when less disk space is free than the run may write.

    `pair` has the paths of the two models. Each route writes one grafted model. A route that trains whole models, as a
    command may, also writes two float32 models (tuned and delta), and each of them again to DVC's cache. With further
    seeds its deltas wait until all seeds are scored, beside one tuned model. Unknown sizes count as 1 GB in total.
    """
    size = sum(file.stat().st_size for path in pair for file in Path(path).rglob("*.safetensors")) // 2
    trainings = map(params.train_for, params.routes)
    whole = [one for one in trainings if one.command is not None or one.method in ("full", "osf")]
    waiting = sum(2 * len(one.seeds) for one in whole if len(one.seeds) > 1)  # the further deltas, and one model
    # float32 is twice bfloat16: 2 x 2 x 2 places
    need = max(MIN_FREE_BYTES, size * (len(params.routes) + 8 * len(whole) + waiting))
    free = shutil.disk_usage(".").free
    if free < need:
        raise InputError(
            f"disk: {free / 1e9:.1f} GB free, the run may write {need / 1e9:.1f} GB; free space or move the workspace"
        )


def require_memory(params: Params, pair: Path, data: Path, show: Show) -> None:
    """Raise TrainError if a training cannot fit in the memory of this machine (`shadowft plan`).

    Reads configs, headers and data-report.json. A model whose config the plan does not know is shown and not refused.
    """
    from shadowft_core import plan

    try:
        shapes, untrained = plan.read_pair(pair)
        lengths = plan.read_lengths(data)
    except InputError as error:
        show(f"memory was not planned: {error}")
        return
    found = plan.plan_params(params, shapes, lengths, plan.here(params.train.threads), untrained)
    plan.require_fits(found)
    if own := [name for name in params.routes if name not in found]:
        show(f"memory of {', '.join(own)} was not planned: train.command trains, and its needs are not known")
    if not found:
        return
    peak, one = max((route["peak"], name) for name, route in found.items())
    show(f"memory planned: {peak / 1e9:.1f} GB at the peak of {one}, {found[one]['available'] / 1e9:.1f} GB available")


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False, retry_delay_seconds=5)
def reproduce(stage: str, stale: bool, show: Show, force: bool = False) -> State:
    """Have DVC bring one stage up to date; with `force`, by running it.

    Ends Completed, named Unchanged if DVC has nothing to do, or Failed with the stage's one-line error. Every line that
    the stage writes goes to `show` and to Prefect's log.
    """
    if not force and not (stale and changed(stage)):
        return Completed(name=UNCHANGED, message=f"{stage}: inputs, parameters and outputs match dvc.lock")
    logger = get_run_logger()

    def show_and_log(line: str) -> None:
        show(line)
        logger.info(line)

    if failure := run_stage(stage, show_and_log, force):
        return Failed(message=f"{stage}: {failure}")
    return Completed(message=f"{stage}: reproduced")


@task(cache_policy=NO_CACHE, persist_result=False)
def champion(name: str, instruct: str, data: str, out: str, show: Show) -> State:
    """score the champion on the items of this run

    It is that of the registered model `name`; its scores go to the folder `out`. Ends Completed, with what the verb
    said if there is no champion of this Instruct, or Failed with its error.
    """
    words = ["--champion", "--name", name, "--instruct", instruct, "--data", data, "--out", out]
    said = ""

    def show_last(line: str) -> None:
        nonlocal said
        said = line
        show(line)

    if failure := run_command([sys.executable, "-m", "shadowft_core.cli", "evaluate", *words], show_last):
        return Failed(message=f"champion: {failure}")
    return Completed(message=f"champion: {out}" if Path(out).is_dir() else said)


def _may_be_retried(task: object, run: object, state: State) -> bool:
    return state.name != REFUSED


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5, retry_condition_fn=_may_be_retried)
def publish(params: Params, delta: str, show: Show) -> State:
    """Publish the delta; ends Completed with its digest as the message."""
    from shadowft_core import store

    try:
        with captured_stderr(show):
            return Completed(message=store.publish(Path(delta), params.store))
    except ShadowError as error:
        return _failed(error)


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5, retry_condition_fn=_may_be_retried)
def register(params: Params, git: "Git", show: Show) -> State:
    """Register the recipe; ends Completed with the version and its alias as the message.

    It ends Completed, named Unchanged, if the candidate is the champion itself, so that nothing new is registered.
    An outage of MLflow does not fail the step: it ends Completed, named Waiting, and its message explains how to send
    the registration later. The flow reports it.
    """
    from shadowft_core import registry

    try:
        with captured_stderr(show):
            version = registry.register(params, git=git)
        reference = f"models:/{version.name}/{version.number}"
        if version.champion:
            said = f"{reference} is the champion and the candidate, so nothing is registered"
            return Completed(name=UNCHANGED, message=said)
        return Completed(message=f"{reference} (alias {registry.CANDIDATE})")
    except RegistrationPendingError as error:
        return Completed(name=WAITING, message=str(error))
    except ShadowError as error:
        return _failed(error)


@task(cache_policy=NO_CACHE, persist_result=False)
def send_waiting(params: Params, show: Show) -> State:
    """Send the registrations of earlier runs; ends Completed, named Waiting if MLflow still does not accept one."""
    from shadowft_core import registry

    try:
        with captured_stderr(show):
            versions = registry.register_pending(params.registry)
        return Completed(message=", ".join(f"models:/{version.name}/{version.number}" for version in versions))
    except RegistrationPendingError as error:
        return Completed(name=WAITING, message=str(error))


def _failed(error: ShadowError) -> State:
    """A Failed state; named Refused unless a retry may help, because the store did not answer."""
    return Failed(message=str(error), name="Failed" if isinstance(error, StoreUnreachableError) else REFUSED)


@contextlib.contextmanager
def captured_stderr(show: Show) -> Iterator[None]:
    """Capture what the block writes to stderr, and pass the lines to `show` at its end, with passwords masked."""
    with contextlib.redirect_stderr(io.StringIO()) as captured:
        try:
            yield
        finally:
            for line in captured.getvalue().splitlines():
                show(plain(without_passwords(line)))
