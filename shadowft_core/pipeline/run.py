"""One run of a flow in one workspace: its steps, their display, and its final state."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prefect import Task, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, StateType
from prefect.states import Completed, Failed

from shadowft_core.environment import unset
from shadowft_core.errors import ParamsError, ShadowError
from shadowft_core.pipeline import steps
from shadowft_core.pipeline.clock import Clock
from shadowft_core.pipeline.display import Display
from shadowft_core.pipeline.dvc_stages import Stage, read_plan
from shadowft_core.pipeline.inputs import require_options
from shadowft_core.pipeline.result import Result
from shadowft_core.pipeline.stage_process import stop_all
from shadowft_core.promotion.costs import record_cost
from shadowft_core.registry import candidate_of, git_state, waiting

SCORED = "evaluate-instruct"  # the stage that scores the Instruct; the champion is scored after it, on the same items
COUNTED = ("look", "verdict")  # stages that read the champion's scores
ACTS = {"publish": "send the delta to the store", "register": "register the recipe as a new version"}
NO_CANDIDATE = "nothing beats the Instruct on the dev items"
ACT_SECONDS = {"publish": 2.0, "register": 15.0}


class StepFailedError(ShadowError):
    """A step ended in a state other than Completed. The message is that of the state."""


class Run:
    """A context manager around the steps of one run. The flow returns its `state`.

    Inside the block, the workspace is the current folder, and `store_uri`, `store_endpoint` and `model_name`, if given,
    are in the environment, and so are the variables of environment.py, which a process of a Prefect worker lacks. Call
    `preflight` first. An argument that cannot be one raises ParamsError before the block. In it, a ShadowError or a
    failed step ends the block and sets `state` to Failed with a one-line message.
    Any other exception propagates after all processes of the run have ended.
    """

    def __init__(
        self, workspace: str, store_uri: str | None, store_endpoint: str | None, model_name: str | None
    ) -> None:
        self.state: State = Completed()
        self._workspace = workspace
        self._options = {
            "workspace": workspace,
            "store_uri": store_uri,
            "store_endpoint": store_endpoint,
            "model_name": model_name,
        }
        chosen = {
            "SHADOWFT_STORE_URI": store_uri,
            "SHADOWFT_STORE_ENDPOINT": store_endpoint,
            "SHADOWFT_REGISTRY_NAME": model_name,
        }
        self._settings = {name: value for name, value in chosen.items() if value}
        self._model_name = model_name
        self._facts: dict[str, str] = {}
        self._memory_checked = False
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        require_options(self._options)
        if not Path(self._workspace).is_dir():
            raise ParamsError(f"workspace {self._workspace}: no such folder; name that of params.yaml and dvc.yaml")
        self._cleanup.enter_context(contextlib.chdir(self._workspace))
        self._cleanup.enter_context(_environment(unset() | self._settings))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        with self._cleanup:
            if isinstance(error, ShadowError):
                self.state = Failed(message=str(error))
            elif error is not None:
                stop_all()
        return isinstance(error, ShadowError)

    def preflight(self) -> None:
        """Check params, data, names of tasks, store, registry and disk, ask DVC for the stages, and open the display.

        Raises a ShadowError.
        """
        self._params = steps.preflight(Path("params.yaml"), self._model_name)
        self._plan = read_plan(steps.reading_the_store(self._params))
        steps.require_disk(self._params, self._plan["fetch"].outs)
        self._git = git_state(Path())  # before the run, which rewrites dvc.lock
        clock = Clock({stage.name: stage.seconds for stage in self.stages} | ACT_SECONDS, Path("var/durations.json"))
        self._display = Display(
            {stage.name: stage.description for stage in self.stages} | ACTS,
            self._plan.stale | set(ACTS),
            clock,
            quiet=bool(runtime.deployment.id),
        )
        self._cleanup.enter_context(self._display)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of dvc.yaml in DVC's order: each after its dependencies."""
        return self._plan.stages

    def output(self, stage: str, suffix: str = "") -> str:
        """The path, relative to the workspace, of the one output of a stage that ends with `suffix`."""
        return self._plan[stage].out(suffix)

    def show(self, line: str) -> None:
        """Show a line of the running step."""
        self._display.line(line)

    def step(self, name: str, task: Task[..., Any], *arguments: object) -> State:
        """Run a Prefect task as a step and return its Completed state. Raises StepFailedError for any other state."""
        self._display.start(name, _first_line(task))
        ended: Any = task(*arguments, return_state=True)  # Prefect has no type for the state of an arbitrary task
        state: State = ended
        self._display.finish(state.name or state.type.value)
        if not state.is_completed():
            raise StepFailedError(state.message or f"{name}: {state.name}")
        return state

    def reproduce(self, stage: Stage, retries: int = 0) -> None:
        """Have DVC bring a stage up to date; skips a stage that already is, but for one that reads the store.

        Before the first training, checks that it can fit in memory. Raises a ShadowError.
        """
        if stage.name.startswith("train@") and stage.name in self._plan.stale and not self._memory_checked:
            pair, data = self._plan["fetch"].out("pair.json"), self._plan["prepare"].out("data")
            steps.require_memory(self._params, Path(pair).parent, Path(data), self._display.console.print)
            self._memory_checked = True
        task = steps.reproduce.with_options(retries=retries)
        plan = self._plan
        began = time.monotonic()
        state = self.step(stage.name, task, stage.name, stage.name in plan.stale, self.show, stage.name in plan.forced)
        if state.name != steps.UNCHANGED and stage.name in self._before_look:
            record_cost(stage.name, time.monotonic() - began)

    @property
    def _before_look(self) -> frozenset[str]:
        """The stages whose times `look` records."""
        names = [stage.name for stage in self.stages]
        return frozenset(names[: names.index("look")] if "look" in names else names)

    def champion(self) -> None:
        """Score the ledger's champion, and the best earlier one, on the items of this run, if they are grafts on the
        same Instruct.

        Not a stage, because DVC does not watch the ledger. It belongs before the stage `look`; then that stage, and
        those after it, are checked again. Does nothing if dvc.yaml has no stage that scores the Instruct.
        """
        names = [stage.name for stage in self.stages]
        if SCORED not in names:
            return
        instruct, data = self._plan["fetch"].out("instruct"), self._plan["prepare"].out("data")
        out = str(Path(self._plan[SCORED].out("")).with_name("champion"))
        self._display.insert("champion", _first_line(steps.champion), after=SCORED)  # as the report orders the arms
        self.step("champion", steps.champion, self._params.registry.name, instruct, data, out, self.show)
        if after := [names.index(stage) for stage in COUNTED if stage in names]:
            self._plan = replace(self._plan, stale=self._plan.stale | set(names[min(after) :]))

    def candidate(self) -> str | None:
        """The route of the candidate, known once the verdict is. None: no arm beat the Instruct on the dev items."""
        return candidate_of(Path(self.output("verdict", "verdict.json")).parent)[0]

    def publish(self, delta: str) -> None:
        """Send a delta folder to the store."""
        self._facts["delta"] = self.step("publish", steps.publish, self._params, delta, self.show).message or ""

    def register(self) -> None:
        """Register the candidate's recipe, if there is a candidate, as a new version, and send registrations that wait.

        If MLflow does not answer, the registration waits in var/pending.
        """
        if self.candidate() is not None:
            state = self.step("register", steps.register, self._params, self._git, self.show)
            self._facts["version"] = state.message or ""
            return
        self._display.drop(*ACTS)
        if waiting():
            self.step("register", steps.send_waiting, self._params, self.show)

    def report(self) -> None:
        """Show the verdict, attach it to the run, and set `state`: Completed, or Waiting while a registration waits.

        Waiting is a state of type Failed, so that it triggers alerts on failures.
        """
        self._display.close()
        verdict = json.loads(Path(self.output("verdict", "verdict.json")).read_text(encoding="utf-8"))
        facts = self._facts | {"report": self.output("report", "report.html")}
        if kept := "; ".join(waiting()):
            facts["waiting"] = kept
        result = Result(verdict, self._params.evaluate.guards, facts)
        create_markdown_artifact(result.markdown(), key="verdict", description="the arms and the verdict of this run")
        result.print(self._display.console)
        version = facts.get("version") if self.candidate() is not None else NO_CANDIDATE
        message = ": ".join([verdict["decision"], *filter(None, [version])])
        if kept:
            waits = f"{message}. Waiting: {kept}"
            self.state = State(type=StateType.FAILED, name=steps.WAITING, message=waits)
        else:
            self.state = Completed(message=message)


def _first_line(task: Task[..., Any]) -> str:
    return (task.description or "").partition("\n")[0]


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside a block."""
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
