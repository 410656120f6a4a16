"""Registered models are rebuilt bit for bit, from the store that has their deltas."""

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
from shadowft_core.errors import GraftError, RegistryError, StoreError, StoreUnreachableError
from shadowft_core.files import canonical_json
from shadowft_core.params import Store
from shadowft_core.registry.evidence import Evidence
from shadowft_core.registry.rebuild import parse_recipe
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair
from tests.fixtures.runs import Run
from tests.test_store_backends_secure import Recorder

ROOT = Path(__file__).parent.parent
NEEDED = ("format", "digest", "instruct", "base", "files", "deltas", "verdict", "lineage", "store")


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
    with pytest.raises(GraftError, match=r"its weights have digest sha256:.*, the recipe expects sha256:.*--instruct"):
        run.materialize(reference, tmp_path / "model", instruct=tiny_llama_pair.base)
    other = shutil.copytree(tiny_llama_pair.instruct, tmp_path / "other")
    (other / "generation_config.json").write_text('{"temperature": 2}')
    with pytest.raises(
        GraftError, match=r"expected file generation_config\.json with digest sha256:.*nothing was written"
    ):
        run.materialize(reference, tmp_path / "model", instruct=other)
    assert [path for path in tmp_path.iterdir() if "model" in path.name] == []
    for wrong in ("models:/../x/1", f"{name}@champion", "models:/a/0", "models:/a@b@c"):
        with pytest.raises(RegistryError, match="expected models:/NAME"):
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


def test_a_cached_model_is_rebuilt_only_when_damaged(run: Run, tmp_path: Path, capsys: Any) -> None:
    recipe = promotion.recipe_named(f"models:/{run.register().name}/1", run.params.registry, run.params.store)
    with ThreadPoolExecutor(2) as pool:  # as two servers that start at once
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


def test_the_recipe_names_the_configured_store_and_its_deltas_may_move(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run.params = run.params.model_copy(update={"store": Store(uri="var/store")})
    reference = f"models:/{run.register().name}/1"
    recipe = promotion.recipe_named(reference, run.params.registry, run.params.store)
    assert recipe["store"] == {"uri": "var/store", "endpoint": None, "region": None}
    moved_to = shutil.copytree(tmp_path / "var/store", tmp_path / "elsewhere/store")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(RegistryError, match=r"its recipe sha256:.* not in store var/store.*set SHADOWFT_STORE_URI"):
        run.materialize(reference, tmp_path / "model")
    moved = Store(uri=str(moved_to))
    with pytest.raises(StoreError, match=r"var/store: no delta sha256:.* --store or set SHADOWFT_STORE_URI") as error:
        promotion.materialize(reference, tmp_path / "model", run.params.registry, moved)
    assert error.type is StoreError, "the store answers"
    promotion.materialize(reference, tmp_path / "model", run.params.registry, moved, deltas=moved)
    assert open_checkpoint(tmp_path / "model").digest() == recipe["digest"]
    monkeypatch.setenv("SHADOWFT_STORE_URI", str(moved_to))
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


def test_a_cached_model_with_an_extra_file_is_rebuilt(run: Run, tmp_path: Path, capsys: Any) -> None:
    """Otherwise the libraries would read a template or an adapter that is not in the recipe."""
    recipe = promotion.recipe_named(f"models:/{run.register().name}/1", run.params.registry, run.params.store)
    folder = room.cached(recipe, tmp_path / "cache")
    for extra in ("chat_template.jinja", "adapter_config.json", "additional_chat_templates/tool.jinja"):
        if extra in recipe["files"]:
            continue
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text("{}")
        assert room.cached(recipe, tmp_path / "cache") == folder
        assert not (folder / extra).exists()
    capsys.readouterr()
    room.cached(recipe, tmp_path / "cache")
    assert "graft:" not in capsys.readouterr().err, "a complete model is used as it is"


def test_a_recipe_without_a_well_formed_model_digest_is_refused(run: Run, tmp_path: Path) -> None:
    """The digest becomes the name of a folder."""
    recipe = promotion.recipe_named(f"models:/{run.register().name}/1", run.params.registry, run.params.store)
    for digest in ("sha256:../../x", "", "x" * 64, None, "sha256:" + "0" * 63):
        (tmp_path / "recipe.json").write_bytes(canonical_json(recipe | {"digest": digest}))
        with pytest.raises(RegistryError, match="not a recipe of format 1"):
            room.read_recipe(tmp_path / "recipe.json")


def test_a_recipe_is_small_canonical_and_complete(run: Run, tmp_path: Path) -> None:
    """Else its digest, which names it everywhere, would not be that of its content."""
    recipe = Evidence(run.params, run.work, run.lock, ROOT / "params.yaml").registration(None).recipe
    raw = canonical_json(recipe)
    assert parse_recipe(raw, "here") == recipe
    for damaged in (
        raw.replace(b":", b": ", 1),
        raw[:-1],
        b"[]",
        canonical_json(recipe | {"format": 2}),
        canonical_json(recipe | {"deltas": []}),
        canonical_json(recipe | {"digest": f"{recipe['digest']}/../x"}),
        canonical_json(recipe | {"store": {"uri": ""}}),
        *(canonical_json({name: value for name, value in recipe.items() if name != absent}) for absent in NEEDED),
        canonical_json(recipe | {"note": "x" * (1 << 20)}),
    ):
        (tmp_path / "recipe.json").write_bytes(damaged)
        with pytest.raises(
            RegistryError, match=r"recipe\.json: (not a recipe of format 1|\d+ bytes, the limit is 1048576)"
        ):
            room.read_recipe(tmp_path / "recipe.json")
