"""One run: check what can be checked, bring every stage up to date, publish the delta, register the recipe, report.

    python -m flows.retrain --help

It never promotes: `shadowft promote NAME VERSION` moves the alias, on a positive verdict, when a person decides to.

To add a step, write a Prefect task and call it where it belongs. It is shown, timed and retried like the other steps,
and a task that raises or returns a Failed state ends the run with its message:

    from collections.abc import Callable

    from prefect import task

    @task(retries=2)
    def announce(report: str, show: Callable[[str], None]) -> None:
        "tell the team that the report is ready"
        show(f"sending {report}")
        ...

    run.step("announce", announce, run.output("report", ".html"), run.show)     # after run.register()

A step that computes files from files is better a stage: add it to dvc.yaml, and this flow runs it without a change.
"""

if __name__ == "__main__":  # Prefect reads its settings when it is imported, so the command line comes first
    from shadowft_core.pipeline.command import main

    main()

from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from shadowft_core.pipeline.run import Run

RETRIES = {"fetch": 1}  # it uses the network; a training that failed would fail again


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
    done but MLflow has not accepted a registration of this run or an earlier one; the next run, `shadowft register
    --pending` or `shadowft reconcile` sends it. However a run ends, all its processes end with it, and the next run
    starts at the unfinished stage.
    """
    with Run(workspace, store_uri, store_endpoint, model_name) as run:
        run.preflight()
        for stage in run.stages:
            run.reproduce(stage, retries=RETRIES.get(stage.name, 0))
        run.publish(run.output("extract@shadow"))
        run.register()
        run.report()
    return run.state
