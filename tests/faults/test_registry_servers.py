"""Register and promote with a real MLflow on PostgreSQL: eight processes race, and servers are killed."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import promotion
from shadowft_core import registry as room
from shadowft_core.errors import LedgerError, RegistrationPendingError
from shadowft_core.params import Params, Registry, Store, load_params
from shadowft_core.promotion.ledger import Ledger
from tests.faults.proxy import Fault, Kind, Proxy, proxied
from tests.faults.servers import mlflow_on_postgresql, why_no_postgresql
from tests.faults.victim import barrier, ended, spawn
from tests.fixtures.runs import ROOT
from tests.servers.mlflow_server import MLflowServer
from tests.servers.seaweedfs import S3Server

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(why_no_postgresql() is not None, reason=str(why_no_postgresql())),
]
PROMOTERS, ROUNDS = 8, 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with mlflow_on_postgresql(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: MLflowServer) -> Iterator[Proxy]:
    with proxied(server.uri) as running:
        yield running


@pytest.fixture
def register(
    finished_work: Path, s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], room.Version]:
    """`register(name, tracking_uri)` registers the finished run in this registry and the real S3 server."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(finished_work, tmp_path / "work")
    shutil.copy(finished_work.parent / "dvc.lock", tmp_path / "dvc.lock")

    def run(name: str, uri: str) -> room.Version:
        params: Params = load_params(ROOT / "params.yaml").model_copy(
            update={"store": s3_store, "registry": Registry(name=name, tracking_uri=uri)}
        )
        git = room.Git("c" * 40, dirty=False)
        return room.register(
            params, tmp_path / "work", tmp_path / "dvc.lock", ROOT / "params.yaml", git, tmp_path / "pending"
        )

    return run


def client_of(uri: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def promote(
    turnstile: Any, number: int, registry: Registry, store: Store, environment: Mapping[str, str], log: Path
) -> None:
    """One promoter: in every round all see the same champion, and each promotes a different version."""
    os.environ.update(environment)
    ledger, outcomes = Ledger(store, registry.name), []
    client = client_of(registry.tracking_uri)
    for _ in range(ROUNDS):
        turnstile.wait(300)
        tip = ledger.tip()
        turnstile.wait(300)
        version = ((tip.entry.version if tip.entry else 0) + number) % (PROMOTERS + 1) + 1
        try:
            promotion.promote(registry, store, str(version), after=tip.number)
            problem = ""
        except LedgerError as error:
            problem = str(error)
        turnstile.wait(300)
        alias = int(client.get_model_version_by_alias(registry.name, "champion").version)
        outcomes.append({"problem": problem, "version": version, "alias": alias, "before": tip.number})
    log.write_text(json.dumps(outcomes))


def test_one_of_eight_promoters_wins_fifty_times(
    server: MLflowServer,
    register: Callable[[str, str], room.Version],
    s3_store: Store,
    tmp_path: Path,
    figures: Callable[[str], None],
) -> None:
    registry = Registry(name="raced", tracking_uri=server.uri)
    register(registry.name, registry.tracking_uri)
    client = client_of(registry.tracking_uri)
    first = client.get_model_version(registry.name, "1")
    model_id = first.source.removeprefix("models:/")
    for _ in range(PROMOTERS):
        client.create_model_version(
            registry.name, first.source, run_id=first.run_id, tags=first.tags, model_id=model_id
        )
    turnstile, started = barrier(PROMOTERS), time.monotonic()
    logs = [tmp_path / f"{number}.json" for number in range(PROMOTERS)]
    processes = [
        spawn(promote, turnstile, number, registry, s3_store, dict(os.environ), log) for number, log in enumerate(logs)
    ]
    assert [ended(process, 1000) for process in processes] == [0] * PROMOTERS
    seconds = time.monotonic() - started
    chain = promotion.history(registry, s3_store).entries
    rounds = list(zip(*(json.loads(log.read_text()) for log in logs), strict=True))
    assert len(rounds) == len(chain) == ROUNDS
    for entry, outcomes in zip(chain, rounds, strict=True):
        assert {outcome["before"] for outcome in outcomes} == {entry.number - 1}
        assert [outcome["version"] for outcome in outcomes if not outcome["problem"]] == [entry.version]
        assert sum(f"won with entry {entry.number} " in outcome["problem"] for outcome in outcomes) == PROMOTERS - 1
        assert {outcome["alias"] for outcome in outcomes} == {entry.version}
    assert promotion.reconcile(registry, s3_store, dry_run=True).done == ()
    lost = ROUNDS * (PROMOTERS - 1)
    figures(f"{ROUNDS} rounds: one winner each, {lost} losers got its name, alias = ledger after each; {seconds:.0f} s")


MOMENTS: list[tuple[str, Kind, str]] = [
    ("the run is made, its reply lost", "lost_reply", "runs/create"),
    ("metrics and parameters arrive", "reset", "runs/log-batch"),
    ("an artifact arrives", "reset", "mlflow-artifacts/artifacts"),
    ("the version is about to be made", "reset", "model-versions/create"),
    ("the version is made, its reply lost", "lost_reply", "model-versions/create"),
    ("the alias is about to be set", "reset", "registered-models/alias"),
]


@pytest.mark.parametrize(("moment", "kind", "path"), MOMENTS, ids=[moment for moment, *_ in MOMENTS])
def test_a_run_is_registered_once_if_mlflow_is_killed_meanwhile(
    moment: str,
    kind: Kind,
    path: str,
    server: MLflowServer,
    proxy: Proxy,
    register: Callable[[str, str], room.Version],
    s3_store: Store,
    tmp_path: Path,
    figures: Callable[[str], None],
) -> None:
    name = moment.replace(" ", "-").replace(",", "")
    fault = Fault(kind, method="POST|PUT|PATCH", path=path, then=server.kill)
    proxy.start_over(fault)
    started = time.monotonic()
    with pytest.raises(RegistrationPendingError, match="is kept in"):
        register(name, proxy.endpoint)
    waited = time.monotonic() - started
    assert fault.hits == 1
    server.start()
    versions = room.register_pending(Registry(name=name, tracking_uri=proxy.endpoint), tmp_path / "pending")
    assert [version.number for version in versions] == [1]
    require_registered_once(name, server, register, tmp_path)
    figures(f"error after {waited:.0f} s, sent later: one version, one finished run of it")


def require_registered_once(
    name: str, server: MLflowServer, register: Callable[[str, str], room.Version], folder: Path
) -> None:
    """Require one version with a finished run and the alias, no other open run, and no second version afterwards."""
    client = client_of(server.uri)
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert client.get_model_version_by_alias(name, "challenger").version == version.version
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_id: run.info.status for run in runs}[version.run_id] == "FINISHED"
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    assert not (folder / "pending").exists() or list((folder / "pending").iterdir()) == []
    again = register(name, server.uri)
    assert (again.number, again.new) == (int(version.version), False)


def test_a_run_is_registered_once_if_mlflow_is_killed_before_or_after(
    server: MLflowServer,
    register: Callable[[str, str], room.Version],
    s3_server: S3Server,
    tmp_path: Path,
    figures: Callable[[str], None],
) -> None:
    server.kill()
    started = time.monotonic()
    with pytest.raises(RegistrationPendingError, match="is kept in"):
        register("before-and-after", server.uri)
    waited = time.monotonic() - started
    server.start()
    versions = room.register_pending(Registry(name="before-and-after", tracking_uri=server.uri), tmp_path / "pending")
    assert [version.number for version in versions] == [1]
    server.kill()
    server.start()
    require_registered_once("before-and-after", server, register, tmp_path)
    figures(f"error after {waited:.0f} s, sent later; killed after it: nothing lost")
