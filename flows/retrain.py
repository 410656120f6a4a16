"""The story of one run: look before leaping, bring every stage up to date, publish the delta, register the recipe.

    python -m flows.retrain --help

It never promotes: `shadowft promote NAME VERSION` moves the alias, on a positive verdict, when a person decides to.
"""

if __name__ == "__main__":  # Prefect reads its settings when it is imported, so the command line comes first
    from shadowft_core.pipeline.command import main

    main()

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from prefect import Task, flow, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, StateType
from prefect.states import Completed, Failed
from pydantic import Field

from shadowft_core.errors import ShadowError
from shadowft_core.pipeline import steps
from shadowft_core.pipeline.clock import Clock
from shadowft_core.pipeline.display import Display, Result
from shadowft_core.pipeline.dvc_stages import read_plan

ACTS = {"publish": "send the delta to the store", "register": "register the recipe as a new version"}
ACT_SECONDS = {"publish": 2.0, "register": 15.0}
REACHES_OUT = {"fetch"}  # tried twice; a training that failed would fail again


@flow(name="retrain", persist_result=False)
def retrain(
    workspace: str = ".",
    store_uri: str | None = None,
    store_endpoint: Annotated[str | None, Field(pattern="^[^@?]*$")] = None,  # Prefect refuses one with a password
    model_name: str | None = None,
) -> State:
    """Retrain, graft, judge and register; never promotes.

    Args:
        workspace: folder with params.yaml and dvc.yaml; one run at a time in one folder
        store_uri: where the delta goes, a folder or s3://bucket/prefix; params.yaml decides when empty
        store_endpoint: URL of an S3 server other than AWS; params.yaml decides when empty
        model_name: name of the registered model; params.yaml decides when empty

    Completed with the verdict's decision in its message, or Failed with one line. Failed, named Waiting, when all is
    done but MLflow has not accepted a registration, of this run or an earlier one: alerts on failures fire, and the
    next run, `shadowft register --pending` or `shadowft reconcile` sends it. Whatever ends the run early, no
    process of it lives on, and the next run starts at the unfinished stage.
    """
    chosen = {"SHADOWFT_STORE_URI": store_uri, "SHADOWFT_STORE_ENDPOINT": store_endpoint}
    with contextlib.chdir(workspace), _environment({name: value for name, value in chosen.items() if value}):
        try:
            return _retrain(model_name)
        except ShadowError as error:
            return Failed(message=str(error))
        except BaseException:
            steps.stop_all()
            raise


def _retrain(model_name: str | None) -> State:
    from shadowft_core.registry import git_state, waiting

    params = steps.preflight(Path("params.yaml"), model_name)
    plan = read_plan()
    steps.require_disk(params, plan["fetch"].outs)
    git = git_state(Path())  # before the run, which rewrites dvc.lock

    clock = Clock({stage.name: stage.seconds for stage in plan.stages} | ACT_SECONDS, Path("var/durations.json"))
    names = {stage.name: stage.description for stage in plan.stages} | ACTS
    with Display(names, plan.stale | set(ACTS), clock, quiet=bool(runtime.deployment.id)) as display:

        def run(name: str, task: Task[..., State], *arguments: object) -> State:
            display.start(name)
            state = task(*arguments, return_state=True)
            display.finish(state.name or state.type.value)
            return state

        for stage in plan.stages:
            reproduce = steps.reproduce.with_options(retries=1) if stage.name in REACHES_OUT else steps.reproduce
            state = run(stage.name, reproduce, stage.name, stage.name in plan.stale, display.line)
            if not state.is_completed():
                return Failed(message=state.message)
        published = run("publish", steps.publish, params, plan["extract@shadow"].outs[0], display.line)
        if not published.is_completed():
            return Failed(message=published.message)
        registered = run("register", steps.register, params, git, display.line)
        if not registered.is_completed():
            return Failed(message=registered.message)

    waits = waiting()
    verdict = json.loads(Path(plan["verdict"].out("verdict.json")).read_text(encoding="utf-8"))
    facts = {
        "delta": published.message,
        "version": registered.message,
        "report": plan["report"].outs[0],
    } | ({"waiting": "; ".join(waits)} if waits else {})
    result = Result(verdict, params.evaluate.guards, {name: fact or "" for name, fact in facts.items()})
    create_markdown_artifact(result.markdown(), key="verdict", description="the arms and the verdict of this run")
    result.print(display.console)
    message = f"{verdict['decision']}: {registered.message}"
    if waits:
        return State(type=StateType.FAILED, name=steps.WAITING, message=f"{message}. What waits: {'; '.join(waits)}")
    return Completed(message=message)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
