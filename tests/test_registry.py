"""Versions are recipes in a real MLflow on SQLite; deltas lie in a real S3 server; what cannot be sent waits."""

import http.server
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import promotion
from shadowft_core import registry as room
from shadowft_core.errors import GraftError, RegistrationPendingError, RegistryError, StoreError, StoreUnreachableError
from shadowft_core.files import file_digest, read_json_object, write_json_atomically
from shadowft_core.params import Store
from shadowft_core.registry import tracking
from shadowft_core.registry.evidence import Evidence
from shadowft_core.registry.registration import waiting_in
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair
from tests.fixtures.runs import Run, write_verdict
from tests.test_store_backends_secure import Recorder

ROOT = Path(__file__).parent.parent


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
    assert sum(path.stat().st_size for path in files) < 10_000
    assert {path.suffix for path in files} <= {".json", ".txt", ".yaml", ""}, files  # no pickle, no code, no weights
    assert not [path for path in files if b"\x80\x04\x95" in path.read_bytes()]  # the first bytes of a pickle


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


def test_a_graft_of_which_no_delta_was_kept_is_not_registered(run: Run, client: Any) -> None:
    recipe = run.work / "grafted" / "shadow" / "recipe.json"
    pair = {"base": "sha256:" + "1" * 64, "tuned": "sha256:" + "2" * 64, "scale": 0.5}
    write_json_atomically(recipe, read_json_object(recipe) | {"deltas": [pair]})
    with pytest.raises(
        GraftError, match=r"recipe\.json: adds sha256:22.* - sha256:11.*nobody could rebuild it; run"
    ) as e:
        run.register()
    assert "\n" not in str(e.value)
    assert client.search_model_versions(f"name = '{run.params.registry.name}'") == []
    assert not run.pending.exists(), "it does not wait either"


def test_a_registered_recipe_names_the_digest_of_every_delta(run: Run, tmp_path: Path) -> None:
    recipe = Evidence(run.params, run.work, run.lock, ROOT / "params.yaml").registration(None).recipe
    write_json_atomically(tmp_path / "recipe.json", recipe)
    assert room.read_recipe(tmp_path / "recipe.json") == recipe
    for deltas in ([{"base": "sha256:1", "tuned": "sha256:2", "scale": 1.0}], [{"digest": "sha256:1"}], 3):
        write_json_atomically(tmp_path / "recipe.json", recipe | {"deltas": deltas})
        with pytest.raises(RegistryError, match="not a recipe of format 1 as `shadowft register` writes it"):
            room.read_recipe(tmp_path / "recipe.json")


def test_materialize_from_s3_gives_the_registered_bits(run: Run, s3_store: Store, tmp_path: Path) -> None:
    run.params = run.params.model_copy(update={"store": s3_store})
    room.preflight(run.params)
    name = run.register().name
    grafted = run.work / "grafted" / "shadow"
    expected = {path.name: path.read_bytes() for path in grafted.iterdir() if path.name != "receipt.json"}
    shutil.rmtree(run.work)
    recipe = run.materialize(f"models:/{name}@challenger", tmp_path / "model")
    assert open_checkpoint(tmp_path / "model").digest() == recipe["digest"]
    made = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.name != "receipt.json"}
    assert made == expected


def test_materialize_refuses_another_instruct_and_a_result_that_differs(
    run: Run, tiny_llama_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = run.register().name
    reference = f"models:/{name}/1"
    with pytest.raises(GraftError, match=r"its weights are sha256:.*, the recipe wants sha256:.*--instruct"):
        run.materialize(reference, tmp_path / "model", instruct=tiny_llama_pair.base)
    other = shutil.copytree(tiny_llama_pair.instruct, tmp_path / "other")
    (other / "generation_config.json").write_text('{"temperature": 2}')
    with pytest.raises(GraftError, match=r"file generation_config\.json came out as sha256:.*nothing was kept"):
        run.materialize(reference, tmp_path / "model", instruct=other)
    assert [path for path in tmp_path.iterdir() if "model" in path.name] == []
    for wrong in ("models:/../x/1", f"{name}@champion", "models:/a/0", "models:/a@b@c"):
        with pytest.raises(RegistryError, match="is wanted"):
            run.materialize(wrong, tmp_path / "model")


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
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
    recipe = promotion.recipe_named(f"models:/{name}/1", run.params.registry, run.params.store)
    (folder,) = (tmp_path / "cache").glob("[0-9a-f]" * 64)
    assert folder.name == recipe["digest"].removeprefix("sha256:")


def test_a_cached_model_is_used_while_it_is_whole(run: Run, tmp_path: Path, capsys: Any) -> None:
    recipe = promotion.recipe_named(f"models:/{run.register().name}/1", run.params.registry, run.params.store)
    with ThreadPoolExecutor(2) as pool:  # two servers that start at once wait for each other
        folder, same = pool.map(lambda _: room.cached(recipe, tmp_path / "cache"), range(2))
    assert folder == same
    assert capsys.readouterr().err.count("graft:") == 1
    template = (folder / "tokenizer_config.json").read_bytes()
    (folder / "tokenizer_config.json").write_bytes(template + b" ")
    room.cached(recipe, tmp_path / "cache")
    assert (folder / "tokenizer_config.json").read_bytes() == template
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    room.cached(recipe, tmp_path / "cache")
    assert open_checkpoint(folder).digest() == recipe["digest"]
    assert capsys.readouterr().err.count("graft:") == 2


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


def test_two_workspaces_of_one_process_write_each_into_its_own_database(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = run.params.registry.model_copy(update={"tracking_uri": "sqlite:///var/mlflow/mlflow.db"})
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        with tracking.connected(relative) as client:
            client.create_registered_model(f"model-of-{place}")
            assert [model.name for model in client.search_registered_models()] == [f"model-of-{place}"]


def test_the_lineage_is_complete(run: Run, client: Any) -> None:
    logged = client.get_run(run.register().run_id)
    inputs = {one.dataset.name: one for one in logged.inputs.dataset_inputs}
    assert set(inputs) == {"data/train", "data/dev", "data/test"}
    for name, context, rows in (("train", "training", "10"), ("dev", "dev", "2"), ("test", "testing", "3")):
        one = inputs[f"data/{name}"]
        tags = {tag.key: tag.value for tag in one.tags}
        assert one.dataset.digest == "d" * 36
        assert tags == {
            "mlflow.data.context": context,
            "shadowft.data": "sha256:" + "d" * 64,
            "shadowft.rows": rows,
        }
        assert run.params.prepare.data in one.dataset.source


def test_the_recipe_names_the_store_as_configured_and_another_can_take_its_place(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run.params = run.params.model_copy(update={"store": Store(uri="var/store")})
    reference = f"models:/{run.register().name}/1"
    recipe = promotion.recipe_named(reference, run.params.registry, run.params.store)
    assert recipe["store"] == {"uri": "var/store", "endpoint": None, "region": None}
    there = shutil.copytree(tmp_path / "var/store", tmp_path / "elsewhere/store")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(RegistryError, match=r"its recipe sha256:.* not in store var/store.*with SHADOWFT_STORE_URI"):
        run.materialize(reference, tmp_path / "model")
    moved = Store(uri=str(there))
    with pytest.raises(StoreError, match=r"var/store: no delta sha256:.* --store or SHADOWFT_STORE_URI"):
        promotion.materialize(reference, tmp_path / "model", run.params.registry, moved)
    promotion.materialize(reference, tmp_path / "model", run.params.registry, moved, deltas=moved)
    assert open_checkpoint(tmp_path / "model").digest() == recipe["digest"]
    monkeypatch.setenv("SHADOWFT_STORE_URI", str(there))
    run.materialize(reference, tmp_path / "model")


def test_the_recipe_keeps_owner_and_encryption_of_its_bucket(
    run: Run, s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = s3_store.model_copy(update={"bucket_owner": "123456789012"})
    for store in (owned, Store(uri="s3://bucket/x", sse="aws:kms", sse_kms_key="alias/deltas", chunk_bytes=1 << 20)):
        run.params = run.params.model_copy(update={"store": store})
        evidence = Evidence(run.params, run.work, run.lock, ROOT / "params.yaml")
        assert Store(**evidence.registration(None).recipe["store"]) == store
    run.params = run.params.model_copy(update={"store": owned})
    reference = f"models:/{run.register().name}/1"
    handler = type("Handler", (Recorder,), {"seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("SHADOWFT_STORE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(StoreUnreachableError):
                run.materialize(reference, tmp_path / "model")
        finally:
            server.shutdown()
    assert {headers.get("x-amz-expected-bucket-owner") for _, headers in handler.seen} == {"123456789012"}


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
    run.judge("hold")  # the next run, which writes over the work folder
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


def test_what_waits_goes_first_and_one_that_is_refused_holds_up_nobody(run: Run, client: Any, capsys: Any) -> None:
    broken = run.pending / "000001-0000-1"
    broken.mkdir(parents=True)
    (broken / "registration.json").write_text('{"format":2}')
    (broken / "files").mkdir()
    assert run.register().number == 1
    with pytest.raises(RegistrationPendingError, match=r"000001-0000-1: not a kept registration \(another format\)"):
        room.register_pending(run.params.registry, run.pending)
    assert waiting_in(run.pending) == [broken]


def test_two_who_register_the_same_run_at_once_end_with_one_version(run: Run, client: Any) -> None:
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


def test_an_outage_of_mlflow_ends_no_flow(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tasks of the flow by themselves: the look ahead goes on, registering ends well and says what waits."""
    import yaml

    from shadowft_core.pipeline import steps

    monkeypatch.chdir(tmp_path)
    down = {"name": run.params.registry.name, "tracking_uri": f"sqlite:///{tmp_path}/dvc.lock/x.db"}
    params = run.params.model_dump(mode="json") | {"registry": down}
    params["prepare"]["data"] = params["evaluate"]["tasks"] = "work"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    read = steps.preflight(Path("params.yaml"), None)
    assert "The run goes on, its registration will wait in var/pending" in capsys.readouterr().err
    state = steps.register.fn(read, room.Git("c" * 40, dirty=False), print)
    assert (state.is_completed(), state.name) == (True, "Waiting")
    assert "kept in var/pending/000001-" in state.message
    assert "`shadowft register --pending` sends it" in state.message
    (version,) = room.register_pending(run.params.registry, Path("var/pending"))
    assert version.decision == "promote"
