"""A flow that a user wrote: steps added to a run, and how their end becomes the state of the flow."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.states import Failed

from shadowft_core.errors import InputError
from shadowft_core.pipeline.run import Run
from tests.fixtures.workspace import make_workspace


@task
def announce(report: str, show: Callable[[str], None]) -> None:
    """Tell the team.

    More is not shown.
    """
    show(f"sending {report}")


@task
def refuse() -> State:
    return Failed(message="the team is asleep")


@task
def crash() -> None:
    raise ZeroDivisionError("by a bug")


@pytest.fixture
def workspace(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("SHADOWFT_STORE_URI", "SHADOWFT_STORE_ENDPOINT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return str(make_workspace(tmp_path))


def end_of(workspace: str, steps: Callable[[Run], object]) -> State:
    """The state of a flow whose steps, after the preflight, are these."""

    @flow
    def custom() -> State:
        with Run(workspace, None, None, None) as run:
            run.preflight()
            steps(run)
        return run.state

    return custom(return_state=True)


def test_a_step_is_shown_with_its_first_line_and_its_output(workspace: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = end_of(workspace, lambda run: run.step("announce", announce, run.output("report", ".html"), run.show))
    assert state.is_completed(), state.message
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("announce: Tell the team. (")
    assert shown[1] == "  sending work/report.html"
    assert shown[2].startswith("announce: Completed in ")


def test_a_failed_step_ends_the_run_with_its_message(workspace: str) -> None:
    def steps(run: Run) -> None:
        run.step("refuse", refuse)
        pytest.fail("the step after a failed one ran")

    state = end_of(workspace, steps)
    assert (state.is_failed(), state.message) == (True, "the team is asleep")
    assert "by a bug" in (end_of(workspace, lambda run: run.step("crash", crash)).message or "")


def test_the_folder_and_the_environment_are_restored(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("SHADOWFT_STORE_URI", "before")
    folder = Path.cwd()
    with Run(workspace, "s3://bucket/deltas", "http://127.0.0.1:1", None) as run:
        assert Path.cwd() == Path(workspace)
        assert os.environ["SHADOWFT_STORE_URI"] == "s3://bucket/deltas"
        raise InputError("no such luck")
    assert (run.state.is_failed(), run.state.message) == (True, "no such luck")
    assert Path.cwd() == folder
    assert os.environ["SHADOWFT_STORE_URI"] == "before"
    assert "SHADOWFT_STORE_ENDPOINT" not in os.environ
