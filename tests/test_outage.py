"""MLflow is down: waiting registrations are listed, have their own exit code, and the next command sends them."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from shadowft_core import registry as room
from shadowft_core.cli import app
from shadowft_core.errors import RegistrationPendingError, RegistryError
from shadowft_core.params import Registry, load_params
from shadowft_core.promotion import recipe_named
from shadowft_core.registry.registration import waiting_in
from tests.fixtures.runs import Run


@pytest.fixture
def waited(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The current folder is a workspace with a waiting registration; its params.yaml names a registry that works."""
    monkeypatch.chdir(tmp_path)
    up = run.params
    down = Registry(name=up.registry.name, tracking_uri=f"sqlite:///{tmp_path}/dvc.lock/x.db")
    run.params = up.model_copy(update={"registry": down})
    with pytest.raises(RegistrationPendingError):
        run.register()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(up.model_dump(mode="json")), encoding="utf-8")
    return up.registry.name


def shadowft(*words: str) -> tuple[str, BaseException | None]:
    """The stdout of a command, and the error that ended it."""
    done = CliRunner().invoke(app, list(words))
    return done.stdout, done.exception


def test_reconcile_sends_what_waits_and_reports_it(waited: str) -> None:
    line = rf"a registration waited: {waited} \(verdict promote\) in var/pending/000001-\S+\n"
    out, error = shadowft("reconcile", waited, "--dry-run")
    assert error is None
    assert re.fullmatch(f"would repair: {line}", out)
    assert len(waiting_in(room.PENDING)) == 1
    out, error = shadowft("reconcile", waited)
    assert error is None
    assert re.fullmatch(f"repaired: {line}repaired: registered now: models:/{waited}/1\n", out)
    assert waiting_in(room.PENDING) == []
    params = load_params(Path("params.yaml"))
    recipe = recipe_named(f"models:/{waited}@challenger", params.registry, params.store)
    assert recipe["verdict"]["decision"] == "promote"
    out, error = shadowft("reconcile", waited)
    assert (out, error) == (f"{waited}: alias and ledger agree, nothing was ever promoted\n", None)


def test_a_damaged_registration_stays_listed_and_blocks_no_other(waited: str) -> None:
    """The others are sent, the alias is repaired, and the exit code is not 0."""
    broken = room.PENDING / "000000-0000-1"
    (broken / "files").mkdir(parents=True)
    (broken / "registration.json").write_text('{"format":2}', encoding="utf-8")
    assert [line.partition(" ")[0] for line in room.waiting()] == [f"{broken}:", waited]
    _, error = shadowft("reconcile", waited)
    assert isinstance(error, RegistrationPendingError)
    assert str(broken) in str(error)
    assert waiting_in(room.PENDING) == [broken]
    assert (error.exit_code, RegistryError.exit_code) == (11, 9)


def test_a_missing_database_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg2", None)  # as if it were not installed
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    away = Registry(name="x", tracking_uri="postgresql://user:hunter2@127.0.0.1:9/db")
    with (
        pytest.raises(
            RegistryError, match=r"postgresql://\*\*\*@127.*psycopg2 is not installed; .*shadowft\[postgres\]"
        ),
        room.connected(away) as client,
    ):
        client.search_experiments(max_results=1)
