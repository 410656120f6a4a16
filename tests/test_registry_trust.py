"""A registered recipe is untrusted data: it cannot redirect credentials, and edited records are refused."""

import http.server
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import shadowft_core.store as stores
from shadowft_core import promotion
from shadowft_core import registry as room
from shadowft_core.cli import app
from shadowft_core.errors import LedgerError, RegistryError, ShadowError, StoreError
from shadowft_core.files import bytes_digest, canonical_json, read_json_object
from shadowft_core.params import Store
from shadowft_core.registry.registration import tags_of
from tests.fixtures.models import Pair
from tests.fixtures.runs import Released, Run
from tests.fixtures.s3 import act_as
from tests.servers.seaweedfs import Identity
from tests.test_store_backends_secure import Recorder

ROOT = Path(__file__).parent.parent
EVIL = "http://evil.example:9000"
AWS = Store(uri="s3://team/deltas")
OURS = Store(uri="s3://team/deltas", endpoint="https://s3.team.example/", bucket_owner="123456789012")


@pytest.mark.parametrize(
    ("named", "configured", "environment", "expected"),
    [
        (Store(uri="/shared/deltas"), None, {}, Store(uri="/shared/deltas")),
        (Store(uri="/shared/deltas"), OURS, {}, Store(uri="/shared/deltas")),
        (Store(uri="/shared/deltas"), None, {"URI": "s3://ours/x"}, Store(uri="s3://ours/x")),
        (AWS, AWS, {}, AWS),
        (Store(uri="s3://other/deltas"), AWS, {}, Store(uri="s3://other/deltas")),
        (
            Store(uri="s3://other/deltas", endpoint="HTTPS://S3.team.example"),
            OURS,
            {},
            Store(uri="s3://other/deltas", endpoint=OURS.endpoint, bucket_owner=OURS.bucket_owner),
        ),
        (Store(uri="s3://team/x", endpoint=EVIL), None, {"URI": "s3://ours/x"}, Store(uri="s3://ours/x")),
        (
            Store(uri="s3://team/x", endpoint=EVIL),
            OURS,
            {"URI": "s3://y/x"},
            OURS.model_copy(update={"uri": "s3://y/x"}),
        ),
        (
            Store(uri="s3://team/x", endpoint=EVIL),
            None,
            {"ENDPOINT": "http://127.0.0.1:1"},
            Store(uri="s3://team/x", endpoint="http://127.0.0.1:1"),
        ),
        (
            AWS,
            None,
            {},
            "s3://team/deltas at AWS, the configuration has no S3 store.*set SHADOWFT_STORE_URI=s3://team/deltas$",
        ),
        (AWS, Store(uri="var/store"), {}, "at AWS, the configuration has no S3 store"),
        (AWS, OURS, {}, "at AWS, the configuration has s3://team/deltas at https://s3.team.example: credentials"),
        (
            Store(uri="s3://team/deltas", endpoint=EVIL),
            AWS,
            {},
            "at http://evil.example:9000, the configuration has s3://team/deltas at AWS.*SHADOWFT_STORE_ENDPOINT=http://evil",
        ),
        (Store(uri="s3://team/x", endpoint=EVIL), OURS, {"URI": "", "ENDPOINT": ""}, "at http://evil.example:9000"),
        (
            Store(uri="s3://team/x", endpoint="http://s3.team.example"),
            OURS,
            {},
            "at http://s3.team.example, the configuration has",
        ),
        (
            Store(uri="s3://team/x", endpoint="https://s3.team.example:444"),
            OURS,
            {},
            "at https://s3.team.example:444, the configuration has",
        ),
    ],
)
def test_a_recipe_may_not_name_a_new_endpoint(
    named: Store, configured: Store | None, environment: dict[str, str], expected: Store | str, monkeypatch: Any
) -> None:
    for field in ("URI", "ENDPOINT"):
        monkeypatch.delenv(f"SHADOWFT_STORE_{field}", raising=False)
        if field in environment:
            monkeypatch.setenv(f"SHADOWFT_STORE_{field}", environment[field])
    recipe = {"store": named.model_dump(exclude_defaults=True)}
    if isinstance(expected, Store):
        assert room.store_for(recipe, configured) == expected
    else:
        with pytest.raises(StoreError, match=expected) as error:
            room.store_for(recipe, configured)
        assert "\n" not in str(error.value)


def test_a_recipe_without_a_usable_store_is_a_one_line_error() -> None:
    for store in (None, 3, {}, {"uri": ""}, {"uri": "x", "strange": 1}):
        with pytest.raises(StoreError, match="names no usable store") as error:
            room.store_for({"store": store} if store != {} else {})
        assert "\n" not in str(error.value)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Any]]]:
    """A foreign server and the requests it got; credentials for another server are in the environment."""
    act_as(monkeypatch, Identity("ours-access-key", "ours-secret-key"))
    handler = type("Handler", (Recorder,), {"seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.seen
        server.shutdown()


@dataclass
class Forged:
    """A registered version whose recipe, in MLflow's files, names a foreign server."""

    run: Run
    client: Any
    name: str
    folder: Path
    digest: str

    def edit(self, where: str, place: str) -> None:
        """Change the recipe's store, and its digest in MLmodel, in the tag or in the store, up to `place`."""
        recipe = read_json_object(self.folder / "artifacts" / "recipe.json")
        recipe["store"] = {"uri": "s3://theirs/deltas", "endpoint": where, "region": "us-east-1"}
        raw = canonical_json(recipe)
        (self.folder / "artifacts" / "recipe.json").write_bytes(raw)
        self.digest = bytes_digest(raw)
        if place != "recipe":
            described = yaml.safe_load((self.folder / "MLmodel").read_text())
            described["metadata"] = {"shadowft.recipe": self.digest}
            (self.folder / "MLmodel").write_text(yaml.safe_dump(described))
        if place == "tag":
            self.client.set_model_version_tag(self.name, "1", "shadowft.recipe", self.digest)
        if place == "store":
            stores.keep_record(raw, self.run.params.store)
            for name, value in tags_of(recipe).items():
                self.client.set_model_version_tag(self.name, "1", name, value)
                self.client.set_tag(self.client.get_model_version(self.name, "1").run_id, name, value)


@pytest.fixture
def forged(run: Run, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forged:
    import mlflow

    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    name = run.register().name
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/1"))
    assert folder.is_relative_to(Path(run.params.registry.tracking_uri.removeprefix("sqlite:///")).parent)
    return Forged(run, client, name, folder, "")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("recipe", r"recipe\.json: its digest is sha256:.*, MLmodel has sha256:.*; the record was changed"),
        ("MLmodel", r"version 1: the digest of its recipe is sha256:.*, its tag has sha256:.*; the record was changed"),
        ("tag", "credentials are not sent to a server that only a recipe names"),
    ],
)
def test_an_edited_recipe_is_refused_before_any_request(
    forged: Forged, elsewhere: tuple[str, list[Any]], place: str, message: str
) -> None:
    import mlflow

    where, seen = elsewhere
    forged.edit(where, place)
    with pytest.raises(ShadowError, match=message) as error:
        mlflow.pyfunc.load_model(f"models:/{forged.name}@challenger")
    assert "\n" not in str(error.value)
    assert seen == []


@pytest.mark.parametrize(
    "verb",
    [
        ["materialize", "models:/NAME/1", "--out", "OUT"],
        ["export", "models:/NAME/1", "--for", "merged", "--out", "OUT"],
        ["export", "models:/NAME/1", "--for", "vllm", "--out", "OUT"],
        ["promote", "NAME", "1"],
        ["regraft", "--recipe", "RECIPE", "--instruct", "INSTRUCT", "--out", "OUT"],
    ],
    ids=lambda words: "-".join(words[:3]).replace("--", ""),
)
def test_no_verb_follows_a_recipe_to_another_server(
    forged: Forged,
    elsewhere: tuple[str, list[Any]],
    verb: list[str],
    tiny_llama_pair: Pair,
    tmp_path: Path,
) -> None:
    where, seen = elsewhere
    forged.edit(where, "store")  # as if registered with another store and copied here
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params |= {"store": forged.run.params.store.model_dump(), "registry": forged.run.params.registry.model_dump()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    words = {
        "models:/NAME/1": f"models:/{forged.name}/1",
        "NAME": forged.name,
        "OUT": str(tmp_path / "out"),
        "RECIPE": str(forged.folder / "artifacts" / "recipe.json"),
        "INSTRUCT": str(tiny_llama_pair.base),
    }
    command = [words.get(word, word) for word in verb]
    if verb[0] != "regraft":
        command += ["--params", str(tmp_path / "params.yaml")]
    with pytest.raises(StoreError, match="credentials are not sent to a server that only a recipe names") as error:
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert "\n" not in str(error.value)
    assert seen == []
    assert not (tmp_path / "out").exists()


def test_the_alias_champion_is_checked_against_the_ledger(
    released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    client, name = released.client, released.name
    load = mlflow.pyfunc.load_model
    promotion.promote(released.registry, released.store, "1")
    assert load(f"models:/{name}@champion").predict([[{"role": "user", "content": "word1"}]])
    client.set_registered_model_alias(name, "champion", "2")  # by hand
    for reference in (f"models:/{name}@champion", f"models:/{name}/2"):
        with pytest.raises(LedgerError, match=rf"version 1.*champion points at version 2.*shadowft reconcile {name}"):
            load(reference)
    load(f"models:/{name}/1")  # it has no alias champion
    load(f"models:/{name}/3")
    promotion.reconcile(released.registry, released.store)
    load(f"models:/{name}@champion")
    load(f"models:/{name}/2")

    kept = shutil.copytree(mlflow.artifacts.download_artifacts(f"models:/{name}@champion"), tmp_path / "kept")
    load(str(kept))  # a folder that was downloaded before stays valid
    client.set_registered_model_alias(name, "champion", "2")
    load(str(kept))
    promotion.promote(released.registry, released.store, "2")
    load(str(kept))

    never = f"{name}-never"
    client.create_registered_model(never)
    client.copy_model_version(f"models:/{name}/1", never)
    client.set_registered_model_alias(never, "champion", "1")
    with pytest.raises(LedgerError, match=f"is empty, yet champion points at version 1.*shadowft reconcile {never}"):
        load(f"models:/{never}@champion")


def test_a_forged_recipe_is_refused_by_ledger_and_store(
    run: Run, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe, MLmodel and tag agree, but were changed by a person with write access to MLflow only."""
    import mlflow

    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SHADOWFT_STORE_URI", run.params.store.uri)
    name = run.register().name
    run.judge("promote")
    run.register()
    promotion.promote(run.params.registry, run.params.store, "1")
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/1"))
    forged = Forged(run, client, name, folder, "")
    forged.edit("http://127.0.0.1:9", "tag")
    with pytest.raises(LedgerError, match=f"{forged.digest}.*shadowft reconcile"):
        mlflow.pyfunc.load_model(f"models:/{name}@champion")
    promotion.promote(run.params.registry, run.params.store, "2")
    source = client.get_model_version(name, "1").source
    kept = shutil.copytree(folder, tmp_path / "kept")
    (kept / "registered_model_meta").unlink()
    for reference in (f"models:/{name}/1", source, str(kept)):
        with pytest.raises(RegistryError, match=f"recipe {forged.digest} is not in store"):
            mlflow.pyfunc.load_model(reference)
    whole = client.get_model_version(name, "2").source
    assert mlflow.pyfunc.load_model(whole).predict([[{"role": "user", "content": "word1"}]])
