"""Follows a training in MLflow while it runs: one run per training, in the experiment NAME-training.

A thread sends what the training reports, so MLflow neither delays the training nor fails it. When MLflow does not
answer, one line on stderr says so, and the training is not followed any further.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shadowft_core.errors import RegistryError, ShadowError, StoppedError, say, without_passwords
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Registry
from shadowft_core.registry.connection import connected, uri_of
from shadowft_core.registry.evidence import flat
from shadowft_core.registry.tracking import experiment

KEY = "shadowft.training"  # tag of a run: digest of what the training depends on
PAUSE = 1.0  # seconds between two calls
BATCH = 1000  # MLflow's limit of metrics per call
WAIT = 5.0  # seconds that the end of a training waits for MLflow
SAMPLE = 10.0  # seconds between two measurements of the machine
UNSENT = ("step", "seconds")  # fields of a line that are no metric

Line = Mapping[str, float]


@contextmanager
def following(registry: Registry, route: str, identity: Mapping[str, Any]) -> Iterator[Callable[[Line], None]]:
    """A function that takes the lines of a training, each with `step` and numbers by name; it returns at once.

    `identity` is everything that the training depends on, with its `settings`, which become the run's parameters. A run
    of this identity that did not finish is continued: losses up to its last step are not sent again. The run ends
    FINISHED, KILLED if a signal stops the training, or FAILED. A training without a line has no run. Raises nothing of
    its own.
    """
    follower = _Follower(registry, route, identity)
    _import_mlflow()
    status = "FAILED"
    try:
        yield follower.take
        status = "FINISHED"
    except (StoppedError, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        follower.end(status)


class _Follower(threading.Thread):
    """The thread that talks to MLflow. It is a daemon: a request that hangs does not keep the process alive."""

    def __init__(self, registry: Registry, route: str, identity: Mapping[str, Any]) -> None:
        super().__init__(name="following", daemon=True)
        self.lines: deque[Line] = deque()
        self._registry, self._route, self._identity = registry, route, identity
        self._over = threading.Event()
        self._status, self._left = "", False

    def take(self, line: Line) -> None:
        """Keep a line to be sent. The first one starts the thread, so a training without a step makes no run."""
        self.lines.append(line)
        if self.ident is None:
            self.start()

    def end(self, status: str) -> None:
        """End the run with this status; waits at most WAIT seconds for MLflow."""
        if self.ident is None:
            return
        self._status = status
        self._over.set()
        self.join(WAIT)
        if self.is_alive():
            self._left = True
            self._say(f"no answer within {WAIT:.0f} s")

    def run(self) -> None:
        """Send lines until the training ends."""
        try:
            with connected(self._registry) as client:
                run, last = self._run_of(client)
                with _measured(run, uri_of(self._registry)):
                    while not self._over.wait(PAUSE):
                        self._send(client, run, last, all_of_them=False)
                    self._send(client, run, last, all_of_them=True)
                client.set_terminated(run, self._status)
        except ShadowError as error:
            if not self._left:
                self._say(str(error))
        except Exception as error:  # whatever MLflow raises, the training goes on
            if not self._left:
                self._say(f"{type(error).__name__}: {' '.join(str(error).split()):.200}")

    def _say(self, reason: str) -> None:
        say(f"train: not followed in MLflow: {without_passwords(reason)}")

    def _run_of(self, client: Any) -> tuple[str, int]:
        """The id of the run, new or continued, and the last step that it has."""
        place = experiment(client, self._registry, f"{self._registry.name}-training")
        key = bytes_digest(canonical_json(self._identity))
        for found in client.search_runs([place], f"tags.`{KEY}` = '{key}'"):
            if found.info.status != "FINISHED":
                run = str(found.info.run_id)
                client.update_run(run, status="RUNNING")
                sent = client.get_metric_history(run, "loss")
                return run, max((metric.step for metric in sent), default=0)
        from mlflow.entities import Param

        if self._left:
            raise RegistryError("the training ended before the registry was ready")
        tags = {KEY: key, "shadowft.stage": "train", "shadowft.route": self._route}
        run = str(client.create_run(place, run_name=self._route, tags=tags).info.run_id)
        values = flat({"settings": dict(self._identity["settings"])})
        params = [Param(name.removeprefix("settings."), value) for name, value in values.items()]
        for first in range(0, len(params), 100):  # MLflow's limit per call
            client.log_batch(run, params=params[first : first + 100])
        return run, 0

    def _send(self, client: Any, run: str, last: int, *, all_of_them: bool) -> None:
        """Send waiting lines, with losses after step `last` only: as many as fit in one call, or all."""
        while metrics := self._taken(last):
            client.log_batch(run, metrics=metrics)
            if not all_of_them:
                return

    def _taken(self, last: int) -> list[Any]:
        """The metrics of the next lines, at most BATCH, taken from the queue."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics: list[Any] = []
        while self.lines and len(metrics) + len(self.lines[0]) <= BATCH:
            line = self.lines.popleft()
            step = int(line["step"])
            if step > last or "loss" not in line:
                metrics += [Metric(name, float(x), now, step) for name, x in line.items() if name not in UNSENT]
        return metrics


def _import_mlflow() -> None:
    """Import MLflow in the thread of the training: two threads that import at once may see half a module."""
    import logging

    import mlflow.entities
    import mlflow.system_metrics.system_metrics_monitor  # noqa: F401

    for name in ("mlflow", "urllib3.connectionpool"):  # they report each retry, and each table of a new database
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _measured(run: str, uri: str) -> Iterator[None]:
    """Have MLflow measure processor, memory, disk, network and GPU during the block."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run, sampling_interval=SAMPLE, resume_logging=True, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
