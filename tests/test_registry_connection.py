"""Connections to MLflow: which registry is used, how long a failure takes, what is restored."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from shadowft_core import registry as room
from shadowft_core.errors import RegistryError
from shadowft_core.params import Registry
from shadowft_core.recipe_model.registered import _registry
from shadowft_core.registry import connection
from tests.fixtures.runs import Run

ROOT = Path(__file__).parent.parent


def test_preflight_names_the_registry_that_does_not_answer_in_bounded_time(run: Run, tmp_path: Path) -> None:
    room.preflight(run.params)
    script = """
from shadowft_core.params import Registry
from shadowft_core.errors import RegistryError
from shadowft_core import registry
import time, mlflow
with_password = Registry(name="x", tracking_uri="http://user:hidden@127.0.0.1:9")
started = time.monotonic()
try:
    with registry.connected(with_password) as client:
        client.search_experiments(max_results=1)
except RegistryError as error:
    print(error)
assert time.monotonic() - started < 15
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "registry at http://***@127.0.0.1:9" in done.stdout
    assert done.stdout.count("\n") == 1
    assert "hidden" not in done.stdout
    (tmp_path / "file").write_text("")
    broken = run.params.registry.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/file/x.db"})
    with pytest.raises(RegistryError, match="registry at sqlite"):
        room.preflight(run.params.model_copy(update={"registry": broken}))


def test_the_environment_names_the_registry(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    room.preflight(run.params)
    assert (tmp_path / "elsewhere" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///absent.db", False),
        ("sqlite:///empty.db", False),  # as a first start that failed leaves it
        ("sqlite:///full.db", True),
        ("sqlite:///full.db?timeout=5", True),
        ("sqlite:///:memory:", True),
        ("http://127.0.0.1:9", True),  # only an answer would tell
    ],
)
def test_a_database_without_content_does_not_exist(
    uri: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, content in (("empty.db", ""), ("full.db", "x")):
        (tmp_path / name).write_text(content)
    registry = Registry(name="x", tracking_uri=uri)
    assert connection.may_exist(registry) == expected
    if not expected:
        with pytest.raises(RegistryError, match="no such database"), connection.connected(registry, create=False):
            pass
    if "?" in uri:
        assert connection.uri_of(registry) == f"sqlite:///{tmp_path}/full.db?timeout=5"


@pytest.mark.slow
def test_a_process_that_is_killed_while_mlflow_makes_a_database_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow cannot go on with half of the tables."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registry = Registry(name="x", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    script = f"""
from shadowft_core.params import Registry
from shadowft_core import registry
with registry.connected(Registry(name="x", tracking_uri={registry.tracking_uri!r})):
    pass
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(place.stat().st_size for place in tmp_path.iterdir()):
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert not connection.may_exist(registry)
    with connection.connected(registry) as client:
        client.create_registered_model("x")
    assert connection.may_exist(registry)
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == 0o600


def test_a_database_that_cannot_be_made_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MlflowException("no tables")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("mlflow.MlflowClient.search_experiments", fail)
    registry = Registry(name="x", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(RegistryError, match="no tables"), connection.connected(registry):
        pass
    assert not list(tmp_path.iterdir())


def test_the_users_settings_of_mlflow_stay_and_its_errors_are_short(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")  # for a slow server
    with connection.connected(run.params.registry):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    message = connection.one_line(ValueError("a page\nof HTML " * 100))
    assert (message[:16], len(message)) == ("a page of HTML a", 300)


def test_two_workspaces_in_one_process_use_their_own_databases(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = run.params.registry.model_copy(update={"tracking_uri": "sqlite:///var/mlflow/mlflow.db"})
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        with connection.connected(relative) as client:
            client.create_registered_model(f"model-of-{place}")
            assert [model.name for model in client.search_registered_models()] == [f"model-of-{place}"]


def test_the_callers_settings_of_mlflow_are_restored(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    first, second = (Registry(name="x", tracking_uri=f"sqlite:///{tmp_path}/{name}.db") for name in ("one", "two"))
    theirs, models = f"sqlite:///{tmp_path}/theirs.db", f"sqlite:///{tmp_path}/models.db"
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(variable, raising=False)

    def use_both_in_turn() -> None:
        for registry in (first, second):
            with connection.connected(registry) as client:
                assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == registry.tracking_uri
                client.search_experiments()
                with connection.connected(second):
                    assert mlflow.get_tracking_uri() == second.tracking_uri
                assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == registry.tracking_uri

    with restored_mlflow():
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        use_both_in_turn()
        assert not mlflow.is_tracking_uri_set()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs)
        assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == theirs
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        mlflow.set_registry_uri(models)
        mlflow.set_tracking_uri(theirs)
        monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow exported it, and it would name the registry
        use_both_in_turn()
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (theirs, models)
        assert mlflow.create_experiment("of the caller") is not None
        assert (tmp_path / "theirs.db").exists()


def test_a_version_is_checked_against_the_registry_that_mlflow_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None only if nobody named one and MLflow's default, a file of the current folder, does not exist."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(variable, raising=False)
    with restored_mlflow():
        for uri in (None, "http://127.0.0.1:9", f"sqlite:///{tmp_path}/absent.db"):
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(None)
            monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
            found = _registry("x")
            assert (found.tracking_uri if found else None) == uri


def test_overlapping_connections_of_two_threads_restore_at_the_end(run: Run, tmp_path: Path) -> None:
    import mlflow

    registry = Registry(name="x", tracking_uri=f"sqlite:///{tmp_path}/shared.db")
    with restored_mlflow():
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        os.environ.pop("MLFLOW_REGISTRY_URI", None)
        earlier, later = connection.connected(registry), connection.connected(registry)
        earlier.__enter__()
        later.__enter__()
        earlier.__exit__(None, None, None)
        assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == registry.tracking_uri
        later.__exit__(None, None, None)
        assert not mlflow.is_tracking_uri_set()


@contextmanager
def restored_mlflow() -> Iterator[None]:
    """Undo what the block sets in MLflow, for the tests that follow."""
    import mlflow

    variables = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    tracking, registry = mlflow.tracking._tracking_service.utils, mlflow.tracking._model_registry.utils
    before = tracking._tracking_uri, registry._registry_uri
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
