"""Register and promote with a real MLflow server, which is stricter than a database file, and which is killed."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import promotion
from shadowft_core import registry as room
from shadowft_core.errors import LedgerError, RegistrationPendingError
from shadowft_core.params import Registry
from tests.fixtures.runs import Run
from tests.servers.mlflow_server import MLflowServer

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    found = MLflowServer(tmp_path_factory.mktemp("server"))
    found.start()
    yield found
    found.kill()


@pytest.fixture
def served(run: Run, server: MLflowServer) -> Run:
    registry = Registry(name=run.params.registry.name, tracking_uri=server.uri)
    run.params = run.params.model_copy(update={"registry": registry})
    return run


def mlflow_client(server: MLflowServer) -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)


def test_register_promote_serve_and_roll_back(served: Run, server: MLflowServer, tmp_path: Path) -> None:
    registry, store = served.params.registry, served.params.store
    room.preflight(served.params)
    assert served.register().number == 1
    served.judge("promote")
    started = time.monotonic()
    assert served.register().number == 2
    registering = time.monotonic() - started
    first = promotion.promote(registry, store, "1").entry
    promotion.promote(registry, store, "2")
    started = time.monotonic()
    assert promotion.rollback(registry, store).number == 1
    rolling_back = time.monotonic() - started
    print(f"register {registering:.2f} s, rollback {rolling_back:.2f} s")
    assert rolling_back < 1
    client = mlflow_client(server)
    client.delete_model_version(registry.name, "1")
    assert promotion.reconcile(registry, store).number == 3
    assert promotion.history(registry, store).entries[-1].recipe == first.recipe

    script = f"""
import mlflow
model = mlflow.pyfunc.load_model("models:/{registry.name}@champion")
by_number = mlflow.pyfunc.load_model("models:/{registry.name}/3")
assert by_number.metadata.model_id == model.metadata.model_id
assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == "{server.uri}"
print(len(model.predict([[{{"role": "user", "content": "word1 word2"}}]])))
"""
    environment = {
        "MLFLOW_TRACKING_URI": server.uri,
        "SHADOWFT_CACHE": str(tmp_path / "cache"),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"


def test_one_of_eight_promoters_wins_each_round(served: Run, server: MLflowServer) -> None:
    registry, store = served.params.registry, served.params.store
    for _ in range(3):
        served.judge("promote")
        served.lock.write_text(f"schema: '2.0'\nround: {_}\n")
        served.register()
    client, rounds = mlflow_client(server), 10
    for number in range(1, rounds + 1):
        barrier = threading.Barrier(8)

        def attempt(place: int, barrier: threading.Barrier = barrier, last: int = number - 1) -> Any:
            barrier.wait(30)
            try:
                return promotion.promote(registry, store, str(place % 3 + 1), after=last)
            except LedgerError as error:
                return str(error)

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(attempt, range(8)))
        (winner,) = [found for found in outcomes if not isinstance(found, str) and found.changed]
        assert all(f"won with entry {number}" in found for found in outcomes if isinstance(found, str))
        chain = promotion.history(registry, store).entries
        assert chain[number - 1 :] == [winner.entry]
        assert int(client.get_model_version_by_alias(registry.name, "champion").version) == winner.number


def test_a_server_killed_before_and_during_a_registration(served: Run, server: MLflowServer) -> None:
    assert served.register().number == 1
    server.kill()
    served.judge("hold")
    started = time.monotonic()
    with pytest.raises(
        RegistrationPendingError, match=r"registry at http://127.*is kept in .*`shadowft register --pending`"
    ):
        served.register()
    assert time.monotonic() - started < 30
    server.start()
    (version,) = room.register_pending(served.params.registry, served.pending)
    assert (version.number, version.decision) == (2, "hold")

    served.judge("undecided")
    stop = threading.Thread(target=lambda: (time.sleep(0.7), server.kill()))
    stop.start()
    try:
        number = served.register().number
    except RegistrationPendingError:
        stop.join()
        server.start()
        (version,) = room.register_pending(served.params.registry, served.pending)
        number = version.number
    else:
        stop.join()
        server.start()
    assert number == 3
    rows = mlflow_client(server).search_model_versions(f"name = '{served.params.registry.name}'")
    assert sorted(int(row.version) for row in rows) == [1, 2, 3]
    assert not list(served.pending.iterdir())
