"""`history` and `reconcile` refuse a model that neither registry nor ledger knows, and create nothing for it."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from shadowft_core import promotion as room
from shadowft_core.cli import app
from shadowft_core.errors import ParamsError, RegistrationPendingError, RegistryError
from shadowft_core.params import Registry, Store
from tests.fixtures.runs import Released, Run

ROOT = Path(__file__).parent.parent


def test_an_unknown_model_is_refused_by_name_registry_and_store(
    released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    room.promote(released.registry, released.store, "1")
    typo = released.registry.named(released.name + "x")
    message = (
        rf"{typo.name}: the registry at {typo.tracking_uri} has no model .*, "
        rf"and store {released.store.uri} has no ledger"
    )
    for act in (
        lambda: room.history(typo, released.store),
        lambda: room.reconcile(typo, released.store),
        lambda: room.reconcile(typo, released.store, dry_run=True),
    ):
        with pytest.raises(RegistryError, match=message + ".*correct the name"):
            act()


def test_the_verbs_refuse_an_unknown_model_and_create_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "SHADOWFT_STORE_URI", "SHADOWFT_STORE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw |= {"registry": {"name": "x", "tracking_uri": "sqlite:///var/mlflow/mlflow.db"}, "store": {"uri": "var/store"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    for words in (["history", "typo"], ["reconcile", "typo", "--dry-run"], ["reconcile", "typo"]):
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, RegistryError), words
        assert str(done.exception).startswith("typo: the registry at sqlite:////")
        assert not (tmp_path / "var").exists(), words
    verbs = ["promote", "typo", "1"], ["materialize", "models:/typo/1", "--out", "model"]
    for words in (*verbs, ["export", "models:/typo/1", "--for", "vllm", "--out", "model"]):
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, RegistryError), words
        assert str(done.exception).startswith("registry at sqlite:////")
        assert "no such database" in str(done.exception)
        assert not (tmp_path / "var").exists(), words
    done = CliRunner().invoke(app, ["history", "no/name"])
    assert isinstance(done.exception, ParamsError)
    assert "'no/name': expected the name of a model" in str(done.exception)


def test_a_registered_model_without_a_champion_is_known(released: Released) -> None:
    assert room.history(released.registry, released.store).entries == []
    assert room.reconcile(released.registry, released.store) == room.Repair(released.name, None, ())


def test_a_model_whose_first_registration_waits_is_known(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run.params = run.params.model_copy(
        update={"registry": run.params.registry.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})}
    )
    with pytest.raises(RegistrationPendingError):
        run.register()
    assert run.pending == tmp_path / "var" / "pending"
    registry = run.params.registry.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/new.db"})
    for dry_run in (True, False):
        assert room.reconcile(registry, run.params.store, dry_run) == room.Repair(registry.name, None, ())
    assert not (tmp_path / "new.db").exists()
    with pytest.raises(RegistryError, match="has no model of this name"):
        room.reconcile(registry.named("another"), run.params.store)


def test_a_dry_run_creates_no_database_for_a_model_with_a_ledger(released: Released, tmp_path: Path) -> None:
    room.promote(released.registry, released.store, "1")
    gone = Registry(name=released.name, tracking_uri=f"sqlite:///{tmp_path}/gone.db")
    with pytest.raises(
        RegistryError, match=r"gone\.db: no such database; .* folder of the workspace, or check registry\.tracking_uri"
    ):
        room.reconcile(gone, Store(uri=released.store.uri), dry_run=True)
    assert not (tmp_path / "gone.db").exists()
    assert len(room.history(gone, released.store).entries) == 1, "which needs no registry"


def test_history_shows_the_reason_of_a_person_whole_and_the_first_claims_of_a_verdict() -> None:
    from shadowft_core.cli.promotion import reason_of

    long = "; ".join(f"guard task_{n}: passed" for n in range(20))
    by_verdict = room.Entry.model_construct(action="promote", override=False, reason=long)
    assert reason_of(by_verdict).startswith("guard task_0: passed; guard task_1")
    assert len(reason_of(by_verdict)) <= 200
    assert reason_of(by_verdict).endswith("(--json has all)")
    assert reason_of(by_verdict.model_copy(update={"override": True})) == long
    assert reason_of(by_verdict.model_copy(update={"action": "rollback"})) == long
    assert reason_of(by_verdict.model_copy(update={"reason": "better"})) == "better"


def test_an_unknown_name_is_answered_with_the_models_there_are(released: Released) -> None:
    with pytest.raises(RegistryError, match="no version '1' of 'nobody' in the registry; there are models "):
        room.promote(released.registry.named("nobody"), released.store, "1")
