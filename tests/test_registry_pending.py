"""Registrations that MLflow cannot accept wait on disk and are sent once."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import registry as room
from shadowft_core.errors import RegistrationPendingError
from shadowft_core.registry.registration import Registration, drop, keep, load, waiting_in
from tests.fixtures.runs import Run

ROOT = Path(__file__).parent.parent


def test_a_registration_waits_for_mlflow_and_is_sent_once(run: Run, client: Any, tmp_path: Path) -> None:
    up = run.params
    down = up.registry.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/dvc.lock/x.db"})
    run.params = up.model_copy(update={"registry": down})
    for _ in range(2):
        with pytest.raises(
            RegistrationPendingError, match=r"kept in .*000001-.*; `shadowft register --pending` sends it"
        ):
            run.register()
    assert len(waiting_in(run.pending)) == 1
    with pytest.raises(RegistrationPendingError, match=r"1 registrations wait"):
        room.register_pending(down, run.pending)
    before = (run.work / "verdict.json").read_bytes()
    run.judge("hold")  # the next run overwrites the work folder
    with pytest.raises(RegistrationPendingError):
        run.register()
    shutil.rmtree(run.work)

    first, second = room.register_pending(up.registry, run.pending)
    assert (first.number, first.decision, second.number, second.decision) == (1, "promote", 2, "hold")
    assert waiting_in(run.pending) == []
    assert room.register_pending(up.registry, run.pending) == []
    assert client.get_model_version_by_alias(first.name, "challenger").version == 2
    assert Path(client.download_artifacts(first.run_id, "verdict.json", str(tmp_path))).read_bytes() == before
    assert client.get_run(first.run_id).data.tags["shadowft.git.commit"] == "c" * 40


def test_the_registration_added_last_is_sent_last(tmp_path: Path) -> None:
    """Also after earlier ones were sent: the version sent last becomes the challenger."""

    def add(key: str) -> Path:
        return keep(Registration("name", key, "hold", {}, {}, {}, {}, [], {"file": b""}), tmp_path)

    first, second = add("sha256:c"), add("sha256:b")
    drop(first)
    third = add("sha256:a")
    assert waiting_in(tmp_path) == [second, third]
    assert (load(first), load(third).key) == (None, "sha256:a")


def test_waiting_registrations_are_sent_first_and_a_refused_one_blocks_no_other(
    run: Run, client: Any, capsys: Any
) -> None:
    broken = run.pending / "000001-0000-1"
    broken.mkdir(parents=True)
    (broken / "registration.json").write_text('{"format":2}')
    (broken / "files").mkdir()
    assert run.register().number == 1
    with pytest.raises(RegistrationPendingError, match=r"000001-0000-1: not a registration \(.*format: .*found 2"):
        room.register_pending(run.params.registry, run.pending)
    assert waiting_in(run.pending) == [broken]


def test_an_outage_of_mlflow_fails_no_flow(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The preflight task passes with a warning, and the register task completes as Waiting."""
    import yaml

    from shadowft_core.pipeline import steps

    monkeypatch.chdir(tmp_path)
    down = {"name": run.params.registry.name, "tracking_uri": f"sqlite:///{tmp_path}/dvc.lock/x.db"}
    params = run.params.model_dump(mode="json") | {"registry": down}
    params["prepare"]["data"] = params["evaluate"]["tasks"] = "work"
    params["evaluate"]["domain"], params["sweep"]["domain"] = ["heldout"], ["heldout_dev"]  # built in
    params["evaluate"]["guards"] = params["sweep"]["guards"] = []
    params["prepare"]["replay"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    read = steps.preflight(Path("params.yaml"), None)
    assert "The run continues; its registration will wait in var/pending" in capsys.readouterr().err
    state = steps.register.fn(read, room.Git("c" * 40, dirty=False), print)
    assert (state.is_completed(), state.name) == (True, "Waiting")
    assert "kept in var/pending/000001-" in state.message
    assert "`shadowft register --pending` sends it" in state.message
    (version,) = room.register_pending(run.params.registry, Path("var/pending"))
    assert version.decision == "promote"
