"""The flow publishes and registers the candidate, of whatever route, and nothing if there is none."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import shadowft_core.store as stores
from shadowft_core.files import file_digest
from shadowft_core.params import Params, load_params
from shadowft_core.registry import waiting
from tests.fixtures.workspace import add_direct, make_workspace
from tests.test_selection import write_sweep

BETTER, WORSE = [(0.5, 0.8, 0.9)], [(0.5, 0.05, 0.9)]  # (scale, domain, guards); the Instruct has 0.1 and 0.9


def edit(workspace: Path, **sections: Any) -> Params:
    file = workspace / "params.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, fields in sections.items():
        params[name] |= fields
    file.write_text(yaml.safe_dump(params), encoding="utf-8")
    return load_params(file)


def test_the_candidate_of_any_route_is_registered_and_without_one_nothing_is(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    from flows.retrain import retrain

    for name in ("SHADOWFT_STORE_URI", "SHADOWFT_STORE_ENDPOINT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    workspace = make_workspace(tmp_path / "workspace")
    add_direct(workspace)
    monkeypatch.chdir(workspace)
    uri = load_params(workspace / "params.yaml").registry.tracking_uri
    params = edit(workspace, registry={"tracking_uri": "http://127.0.0.1:9"})  # nothing listens there

    def stored() -> list[str]:
        files = sorted((workspace / "work/delta").glob("*/delta.json"))
        return [file.parent.name for file in files if stores.holds(file_digest(file), params.store)]

    write_sweep(workspace / "sweeps", "shadow", WORSE)
    write_sweep(workspace / "sweeps", "direct", BETTER)
    state = retrain(str(workspace), return_state=True)
    assert state.name == "Waiting", state.message
    assert (stored(), len(waiting())) == (["direct"], 1)

    edit(workspace, registry={"tracking_uri": uri})
    for route in ("shadow", "direct"):
        write_sweep(workspace / "sweeps", route, WORSE)
    capsys.readouterr()
    state = retrain(str(workspace), return_state=True)
    assert state.is_completed(), state.message
    assert state.message == "hold: nothing beats the Instruct on the dev items"
    assert waiting() == [], "the registration of the run before was sent"
    shown = capsys.readouterr().out
    assert "Nothing beats the Instruct on the dev items: it has a domain score of 0.1" in shown
    assert "publish" not in shown
    database = f"sqlite:///{workspace}/var/mlflow/mlflow.db"
    client = mlflow.MlflowClient(database, database)  # whatever registry another test has set
    [version] = client.search_model_versions("name = 'shadowft-pico'")
    assert (version.tags["shadowft.route"], version.tags["shadowft.decision"]) == ("direct", "hold")
    assert version.tags["shadowft.delta"] == file_digest(workspace / "work/delta/direct/delta.json")

    capsys.readouterr()
    state = retrain(str(workspace), return_state=True)
    assert state.message == "hold: nothing beats the Instruct on the dev items"
    assert "register" not in capsys.readouterr().out, "nothing waits"
    assert len(client.search_model_versions("name = 'shadowft-pico'")) == 1
