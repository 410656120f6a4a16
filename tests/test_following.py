"""A training followed in MLflow, a real one on SQLite or a real server: content, resumption, outages, time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import StoppedError, TrainError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Registry
from shadowft_core.registry import following as module
from shadowft_core.registry.connection import connected
from shadowft_core.registry.following import KEY, WAIT, following
from tests.fixtures.training import SETTINGS

IDENTITY = {"settings": {"method": "lora", "lora": {"rank": 8}, "seed": 1}, "data_digest": "sha256:d"}
TAG = bytes_digest(canonical_json(IDENTITY))


@pytest.fixture
def registry(tracking: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with connected(Registry(name="any", tracking_uri=tracking)) as client:  # creating the tables takes seconds
        client.search_experiments(max_results=1)
    return Registry(name=f"followed-{abs(hash(request.node.name)) % 10**8}", tracking_uri=tracking)


def client_of(registry: Registry) -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=registry.tracking_uri)


def runs(registry: Registry) -> list[Any]:
    client = client_of(registry)
    experiment = client.get_experiment_by_name(f"{registry.name}-training")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def line(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 5.0 / step, "learning_rate": 1e-3, "tokens_per_second": 9.5, "seconds": 1.0, **more}


def history(registry: Registry, run: Any, name: str) -> list[tuple[int, float]]:
    found = client_of(registry).get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in found)


def test_a_training_is_one_run_with_its_settings_losses_and_the_load_of_the_machine(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 0.5)
    with following(registry, "direct_osf", IDENTITY) as send:
        for step in (1, 2, 3):
            send(line(step))
        send({"step": 3, "valid_loss": 1.25})
        time.sleep(2.5)
    [run] = runs(registry)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "direct_osf")
    assert {name: run.data.tags[name] for name in (KEY, "shadowft.stage", "shadowft.route")} == {
        KEY: TAG, "shadowft.stage": "train", "shadowft.route": "direct_osf"
    }  # fmt: skip
    assert run.data.params == {"method": "lora", "lora.rank": "8", "seed": "1"}
    assert history(registry, run, "loss") == [(1, 5.0), (2, 2.5), (3, 5 / 3)]
    assert history(registry, run, "valid_loss") == [(3, 1.25)]
    names = set(run.data.metrics)
    assert {"loss", "learning_rate", "tokens_per_second", "valid_loss"} <= names
    assert not {"step", "seconds"} & names
    assert {name for name in names if name.startswith("system/")}


@pytest.mark.parametrize(
    ("error", "status"), [(TrainError("no"), "FAILED"), (StoppedError("stopped", signal.SIGTERM), "KILLED")]
)
def test_the_same_training_continues_its_run_and_sends_no_step_twice(
    registry: Registry, error: Exception, status: str
) -> None:
    def stop() -> None:
        with following(registry, "shadow", IDENTITY) as send:
            send(line(1))
            send(line(2))
            raise error

    with pytest.raises(type(error)):
        stop()
    [first] = runs(registry)
    assert first.info.status == status
    with following(registry, "shadow", IDENTITY) as send:
        for step in (2, 3):
            send(line(step))
    [again] = runs(registry)
    assert (again.info.run_id, again.info.status) == (first.info.run_id, "FINISHED")
    assert [step for step, _ in history(registry, again, "loss")] == [1, 2, 3]
    with following(registry, "shadow", IDENTITY | {"data_digest": "sha256:other"}) as send:
        send(line(1))
    assert len(runs(registry)) == 2, "another training has a run of its own"
    with following(registry, "shadow", IDENTITY) as send:
        send(line(1))
    assert len(runs(registry)) == 3, "so has the same one after it has finished"


KILLED = """
import json, sys, time
from shadowft_core.params import Registry
from shadowft_core.registry.following import following
with following(Registry(**json.loads(sys.argv[1])), "shadow", json.loads(sys.argv[2])) as send:
    send({"step": 1, "loss": 5.0})
    time.sleep(60)
"""


def test_the_run_of_a_killed_process_does_not_stay_running(registry: Registry) -> None:
    words = [sys.executable, "-c", KILLED, registry.model_dump_json(), json.dumps(IDENTITY)]
    with subprocess.Popen(words) as child:
        deadline = time.monotonic() + 60
        while not any("loss" in run.data.metrics for run in runs(registry)) and time.monotonic() < deadline:
            time.sleep(0.2)
        child.kill()
    [left] = runs(registry)
    assert (left.info.status, left.data.metrics["loss"]) == ("RUNNING", 5.0)
    with following(registry, "shadow", IDENTITY) as send:
        send(line(1))
        send(line(2))
    [run] = runs(registry)
    assert (run.info.run_id, run.info.status) == (left.info.run_id, "FINISHED")
    assert history(registry, run, "loss") == [(1, 5.0), (2, 2.5)]


def test_many_steps_are_sent_in_few_calls_and_none_is_lost(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    calls: list[tuple[float, int]] = []
    real = MlflowClient.log_batch

    def log_batch(self: Any, run: str, metrics: Any = (), **more: Any) -> None:
        calls.extend([(time.monotonic(), len(metrics))] if metrics else [])
        real(self, run, metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    with following(registry, "shadow", IDENTITY) as send:
        for step in range(1, 2001):
            send(line(step))
            time.sleep(0.002)
        over = time.monotonic()
    [run] = runs(registry)
    assert len(history(registry, run, "loss")) == 2000
    assert max(count for _, count in calls) <= 1000
    during = [at for at, _ in calls if at < over]
    assert all(later - earlier > 0.9 for earlier, later in pairwise(during))


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(listening.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


OUTAGE = """
import json, sys, time
from shadowft_core.params import Registry
from shadowft_core.registry.following import following
began, slowest = time.monotonic(), 0.0
with following(Registry(name="none", tracking_uri=sys.argv[1]), "shadow", {"settings": {}}) as send:
    for step in range(1, 200):
        before = time.monotonic()
        send({"step": step, "loss": 1.0})
        slowest = max(slowest, time.monotonic() - before)
        time.sleep(0.01)
    trained = time.monotonic()
print(json.dumps({"slowest": slowest, "end": time.monotonic() - trained}))
"""


@pytest.mark.parametrize("kind", ["refuses", "silent", "broken"])
def test_an_mlflow_that_does_not_answer_delays_nothing_and_is_one_line(kind: str, tmp_path: Path) -> None:
    """In a process of its own, whose exit waits for nothing either."""
    (tmp_path / "file").write_text("not a folder")
    with silent_server() as address:
        uri = {"refuses": "http://127.0.0.1:9", "silent": address, "broken": f"sqlite:///{tmp_path}/file/x.db"}[kind]
        began = time.monotonic()
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        done = subprocess.run(
            [sys.executable, "-c", OUTAGE, uri],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        seconds = time.monotonic() - began
    facts = json.loads(done.stdout)
    assert facts["slowest"] < 1
    assert facts["end"] < WAIT + 1
    assert seconds < WAIT + 40
    [said] = done.stderr.splitlines()
    assert said.startswith("train: not followed in MLflow: ")
    assert (uri in said) or kind == "silent"


def test_a_password_in_the_address_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with following(Registry(name="none"), "shadow", {"settings": {}}) as send:
        send(line(1))
    said = capsys.readouterr().err
    assert "not followed in MLflow" in said
    assert "secret" not in said


def test_a_training_passes_its_lines_on_as_they_come_and_then_its_validation_loss(place: Path, tmp_path: Path) -> None:
    from shadowft_core.train import train

    got: list[dict[str, float]] = []
    identities: list[Any] = []

    @contextmanager
    def follow(identity: Any) -> Iterator[Any]:
        identities.append(identity)
        assert not (tmp_path / "out").exists()
        yield lambda line: got.append(dict(line))

    settings = SETTINGS.model_copy(update={"max_steps": 3})
    train(place / "base", place / "instruct", place / "data", settings, tmp_path / "out", follow=follow)
    facts = json.loads((tmp_path / "out/train.json").read_text())
    kept = [json.loads(text) for text in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [{name: line[name] for name in then} for line, then in zip(got, kept, strict=False)] == kept
    assert all(line["tokens_per_second"] > 0 for line in got[:3])
    assert got[3:] == [{"step": 3, "valid_loss": facts["valid_loss"]}]
    assert [identity["settings"] for identity in identities] == [
        settings.model_dump(mode="json", exclude={"seeds", "command"})
    ]
    assert identities[0]["start"] == {"start": "scratch"}
