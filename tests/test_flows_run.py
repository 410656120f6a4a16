"""A flow that a user wrote: steps added to a run, their display and estimates, and the state of the flow."""

import io
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.logging import disable_run_logger
from prefect.states import Failed
from rich.console import Console

from shadowft_core.errors import InputError, ShadowError
from shadowft_core.params import load_params
from shadowft_core.pipeline import steps
from shadowft_core.pipeline.clock import Clock
from shadowft_core.pipeline.display import Display
from shadowft_core.pipeline.result import Result
from shadowft_core.pipeline.run import Run
from shadowft_core.pipeline.server import START_SECONDS, prefect_server
from shadowft_core.pipeline.stage_process import run_stage
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


def end_of(workspace: str, acts: Callable[[Run], object]) -> State:
    """The state of a flow whose acts, after the preflight, are these."""

    @flow
    def custom() -> State:
        with Run(workspace, None, None, None) as run:
            run.preflight()
            acts(run)
        return run.state

    return custom(return_state=True)


def test_a_step_is_shown_with_its_first_line_and_its_output(workspace: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = end_of(workspace, lambda run: run.step("announce", announce, run.output("report", ".html"), run.show))
    assert state.is_completed(), state.message
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "announce: Tell the team. (24 s left)", "its own second, 6 of the stages, 17 of the last steps"
    assert shown[1] == "  sending work/report.html"
    assert shown[2].startswith("announce: Completed in ")


def test_a_run_of_a_deployment_shows_nothing(
    workspace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefect's log has its lines."""
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "1")
    state = end_of(workspace, lambda run: run.step("announce", announce, run.output("report", ".html"), run.show))
    assert (state.is_completed(), capsys.readouterr().out) == (True, "")


def test_an_error_of_the_flow_ends_the_running_stage(workspace: str) -> None:
    (Path(workspace) / "fetch.sh").write_text("touch started; sleep 300\n", encoding="utf-8")
    ends: list[str | None] = []
    stage = threading.Thread(target=lambda: ends.append(run_stage("fetch", print)), daemon=True)

    def fail() -> None:
        with Run(workspace, None, None, None):
            stage.start()
            while not Path("started").exists():
                assert stage.is_alive()
                time.sleep(0.05)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    stage.join(30)
    assert [end is not None for end in ends] == [True]


def test_outputs_that_do_not_belong_together_are_refused_without_a_retry(
    workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a server that does not answer may answer later."""
    monkeypatch.chdir(workspace)
    with disable_run_logger():
        state = steps.register.fn(load_params(Path("params.yaml")), None, print)
    assert (state.name, "no such file" in state.message) == (steps.REFUSED, True)


def test_the_run_registers_under_the_name_it_was_given(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    assert steps.preflight(Path("params.yaml"), "another").registry.name == "another"
    assert steps.preflight(Path("params.yaml"), None).registry.name == "shadowft-pico"


def test_a_prefect_server_that_ends_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_HOME", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "")  # so that it is restored after the test
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nonsense")
    started = time.monotonic()
    with pytest.raises(ShadowError, match=r"prefect: the server did not start .*server\.log"), prefect_server(tmp_path):
        pass
    assert time.monotonic() - started < START_SECONDS / 2


def test_a_failed_step_ends_the_run_with_its_message(workspace: str) -> None:
    def acts(run: Run) -> None:
        run.step("refuse", refuse)
        pytest.fail("the step after a failed one ran")

    state = end_of(workspace, acts)
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


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (None, {"fetch": 2, "train": 30, "own": 1}),
        ("{damaged", {"fetch": 2, "train": 30, "own": 1}),
        ('{"fetch": 8}', {"fetch": 8, "train": 120, "own": 4}),  # this machine takes four times what dvc.yaml declares
        ('{"fetch": 8, "train": -1, "own": "x"}', {"fetch": 8, "train": 120, "own": 4}),
        ('{"fetch": 1, "train": 63, "own": 5}', {"fetch": 1, "train": 63, "own": 5}),
        ('{"own": 7}', {"fetch": 2, "train": 30, "own": 7}),  # dvc.yaml declares nothing for it, so it gives no pace
    ],
)
def test_a_step_is_expected_to_take_as_long_as_before(
    kept: str | None, expected: dict[str, float], tmp_path: Path
) -> None:
    file = tmp_path / "durations.json"
    if kept is not None:
        file.write_text(kept, encoding="utf-8")
    clock = Clock({"fetch": 2, "train": 30}, file)
    assert {step: clock.expected(step) for step in expected} == expected
    assert clock.remaining(["train"], "fetch", elapsed=0.5) == expected["fetch"] - 0.5 + expected["train"]
    assert clock.remaining(["train"], "fetch", elapsed=1000) == expected["train"], "a late step takes no time back"
    clock.record("fetch", 2.345)
    assert Clock({}, file).expected("fetch") == 2.35


def test_the_display_counts_stale_steps_only_and_records_completed_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock({"fetch": 30, "train": 65, "judge": 600}, tmp_path / "durations.json")
    with Display({"fetch": "get the pair", "train": "", "judge": ""}, frozenset({"fetch", "train"}), clock) as display:
        for state in ("Unchanged", "Failed", "Refused", "Completed"):
            display.start("fetch")
            for line in (" 1/2 ", "  ", ""):
                display.line(line)
            display.finish(state)
            assert (tmp_path / "durations.json").exists() == (state == "Completed")
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["fetch: get the pair (1:35 min left)", "  1/2", "fetch: Unchanged in 0.0 s"]
    assert len(shown) == 12, "blank lines are not shown"
    assert set(json.loads((tmp_path / "durations.json").read_text(encoding="utf-8"))) == {"fetch"}


def test_a_row_that_is_added_stands_below_the_one_it_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The champion below the Instruct, as in the report; a step of a flow's own at the end."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = dict.fromkeys(("fetch", "evaluate-instruct", "evaluate@shadow", "publish"), "")
    with Display(names, frozenset(), Clock({}, tmp_path / "d.json")) as display:
        display.insert("champion", "score it", after="evaluate-instruct")
        for name in ("champion", "announce"):
            display.start(name)
            display.finish("Completed")
    last = capsys.readouterr().out.rpartition("fetch")[2]
    order = ["evaluate-instruct", "champion", "evaluate@shadow", "publish", "announce"]
    assert sorted(order, key=last.index) == order


@pytest.mark.parametrize("state", ["Completed", "Refused", "Waiting"])
def test_a_live_table_shows_the_last_state_of_every_step_unless_it_is_quiet(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A state may have a name that the display does not know."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stdout for a terminal
    for quiet in (False, True):
        with Display({"fetch": "get the pair"}, frozenset(), Clock({}, tmp_path / "d.json"), quiet=quiet) as display:
            display.start("fetch")
            display.line("half of it")
            display.finish(state)
        shown = capsys.readouterr().out
        assert [text in shown for text in (state, "half of it", "so far")] == [not quiet] * 3


def test_the_result_has_a_row_for_each_arm_in_a_fixed_order_and_stresses_the_candidate() -> None:
    scores = {"mean": 0.5, "interval": [0.25, 0.75]}
    arm = {"scale": 0.5, "domain": scores, "tasks": {"a|b": scores | {"mean": 0.75}}}
    verdict = {
        "decision": "hold",
        "reasons": ["a tie"],
        "candidate": "shadow",
        "arms": {"shadow_scaled": arm, "shadow": arm | {"scale": 1.0}, "instruct": arm | {"scale": 0.0}},
    }
    result = Result(verdict, ["a|b"], {"version": "models:/x/1"})
    assert result.markdown().splitlines() == [
        "# Verdict: hold",
        "- a tie",
        "",
        "| arm | scale | domain | a\\|b |",
        "| --- | --- | --- | --- |",
        "| instruct | 0 | 0.500 [0.250, 0.750] | 0.750 [0.250, 0.750] |",
        "| shadow | 1 | 0.500 [0.250, 0.750] | 0.750 [0.250, 0.750] |",
        "| shadow_scaled | 0.5 | 0.500 [0.250, 0.750] | 0.750 [0.250, 0.750] |",
        "",
        "- version: models:/x/1",
    ]
    shown = io.StringIO()
    result.print(Console(file=shown, force_terminal=True, width=120))
    assert re.findall(r"\x1b\[1m(instruct|shadow|shadow_scaled) *\x1b", shown.getvalue()) == ["shadow"]
    registered = replace(result, verdict=verdict | {"decision": "promote"})
    assert registered.markdown().splitlines()[-1] == (
        "- next: read the report, then `shadowft promote x 1` makes it champion"
    )
    assert "next: " not in replace(registered, facts={"waiting": "models:/x/1"}).markdown()
