"""Versions are recipes in a real MLflow on SQLite; deltas lie in a real S3 server; champion follows the verdict."""

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import registry as room
from shadowft_core.checkpoint import file_digest, open_checkpoint, write_json_atomically
from shadowft_core.errors import GraftError, PromotionRefused, RegistryError
from shadowft_core.params import Fetch, Params, Registry, Store, load_params
from tests.fixtures.models import Pair, shifted

ROOT = Path(__file__).parent.parent
_numbers = itertools.count()


@pytest.fixture(scope="session")
def finished_work(tmp_path_factory: pytest.TempPathFactory, tiny_llama_pair: Pair) -> Path:
    """A work folder with a real pair, delta and graft; its scores and verdict are written by hand. Copy it."""
    from shadowft_core.delta import extract
    from shadowft_core.graft import graft
    from shadowft_core.pair import fetch

    work = tmp_path_factory.mktemp("run") / "work"
    fetch(Fetch(base=str(tiny_llama_pair.base), instruct=str(tiny_llama_pair.instruct)), work / "pair")
    (work.parent / "tuned").mkdir()
    shifted(tiny_llama_pair.base, work.parent / "tuned" / "model", 0.01, seed=2)
    write_json_atomically(work.parent / "tuned" / "train.json", {"data_digest": "sha256:" + "d" * 64, "seed": 0})
    extract(tiny_llama_pair.base, work.parent / "tuned", work / "delta" / "shadow")
    recipe = graft(work / "pair" / "instruct", [(work / "delta" / "shadow", 0.5)], work / "grafted" / "shadow")
    for arm in ("instruct", "shadow", "shadow_scaled"):
        scores = {
            "format": 1,
            "arm": arm,
            "tasks": {"domain": {"role": "domain", "metric": "acc", "n": 8, "mean": 0.5}},
        }
        write_json_atomically(work / "scores" / arm.partition("_")[0] / arm / "scores.json", scores)
    (work / "report.html").write_text("<p>report</p>")
    (work.parent / "dvc.lock").write_text("schema: '2.0'\n")
    write_verdict(work, "promote", recipe["digest"])
    return work


def write_verdict(work: Path, decision: str, digest: str) -> None:
    reasons = ["domain gain too small", "guard <harm>"] if decision != "promote" else []
    verdict = {"format": 1, "decision": decision, "reasons": reasons, "recipe_digest": digest}
    write_json_atomically(work / "verdict.json", verdict)


@dataclass
class Run:
    """One run's workspace and where it registers."""

    work: Path
    lock: Path
    params: Params

    def register(self) -> room.Version:
        git = room.Git("c" * 40, dirty=False)
        return room.register(self.params, self.work, self.lock, ROOT / "params.yaml", git, self.pending)

    @property
    def pending(self) -> Path:
        return self.work.parent / "var" / "pending"

    def judge(self, decision: str) -> None:
        write_verdict(self.work, decision, json.loads((self.work / "verdict.json").read_bytes())["recipe_digest"])
        self.lock.write_text(f"schema: '2.0'\nverdict: {decision}\n")


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/var/mlflow.db"


@pytest.fixture
def run(finished_work: Path, tracking: str, folder_store: Store, tmp_path: Path, monkeypatch: Any) -> Run:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(finished_work, tmp_path / "work")
    shutil.copy(finished_work.parent / "dvc.lock", tmp_path / "dvc.lock")
    registry = Registry(name=f"model-{next(_numbers)}", tracking_uri=tracking)
    params = load_params(ROOT / "params.yaml").model_copy(update={"store": folder_store, "registry": registry})
    return Run(tmp_path / "work", tmp_path / "dvc.lock", params)


@pytest.fixture
def client(run: Run) -> Any:
    import mlflow

    uri = run.params.registry.tracking_uri  # named twice: MLflow else asks the registry that another test used last
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


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
    assert {"recipe.json", "recipe_model.py"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 10_000
    assert not [path for path in files if path.suffix in (".pkl", ".safetensors", ".bin")]


def test_a_new_verdict_is_a_new_version(run: Run) -> None:
    assert run.register().number == 1
    run.judge("hold")
    assert run.register().number == 2


def test_outputs_of_different_runs_are_not_registered(run: Run, client: Any) -> None:
    write_verdict(run.work, "promote", "sha256:" + "0" * 64)
    with pytest.raises(RegistryError, match=r"the judged model is sha256:0000.*, recipe\.json says sha256:"):
        run.register()
    (run.work / "report.html").unlink()
    with pytest.raises(RegistryError, match=r"report\.html: no such file; run `dvc repro`"):
        run.register()
    assert client.search_model_versions(f"name = '{run.params.registry.name}'") == []


def test_champion_moves_only_on_a_positive_verdict(run: Run, client: Any) -> None:
    registry, name = run.params.registry, run.params.registry.name
    run.register()
    assert room.promote(registry) == room.Promotion(name, 1, None, changed=True)
    assert room.promote(registry) == room.Promotion(name, 1, 1, changed=False)
    run.judge("hold")
    run.register()
    with pytest.raises(
        PromotionRefused, match=r"version 2: the verdict is hold: domain gain too small; guard <harm>\."
    ):
        room.promote(registry)
    with pytest.raises(PromotionRefused, match="needs a reason"):
        room.promote(registry, override="  ")
    assert client.get_model_version_by_alias(name, "champion").version == 1
    assert room.promote(registry, "2", override="shown to the customer") == room.Promotion(name, 2, 1, changed=True)
    tags = client.get_model_version(name, "2").tags
    assert tags["shadowft.override.reason"] == "shown to the customer"
    assert tags["shadowft.override.by"]
    assert tags["shadowft.replaced"] == "1"
    assert "shadowft.override.reason" not in client.get_model_version(name, "1").tags
    assert room.promote(registry, "1").previous == 2
    with pytest.raises(RegistryError, match=f"no version '7' of '{name}'"):
        room.promote(registry, "7")


def test_a_verdict_edited_in_the_registry_promotes_nothing(run: Run, client: Any) -> None:
    run.judge("hold")
    version = run.register()
    verdict = json.loads((run.work / "verdict.json").read_bytes()) | {"decision": "promote"}
    edited = run.work / "edited" / "verdict.json"
    write_json_atomically(edited, verdict)
    client.log_artifact(version.run_id, str(edited))
    client.set_model_version_tag(version.name, "1", "shadowft.decision", "promote")
    with pytest.raises(RegistryError, match=r"its verdict\.json is sha256:.* registered was sha256:.*was changed"):
        room.promote(run.params.registry)
    assert "champion" not in client.get_registered_model(version.name).aliases


def test_materialize_from_s3_gives_the_registered_bits(run: Run, s3_store: Store, tmp_path: Path) -> None:
    run.params = run.params.model_copy(update={"store": s3_store})
    room.preflight(run.params)
    name = run.register().name
    grafted = run.work / "grafted" / "shadow"
    expected = {path.name: path.read_bytes() for path in grafted.iterdir() if path.name != "receipt.json"}
    shutil.rmtree(run.work)
    recipe = room.materialize(f"models:/{name}@challenger", tmp_path / "model", run.params.registry)
    assert open_checkpoint(tmp_path / "model").digest() == recipe["digest"]
    made = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.name != "receipt.json"}
    assert made == expected


def test_materialize_refuses_another_instruct_and_a_result_that_differs(
    run: Run, tiny_llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = run.register().name
    reference = f"models:/{name}/1"
    with pytest.raises(GraftError, match=r"its weights are sha256:.*, the recipe wants sha256:.*--instruct"):
        room.materialize(reference, tmp_path / "model", run.params.registry, tiny_llama_pair.base)
    other = shutil.copytree(tiny_llama_pair.instruct, tmp_path / "other")
    (other / "generation_config.json").write_text('{"temperature": 2}')
    with pytest.raises(GraftError, match=r"file generation_config\.json came out as sha256:.*nothing was kept"):
        room.materialize(reference, tmp_path / "model", run.params.registry, other)
    assert [path for path in tmp_path.iterdir() if "model" in path.name] == []
    for wrong in ("models:/../x/1", f"{name}@champion", "models:/a/0", "models:/a@b@c"):
        with pytest.raises(RegistryError, match="is wanted"):
            room.materialize(wrong, tmp_path / "model", run.params.registry)


def test_standard_clients_load_the_version_and_nothing_is_unpickled(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = run.register().name
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    script = f"""
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args) if event == "pickle.find_class" else None)
import mlflow
mlflow.set_tracking_uri({run.params.registry.tracking_uri!r})
model = mlflow.pyfunc.load_model("models:/{name}@challenger")
assert not opened, opened
print(len(model.predict([[{{"role": "user", "content": "word1 word2"}}]], params=None)))
assert not opened, opened
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_preflight_names_what_does_not_answer_in_bounded_time(run: Run, tmp_path: Path) -> None:
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
