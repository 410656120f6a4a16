"""Registering a run makes one version of a few kB, with its lineage, in a real MLflow on SQLite."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import registry as room
from shadowft_core.errors import GraftError, RegistryError
from shadowft_core.files import file_digest, read_json_object, write_json_atomically
from shadowft_core.registry.evidence import Evidence
from shadowft_core.weights import open_checkpoint
from tests.fixtures.runs import Run, write_verdict

ROOT = Path(__file__).parent.parent


def test_what_was_known_before_training_is_logged_beside_the_outcome(run: Run, client: Any) -> None:
    told: dict[str, Any] = {"loss": {"base": 2.5, "instruct": 2.0}, "cosine": 0.5, "modules": {"q_proj": 0.25}}
    told |= {"sigma": {"overall": 0.125, "modules": {"q_proj": 0.0625}}}
    write_json_atomically(run.work / "preflight.json", told)
    logged = client.get_run(run.register().run_id).data.metrics
    assert {name: value for name, value in logged.items() if not name.endswith("/domain")} == {
        "preflight/loss.base": 2.5,
        "preflight/loss.instruct": 2.0,
        "preflight/cosine": 0.5,
        "preflight/cosine.q_proj": 0.25,
        "preflight/sigma": 0.125,
        "preflight/sigma.q_proj": 0.0625,
        "outcome/gain": pytest.approx(0.1),
    }


def test_registering_twice_is_one_version_of_a_few_kilobytes(run: Run, client: Any) -> None:
    first, again = run.register(), run.register()
    assert (first.number, first.new) == (1, True)
    assert again == room.Version(first.name, 1, first.run_id, "promote", new=False)
    version = client.get_model_version(first.name, "1")
    assert len(client.search_model_versions(f"name = '{first.name}'")) == 1
    assert client.get_model_version_by_alias(first.name, "challenger").version == version.version
    experiment = client.get_experiment_by_name(first.name)
    assert len(client.search_runs([experiment.experiment_id])) == 1
    logged = client.get_run(first.run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.params["train.lora.rank"] == "16"
    assert logged.data.metrics == {f"{arm}/domain": 0.5 for arm in ("instruct", "shadow", "shadow_scaled")}
    assert {entry.path for entry in client.list_artifacts(first.run_id)} >= {
        "report.html",
        "verdict.json",
        "dvc.lock",
        "params.yaml",
        "recipe.json",
        "receipt.json",
    }
    assert version.tags["shadowft.git.commit"] == "c" * 40
    assert version.tags["shadowft.git.dirty"] == "false"
    assert version.tags["shadowft.decision"] == "promote"
    assert version.tags["shadowft.delta"] == file_digest(run.work / "delta" / "shadow" / "delta.json")
    assert version.tags["shadowft.model"] == open_checkpoint(run.work / "grafted" / "shadow").digest()
    assert version.tags["shadowft.data"] == "sha256:" + "d" * 64
    assert logged.data.tags["shadowft.lock"] == file_digest(run.lock)
    artifacts = Path(run.params.registry.tracking_uri.removeprefix("sqlite:///")).parent / "artifacts"
    models = [path for path in artifacts.glob("models/*") if first.run_id in (path / "artifacts/MLmodel").read_text()]
    files = [path for path in models[0].rglob("*") if path.is_file()]
    assert {"recipe.json", "MLmodel", "requirements.txt"} <= {path.name for path in files}
    (wheel,) = [path for path in files if path.suffix == ".whl"]
    assert wheel.stat().st_size < 1_500_000
    files.remove(wheel)
    assert sum(path.stat().st_size for path in files) < 10_000
    assert {path.suffix for path in files} <= {".json", ".txt", ".yaml", ""}, files  # no pickle, no code, no weights
    assert not [path for path in files if b"\x80\x04\x95" in path.read_bytes()]  # the first bytes of a pickle


def test_a_new_verdict_is_a_new_version(run: Run) -> None:
    assert run.register().number == 1
    run.judge("hold")
    assert run.register().number == 2


def test_outputs_of_different_runs_are_not_registered(run: Run, client: Any) -> None:
    write_verdict(run.work, "promote", "sha256:" + "0" * 64)
    with pytest.raises(RegistryError, match=r"the judged model is sha256:0000.*, recipe\.json has sha256:"):
        run.register()
    (run.work / "report.html").unlink()
    with pytest.raises(RegistryError, match=r"report\.html: no such file; run `dvc repro`"):
        run.register()
    assert client.search_model_versions(f"name = '{run.params.registry.name}'") == []


def test_a_graft_without_a_stored_delta_is_not_registered(run: Run, client: Any) -> None:
    recipe = run.work / "grafted" / "shadow" / "recipe.json"
    pair = {"base": "sha256:" + "1" * 64, "tuned": "sha256:" + "2" * 64, "scale": 0.5}
    write_json_atomically(recipe, read_json_object(recipe) | {"deltas": [pair]})
    with pytest.raises(
        GraftError, match=r"recipe\.json: adds sha256:22.* - sha256:11.*so the model cannot be rebuilt; run"
    ) as e:
        run.register()
    assert "\n" not in str(e.value)
    assert client.search_model_versions(f"name = '{run.params.registry.name}'") == []
    assert not run.pending.exists(), "nor does it wait"


def test_a_registered_recipe_names_the_digest_of_every_delta(run: Run, tmp_path: Path) -> None:
    recipe = Evidence(run.params, run.work, run.lock, ROOT / "params.yaml").registration(None).recipe
    write_json_atomically(tmp_path / "recipe.json", recipe)
    assert room.read_recipe(tmp_path / "recipe.json") == recipe
    for deltas in ([{"base": "sha256:1", "tuned": "sha256:2", "scale": 1.0}], [{"digest": "sha256:1"}], 3):
        write_json_atomically(tmp_path / "recipe.json", recipe | {"deltas": deltas})
        with pytest.raises(RegistryError, match="not a recipe of format 1 as `shadowft register` writes it"):
            room.read_recipe(tmp_path / "recipe.json")


def test_a_judged_recipe_needs_no_verdict_any_more(run: Run) -> None:
    file = run.work / "grafted" / "shadow" / "recipe.json"
    write_json_atomically(file, read_json_object(file) | {"needs_verdict": True, "regrafted_from": "sha256:1"})
    recipe = Evidence(run.params, run.work, run.lock, ROOT / "params.yaml").registration(None).recipe
    assert (recipe.get("needs_verdict"), recipe["regrafted_from"]) == (None, "sha256:1")


def test_the_lineage_is_complete(run: Run, client: Any) -> None:
    report = run.work / "data" / "data-report.json"
    replay = {"rows_used": 4, "data": "general.jsonl"}
    write_json_atomically(report, read_json_object(report) | {"replay": replay})
    logged = client.get_run(run.register().run_id)
    inputs = {one.dataset.name: one for one in logged.inputs.dataset_inputs}
    assert set(inputs) == {"data/train", "data/dev", "data/test", "data/replay"}
    ours = run.params.prepare.data
    for name, context, rows, data in (
        ("train", "training", "10", ours),
        ("dev", "dev", "2", ours),
        ("test", "testing", "3", ours),
        ("replay", "training", "4", "general.jsonl"),
    ):
        one = inputs[f"data/{name}"]
        tags = {tag.key: tag.value for tag in one.tags}
        assert one.dataset.digest == "d" * 36
        assert tags == {
            "mlflow.data.context": context,
            "shadowft.data": "sha256:" + "d" * 64,
            "shadowft.rows": rows,
        }
        assert data in one.dataset.source


def test_registering_the_same_run_twice_at_once_makes_one_version(run: Run, client: Any) -> None:
    room.preflight(run.params)
    barrier = threading.Barrier(2)

    def register(place: int) -> room.Version:
        barrier.wait(30)
        lock, params = run.lock, run.params
        return room.register(params, run.work, lock, ROOT / "params.yaml", None, run.pending / str(place))

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(register, range(2)))
    name = run.params.registry.name
    first, *rest = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda row: int(row.version))
    assert {(version.number, version.run_id) for version in found} == {(1, first.run_id)}
    assert [row.tags.get("shadowft.duplicate_of") for row in (first, *rest)] == [None, *("1" for _ in rest)]
    assert sum(version.new for version in found) == 1
    experiment = client.get_experiment_by_name(name)
    assert {one.info.status for one in client.search_runs([experiment.experiment_id])} == {"FINISHED"}
    again = run.register()
    assert (again.number, again.new) == (1, False)
