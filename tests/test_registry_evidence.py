"""The content of a registration: outputs of one run, its git state, no secret, no pickle."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shadowft_core.store as stores
from shadowft_core import registry as room
from shadowft_core.errors import ParamsError, RegistryError
from shadowft_core.files import read_json_object, write_json_atomically
from shadowft_core.params import Store
from shadowft_core.registry import connection
from shadowft_core.registry.evidence import Evidence
from tests.fixtures.runs import ROOT, Run

OTHER = "sha256:" + "0" * 64
FOREIGN: dict[str, tuple[str, dict[str, Any], str]] = {
    "pair": ("pair/pair.json", {"instruct": {"ref": "x", "digest": OTHER, "label": ""}}, "the Instruct"),
    "delta": ("delta/shadow/delta.json", {"seed": 7}, "the delta"),
    "verdict": ("verdict.json", {"recipe_digest": OTHER}, "the judged model"),
}


@pytest.mark.parametrize("which", FOREIGN)
def test_a_file_of_another_run_is_not_registered(run: Run, client: Any, which: str) -> None:
    file, change, what = FOREIGN[which]
    write_json_atomically(run.work / file, read_json_object(run.work / file) | change)
    with pytest.raises(RegistryError, match=rf"{what} is .*sha256:.*, recipe\.json has .*outputs of different runs"):
        run.register()
    assert client.search_model_versions(f"name = '{run.params.registry.name}'") == []
    assert not run.pending.exists(), "it does not wait either"
    assert not Path(run.params.store.uri, "records").exists(), "nor is anything kept of it"


def test_git_state_is_commit_and_dirty_flag(tmp_path: Path) -> None:
    assert room.git_state(tmp_path) is None

    def git(*words: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    for name in ("code.py", "dvc.lock"):
        (tmp_path / name).write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = room.Git(git("rev-parse", "HEAD"), dirty=False)
    assert room.git_state(tmp_path) == clean
    (tmp_path / "untracked").write_text("")
    (tmp_path / "dvc.lock").write_text("2\n")  # a run writes dvc.lock
    assert room.git_state(tmp_path) == clean
    (tmp_path / "code.py").write_text("2\n")
    assert room.git_state(tmp_path) == room.Git(clean.commit, dirty=True)
    git("add", "code.py")
    assert room.git_state(tmp_path) == room.Git(clean.commit, dirty=True)


def test_a_repository_that_git_refuses_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of another user, in a container with a mounted workspace."""
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    assert room.git_state(tmp_path) is None, "nothing is committed"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(RegistryError, match=r"cannot tell the commit .*dubious ownership.* safe\.directory"):
        room.git_state(tmp_path)


def test_no_password_in_an_address_is_logged(run: Run, client: Any, tmp_path: Path) -> None:
    address, far = "https://me:hidden@127.0.0.1/", "x" * 7000  # MLflow takes 6000 characters
    prepare = run.params.prepare.model_copy(update={"data": address + far})
    run.params = run.params.model_copy(update={"prepare": prepare})
    logged = client.get_run(run.register().run_id).data
    assert logged.params["prepare.data"] == f"https://***@127.0.0.1/{far}"[:6000]
    assert "hidden" not in str(logged.params)
    (tmp_path / "params.yaml").write_text(f"prepare: {{data: '{address}'}}\n", encoding="utf-8")
    attached = Evidence(run.params, run.work, run.lock, tmp_path / "params.yaml").registration(None).files
    assert attached["params.yaml"] == b"prepare: {data: 'https://***@127.0.0.1/'}\n"


@pytest.mark.parametrize(
    ("field", "store"),
    [
        ("uri", Store(uri="s3://key:hidden@bucket/deltas")),
        ("endpoint", Store(uri="s3://bucket/deltas", endpoint="http://key:hidden@127.0.0.1:9")),
    ],
)
def test_no_recipe_has_a_copy_of_a_password_of_the_store(run: Run, field: str, store: Store) -> None:
    params = run.params.model_copy(update={"store": store})
    with pytest.raises(ParamsError, match=rf"store\.{field}: .*\*\*\*@") as error:
        Evidence(params, run.work, run.lock, ROOT / "params.yaml")
    assert "hidden" not in str(error.value)


def test_a_verdict_that_changes_while_it_is_registered_is_refused(run: Run) -> None:
    """The recipe would name a verdict that the store does not have."""
    registration = Evidence(run.params, run.work, run.lock, ROOT / "params.yaml").registration(None)
    changed = replace(registration, files=registration.files | {"verdict.json": b"{}"})
    with pytest.raises(RegistryError, match=r"verdict\.json changed while it was registered: .*register the run again"):
        room._record(changed, run.params.store)
    assert stores.record(registration.tags["shadowft.recipe"], run.params.store) is None


def test_no_pickle_is_loaded_even_if_the_environment_allows_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    class Pickled(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: list[str], params: Any = None) -> list[str]:
            return model_input

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    mlflow.pyfunc.save_model(str(tmp_path / "model"), python_model=Pickled(), pip_requirements=[])
    assert mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(["x"]) == ["x"], "this would run anything"
    with (
        pytest.raises(RegistryError, match="using pickle is disallowed"),
        connection.connected(run.params.registry),
    ):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
