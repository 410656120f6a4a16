"""One run: check the inputs, bring every stage up to date, publish the candidate's delta, register its recipe, report.

    shadowft run --help

It never promotes: a person runs `shadowft promote NAME VERSION`, which moves the alias on a positive verdict.

To add a step, write a Prefect task and call it where it belongs. It is shown, timed and retried like the other steps.
A task that raises or returns a Failed state ends the run with its message:

    from collections.abc import Callable

    from prefect import task

    @task(retries=2)
    def announce(report: str, show: Callable[[str], None]) -> None:
        "tell the team that the report is ready"
        show(f"sending {report}")
        ...

    run.step("announce", announce, run.output("report", ".html"), run.show)     # after run.register()

Make a step that computes files from files a stage: add it to dvc.yaml, and this flow runs it without a change.
"""

if __name__ == "__main__":  # Prefect reads its settings when it is imported, so the command line comes first
    from shadowft_core.pipeline.command import main

    main()

from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from shadowft_core.pipeline.run import Run

RETRIES = {"fetch": 1}  # fetch uses the network; other stages would fail again


@flow(name="retrain", persist_result=False)
def retrain(
    workspace: str = ".",
    store_uri: str | None = None,
    store_endpoint: Annotated[str | None, Field(pattern="^[^@?]*$")] = None,  # Prefect refuses a URL with a password
    model_name: str | None = None,
) -> State:
    """Retrain, graft, judge and register; never promotes.

    Args:
        workspace: folder with params.yaml and dvc.yaml; only one run at a time in a folder
        store_uri: the store for the delta, a folder or s3://bucket/prefix; as in params.yaml when empty
        store_endpoint: URL of an S3 server other than AWS; as in params.yaml when empty
        model_name: name of the registered model; as in params.yaml when empty

    Ends Completed with the verdict's decision as its message, or Failed with a one-line message. If no arm beats the
    Instruct on the dev items, nothing is published or registered; if the candidate is the champion itself, nothing new
    is. Ends Failed, named Waiting, when everything is done but MLflow has not accepted a registration of this run or an
    earlier one; the next run, `shadowft register --pending` or `shadowft reconcile` sends it. When a run ends, for any
    reason, all its processes end, and the next run starts at the unfinished stage.
    """
    with Run(workspace, store_uri, store_endpoint, model_name) as run:
        run.preflight()
        for stage in run.stages:
            if stage.name == "look":
                run.champion()
            run.reproduce(stage, retries=RETRIES.get(stage.name, 0))
        if route := run.candidate():
            run.publish(run.output(f"extract@{route}"))
        run.register()
        run.report()
    return run.state
