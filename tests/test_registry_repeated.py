"""Registering a run again: aliases and ledger keep their versions, and no run stays open."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import promotion
from shadowft_core import registry as room
from shadowft_core.errors import RegistrationPendingError, RegistryError
from shadowft_core.files import read_json_object, write_json_atomically
from shadowft_core.params import Registry
from shadowft_core.pipeline import steps
from shadowft_core.registry import connection, tracking
from shadowft_core.registry.evidence import Evidence
from tests.faults.servers import mlflow_on_postgresql, why_no_postgresql
from tests.fixtures.runs import ROOT, Run
from tests.servers.mlflow_server import MLflowServer


@pytest.fixture(scope="module")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    found = MLflowServer(tmp_path_factory.mktemp("sqlite"))
    found.start()
    yield found
    found.kill()


@pytest.fixture(scope="module")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    if (reason := why_no_postgresql()) is not None:
        pytest.skip(reason)
    with mlflow_on_postgresql(tmp_path_factory.mktemp("postgresql")) as running:
        yield running


SERVERS = [pytest.param(f"{name}_server", marks=pytest.mark.faults) for name in ("sqlite", "postgresql")]


@pytest.fixture(params=["file", *SERVERS])
def somewhere(request: pytest.FixtureRequest, run: Run) -> Run:
    """A run that registers in a database file, a server on SQLite, or a server on PostgreSQL."""
    if request.param != "file":
        uri = request.getfixturevalue(request.param).uri
        registry = Registry(name=run.params.registry.name, tracking_uri=uri)
        run.params = run.params.model_copy(update={"registry": registry})
    return run


def client_of(run: Run) -> Any:
    import mlflow

    uri = run.params.registry.tracking_uri
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def statuses(run: Run) -> dict[str, str]:
    client = client_of(run)
    experiment = client.get_experiment_by_name(run.params.registry.name)
    return {one.info.run_id: one.info.status for one in client.search_runs([experiment.experiment_id])}


def twin(run: Run, first: room.Version) -> int:
    """Make a second version of the same key with another run, as two writers at the same moment do."""
    registration = Evidence(run.params, run.work, run.lock, ROOT / "params.yaml").registration(None)
    with connection.connected(run.params.registry) as client:
        run_id = tracking.log(client, run.params.registry, registration)
        rows = client.search_model_versions(f"run_id = '{run_id}'")
    assert registration.key == client.get_model_version(first.name, str(first.number)).tags["shadowft.key"]
    return int(rows[0].version)


@pytest.mark.parametrize("champion", [1, 2])
def test_both_versions_of_one_run_stay_and_the_champion_resolves(somewhere: Run, champion: int) -> None:
    run, registry, store = somewhere, somewhere.params.registry, somewhere.params.store
    first = run.register()
    name = first.name
    assert twin(run, first) == 2
    entry = promotion.promote(registry, store, str(champion)).entry
    before = statuses(run)
    assert len(before) == 2
    for _ in range(2):
        again = run.register()
        assert (again.number, again.run_id, again.new) == (1, first.run_id, False)
    client = client_of(run)
    assert statuses(run) == before == dict.fromkeys(before, "FINISHED")
    rows = client.search_model_versions(f"name = '{name}'")
    marks = {int(row.version): row.tags.get("shadowft.duplicate_of") for row in rows}
    assert marks == {1: None, 2: "1"}
    assert int(client.get_model_version_by_alias(name, "champion").version) == champion
    assert int(client.get_model_version_by_alias(name, "challenger").version) == 1
    assert promotion.recipe_named(f"models:/{name}@champion", registry, store)["digest"] == entry.model
    assert promotion.reconcile(registry, store) == promotion.Repair(name, champion, ())

    client.delete_model_version(name, "1")  # by a person: the next version becomes the first
    assert run.register().number == 2
    assert "shadowft.duplicate_of" not in client.get_model_version(name, "2").tags
    assert promotion.reconcile(registry, store).number == 2


def test_a_version_registered_again_by_reconcile_is_not_a_duplicate(run: Run, client: Any) -> None:
    registry, store = run.params.registry, run.params.store
    name = run.register().name
    promotion.promote(registry, store)
    client.delete_model_version(name, "1")
    assert promotion.reconcile(registry, store).number == 2
    assert run.register().number == 2
    aliases = client.get_registered_model(name).aliases
    assert {alias: int(number) for alias, number in aliases.items()} == {"champion": 2, "challenger": 2}


def test_the_ninth_version_is_older_than_the_tenth(run: Run, client: Any) -> None:
    first = client.get_model_version(run.register().name, "1")
    for _ in range(2, 11):
        tracking.create(client, first.name, first.source, first.run_id, first.tags)
    for number in range(1, 9):
        client.delete_model_version(first.name, str(number))
    assert run.register().number == 9
    assert client.get_model_version(first.name, "10").tags["shadowft.duplicate_of"] == "9"


def test_a_candidate_that_is_the_champion_is_not_registered_again(
    run: Run, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a weekly run: run.json names the champion, so the verdict, and with it the key, is another one."""
    first = run.register()
    promotion.promote(run.params.registry, run.params.store)
    model = read_json_object(run.work / "verdict.json")["recipe_digest"]

    def look(candidate: str, champion: str, version: int = 1) -> None:
        facts = {"format": 1, "candidate": candidate, "items": None, "look": 1, "earlier": []}
        told = facts | {"champion": {"version": version, "digest": champion}}
        write_json_atomically(run.work / "run.json", told)

    run.judge("hold")
    look(model, model)
    assert run.register() == room.Version(first.name, 1, first.run_id, "hold", new=False, champion=True)
    told = f"nothing new is registered: the candidate is the champion, {first.name} version 1"
    assert told in capsys.readouterr().err
    assert len(statuses(run)) == len(client.search_model_versions(f"name = '{first.name}'")) == 1

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    state = steps.register.fn(run.params, None, print)
    said = f"models:/{first.name}/1 is the champion and the candidate, so nothing is registered"
    assert (state.is_completed(), state.name, state.message) == (True, "Unchanged", said)
    down = run.params.registry.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/dvc.lock/x.db"})
    state = steps.register.fn(run.params.model_copy(update={"registry": down}), None, print)
    assert (state.is_completed(), state.name) == (True, "Waiting")
    assert "0 registrations wait" in state.message

    look(model, model, version=7)
    with pytest.raises(RegistryError, match=f"no version '7' of '{first.name}'"):
        run.register()
    look("sha256:other", model)
    with pytest.raises(RegistryError, match=r"the candidate is sha256:other, recipe\.json has .* different runs"):
        run.register()
    look(model, "sha256:other")
    assert run.register().number == 2, "another model is the champion"


def killed(run: Run) -> None:
    """An attempt whose process is killed when it sends the artifacts."""
    code = f"""
import os, signal
from pathlib import Path
import mlflow
from shadowft_core.params import Params
from shadowft_core.registry import connection, tracking
from shadowft_core.registry.evidence import Evidence
mlflow.log_artifacts = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
params = Params.model_validate_json({run.params.model_dump_json()!r})
work, lock = Path({str(run.work)!r}), Path({str(run.lock)!r})
registration = Evidence(params, work, lock, Path("params.yaml")).registration(None)
with connection.connected(params.registry) as client:
    tracking.log(client, params.registry, registration)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -signal.SIGKILL


def failed(run: Run) -> None:
    """An attempt that MLflow refuses halfway, so that it waits."""
    from mlflow.exceptions import MlflowException

    def refused(*_: Any, **__: Any) -> None:
        raise MlflowException("the artifact store is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlflow.pyfunc.save_model", refused)
        with pytest.raises(RegistrationPendingError, match="the artifact store is full"):
            run.register()


@pytest.mark.parametrize("attempts", [[killed], [failed], [failed, killed, failed]], ids=["killed", "failed", "both"])
def test_a_repeated_attempt_leaves_no_run_open(somewhere: Run, attempts: list[Callable[[Run], None]]) -> None:
    run = somewhere
    for attempt in attempts:
        attempt(run)
    left = statuses(run)
    assert len(left) == len(attempts)
    assert set(left.values()) <= {"RUNNING", "FAILED"}
    version = run.register()
    assert version.number == 1
    assert statuses(run) == dict.fromkeys(left, "KILLED") | {version.run_id: "FINISHED"}
    client = client_of(run)
    for run_id in left:
        assert client.get_run(run_id).data.tags["shadowft.superseded_by"] == version.run_id
    killed(run)  # after the version exists, as a second worker would
    assert "RUNNING" in statuses(run).values()
    assert run.register() == room.Version(version.name, 1, version.run_id, "promote", new=False)
    assert set(statuses(run).values()) == {"KILLED", "FINISHED"}


def test_only_attempts_of_the_same_registration_are_closed(run: Run, client: Any) -> None:
    version = run.register()
    experiment = client.get_run(version.run_id).info.experiment_id
    others = [client.create_run(experiment, tags=tags).info.run_id for tags in ({}, {"shadowft.key": "sha256:other"})]
    client.set_terminated(version.run_id, "KILLED")  # as if another process took it for a dead attempt
    run.register()
    assert statuses(run) == dict.fromkeys(others, "RUNNING") | {version.run_id: "FINISHED"}


def test_two_writers_may_mark_a_duplicate_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused mark is not an error if the other writer wrote the same mark; any other mark is."""
    from mlflow import MlflowClient
    from sqlalchemy.exc import IntegrityError

    set_tag = MlflowClient.set_model_version_tag
    with connection.connected(run.params.registry) as client:
        run.register()
        version = tracking.find(client, run.params.registry.name, "1")
        again = tracking.create(client, version.name, version.source, version.run_id, version.tags)

        def late(self: MlflowClient, name: str, number: str, key: str, value: str) -> None:
            set_tag(self, name, number, key, written)
            raise IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))

        monkeypatch.setattr(MlflowClient, "set_model_version_tag", late)
        key, written = version.tags["shadowft.key"], "1"
        assert tracking.deduplicate(client, version.name, key).version == version.version
        assert tracking.find(client, version.name, str(again.version)).tags[tracking.DUPLICATE] == "1"
        written = "7"
        monkeypatch.undo()
        set_tag(client, version.name, str(again.version), tracking.DUPLICATE, "7")
        monkeypatch.setattr(MlflowClient, "set_model_version_tag", late)
        with pytest.raises(IntegrityError):
            tracking.deduplicate(client, version.name, key)
