"""What a promotion is believed by: records of the store. Whatever is edited in MLflow alone moves and loads nothing."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from shadowft_core import promotion as room
from shadowft_core import store as stores
from shadowft_core.cli import app
from shadowft_core.errors import (
    LedgerError,
    PromotionRefusedError,
    RegistrationPendingError,
    RegistryError,
    StoreCorruptError,
)
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.registry import register_pending
from shadowft_core.registry.registration import tags_of
from tests.fixtures.runs import OUTCOMES, ROOT, Released, Run

MADE = ["key", "recipe", "lock", "data", "base", "instruct", "delta", "model", "scale", "verdict", "decision"]


class Forger:
    """Somebody who may write to MLflow, every row and every file, and to nothing else."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        self.version = client.get_model_version(name, "1")

    @property
    def _recipe(self) -> Path:
        model = self.client.get_logged_model(self.version.source.removeprefix("models:/"))
        return Path(model.artifact_location.removeprefix("file://"), "artifacts", "recipe.json")

    @property
    def _verdict(self) -> Path:
        uri = self.client.get_run(self.version.run_id).info.artifact_uri
        return Path(uri.removeprefix("file://"), "verdict.json")

    def tag(self, **tags: str) -> None:
        for tag, value in tags.items():
            self.client.set_model_version_tag(self.name, "1", f"shadowft.{tag}", value)
        self.tag_run(**tags)

    def tag_run(self, **tags: str) -> None:
        for tag, value in tags.items():
            self.client.set_tag(self.version.run_id, f"shadowft.{tag}", value)

    def recipe(self, changes: Mapping[str, Any] = {}) -> dict[str, Any]:
        found = json.loads(self._recipe.read_bytes()) | changes
        if changes:
            self._recipe.write_bytes(canonical_json(found))
        return dict(found)

    def verdict(self) -> str:
        """Better in every claim; returns its digest."""
        found = json.loads(self._verdict.read_bytes())
        claims = [claim | {"outcome": "better"} for claim in found["claims"]]
        self._verdict.write_bytes(canonical_json(found | {"decision": "promote", "claims": claims}))
        return bytes_digest(self._verdict.read_bytes())

    def everything(self) -> None:
        """Verdict, recipe, and every tag, so that all digests in MLflow agree."""
        self.whole({"verdict": {"digest": self.verdict(), "decision": "promote"}, "waivers": ["onto-base"]})

    def whole(self, changes: Mapping[str, Any]) -> None:
        """The recipe, and every tag that follows from it."""
        recipe = self.recipe(changes)
        self.tag(**{tag.removeprefix("shadowft."): value for tag, value in tags_of(recipe).items()})

    def other_store(self) -> None:
        store = {"uri": "s3://elsewhere/x", "endpoint": "http://127.0.0.1:9", "region": None}
        self.tag(recipe=bytes_digest(canonical_json(self.recipe({"store": store}))))

    def remove(self, which: str) -> None:
        getattr(self, which).unlink()


FORGERIES: dict[str, tuple[Callable[[Forger], Any], str]] = {
    "verdict": (Forger.verdict, r"the digest of its verdict\.json is sha256:.*, expected sha256:"),
    "verdict and its tags": (lambda f: f.tag(verdict=f.verdict(), decision="promote"), "its tag shadowft.verdict is"),
    "recipe": (
        lambda f: f.recipe({"waivers": ["onto-base"]}),
        r"the digest of its recipe\.json is sha256:.*, expected",
    ),
    "recipe and its tag": (
        lambda f: f.tag(recipe=bytes_digest(canonical_json(f.recipe({"waivers": ["onto-base"]})))),
        "its recipe sha256:.* is not in store",
    ),
    "recipe with a store of the forger's": (Forger.other_store, "its recipe sha256:.* is not in store"),
    "all of it, every digest right": (Forger.everything, "its recipe sha256:.* is not in store"),
    "decision of the run": (lambda f: f.tag_run(decision="promote"), "its run's tag shadowft.decision is promote"),
    "verdict removed": (lambda f: f.remove("_verdict"), r"its verdict\.json cannot be read"),
    "recipe removed": (lambda f: f.remove("_recipe"), r"its recipe\.json cannot be read"),
} | {f"tag {tag}": (lambda f, tag=tag: f.tag(**{tag: "sha256:" + "0" * 64}), ".*") for tag in MADE}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_is_forged_in_mlflow_promotes_nothing(run: Run, client: Any, tmp_path: Path, forgery: str) -> None:
    run.judge("hold")
    name = run.register().name
    forge, message = FORGERIES[forgery]
    forge(Forger(client, name))
    registry, store = run.params.registry, run.params.store
    for override in (None, "a person believes it"):
        with pytest.raises(RegistryError, match=message) as refused:
            room.promote(registry, store, "1", override)
        assert "\n" not in str(refused.value)
    assert "champion" not in client.get_registered_model(name).aliases
    assert room.history(registry, store) == room.Chain(room.history(registry, store).tip, [], [])
    if "recipe" in forgery or "tag" in forgery:  # what a model is rebuilt by
        with pytest.raises(RegistryError, match=message):
            run.materialize(f"models:/{name}/1", tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_the_tags_held_against_the_recipe_are_all_but_those_of_git(run: Run, client: Any) -> None:
    tags = client.get_model_version(run.register().name, "1").tags
    assert {tag.removeprefix("shadowft.") for tag in tags} == {*MADE, "git.commit", "git.dirty"}


def test_a_forged_champion_is_neither_rebuilt_nor_rolled_back_to_nor_registered_again(run: Run, client: Any) -> None:
    registry, store = run.params.registry, run.params.store
    name = run.register().name
    room.promote(registry, store)
    forger = Forger(client, name)
    forger.everything()
    with pytest.raises(RegistryError, match=r"the digest of its recipe\.json is sha256:.*, expected sha256:"):
        run.materialize(f"models:/{name}@champion", run.work / "model")
    for act in (lambda: room.rollback(registry, store, to="1"), lambda: room.reconcile(registry, store)):
        with pytest.raises(RegistryError, match=r"has recipe sha256:.*, the ledger has sha256:"):
            act()
    forger.tag(recipe=room.history(registry, store).entries[0].recipe)
    with pytest.raises(
        RegistryError, match=r"the digest of its recipe\.json is sha256:.*, expected sha256:.*delete this version"
    ):
        room.reconcile(registry, store)
    client.delete_model_version(name, "1")  # the remedy
    assert run.register().number == 2
    assert room.reconcile(registry, store).number == 2
    assert run.materialize(f"models:/{name}@champion", run.work / "model")["verdict"]["decision"] == "promote"


def test_a_version_that_only_claims_to_be_this_run_does_not_keep_it_out(run: Run, client: Any) -> None:
    name = run.register().name
    Forger(client, name).tag(model="sha256:" + "0" * 64)
    with pytest.raises(
        RegistrationPendingError, match=r"version 1: its tag shadowft\.model is sha256:0000.*delete this version"
    ):
        run.register()
    client.delete_model_version(name, "1")
    (version,) = register_pending(run.params.registry, run.pending)
    assert room.promote(run.params.registry, run.params.store).number == version.number == 2


def test_a_verdict_on_another_model_promotes_nothing(run: Run, client: Any) -> None:
    """Even in the store: a recipe of other weights cannot borrow a good verdict."""
    forger = Forger(client, run.register().name)
    forger.whole({"digest": "sha256:" + "0" * 64})
    stores.keep_record(canonical_json(forger.recipe()), run.params.store)
    with pytest.raises(RegistryError, match=r"its verdict is of model sha256:.*, its recipe is of sha256:0000"):
        room.promote(run.params.registry, run.params.store)


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("promote", {"outcome": "tie"}, "its verdict states promote, the claims of its verdict decide hold"),
    ("promote", {"outcome": "too few items"}, "states promote, the claims of its verdict decide undecided"),
    ("hold", {"outcome": "better"}, "states hold, the claims of its verdict decide promote"),
    ("promote", {"outcome": "great"}, "claims cannot be read"),
    ("promote", {"against": "nobody"}, r"compares shadow_scaled with \['nobody'\], not with instruct"),
]


@pytest.mark.parametrize(("decision", "claim", "message"), CONTRADICTIONS)
def test_the_decision_is_the_one_that_the_claims_make(
    run: Run, decision: str, claim: dict[str, Any], message: str
) -> None:
    found = json.loads((run.work / "verdict.json").read_bytes())
    run.judge(decision, claims=[found["claims"][0] | claim])
    run.register()
    for override in (None, "a person believes it"):
        with pytest.raises(RegistryError, match=message):
            room.promote(run.params.registry, run.params.store, override=override)
    assert room.history(run.params.registry, run.params.store).entries == []


@pytest.mark.parametrize("decision", OUTCOMES)
def test_only_promote_promotes(run: Run, decision: str) -> None:
    run.judge(decision)
    run.register()
    if decision == "promote":
        entry = room.promote(run.params.registry, run.params.store).entry
        verdict, recipe = (stores.record(digest, run.params.store) for digest in (entry.verdict, entry.recipe))
        assert verdict == (run.work / "verdict.json").read_bytes()
        assert recipe is not None
        assert json.loads(recipe)["verdict"]["digest"] == entry.verdict, "the ledger names both"
        return
    with pytest.raises(PromotionRefusedError, match=f"the verdict is {decision}: "):
        room.promote(run.params.registry, run.params.store)
    assert room.history(run.params.registry, run.params.store).entries == []


def test_a_registration_from_before_the_store_kept_records_is_registered_again(run: Run) -> None:
    registry, store = run.params.registry, run.params.store
    name = run.register().name
    records = Path(store.uri, "records")
    assert len(list(records.iterdir())) == 2
    for path in records.iterdir():
        path.unlink()
    with pytest.raises(
        RegistryError, match=r"its recipe sha256:.* is not in store .*; run `shadowft register` for that"
    ):
        room.promote(registry, store)
    again = run.register()
    assert (again.number, again.new) == (1, False)
    room.promote(registry, store)
    for path in records.iterdir():
        path.unlink()
    assert run.materialize(f"models:/{name}@champion", run.work / "model"), "the ledger has its digest"
    assert room.rollback(registry, store, to="1").changed is False


def test_a_record_that_was_changed_in_the_store_is_named(run: Run) -> None:
    run.register()
    for path in Path(run.params.store.uri, "records").iterdir():
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StoreCorruptError, match=r"records/.* is damaged: it is sha256:"):
        room.promote(run.params.registry, run.params.store)


def test_what_waits_for_mlflow_has_its_records_and_needs_the_store_no_more(run: Run, tmp_path: Path) -> None:
    up = run.params
    down = up.registry.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/dvc.lock/x.db"})
    run.params = up.model_copy(update={"registry": down})
    with pytest.raises(RegistrationPendingError):
        run.register()
    assert len(list(Path(up.store.uri, "records").iterdir())) == 2, "before MLflow hears of them"
    Path(up.store.uri).rename(tmp_path / "away")
    (version,) = register_pending(up.registry, run.pending)
    (tmp_path / "away").rename(up.store.uri)
    assert room.promote(up.registry, up.store).number == version.number == 1


@pytest.mark.parametrize("alias", ["champion", "Champion"])
def test_champion_is_who_the_ledger_says(released: Released, tmp_path: Path, alias: str) -> None:
    registry, store, client, name = released.registry, released.store, released.client, released.name
    reference = f"models:/{name}@{alias}"
    with pytest.raises(RegistryError, match="nothing was ever promoted"):
        room.recipe_named(reference, registry, store)
    client.set_registered_model_alias(name, "champion", "3")
    with pytest.raises(LedgerError, match=f"is empty, yet champion points at version 3; .*`shadowft reconcile {name}`"):
        room.recipe_named(reference, registry, store)
    client.delete_registered_model_alias(name, "champion")
    entry = room.promote(registry, store, "1").entry
    assert bytes_digest(canonical_json(room.recipe_named(reference, registry, store))) == entry.recipe

    client.set_registered_model_alias(name, "champion", "3")
    apart = f"ends at entry 1, version 1, yet champion points at version 3; .*`shadowft reconcile {name}`"
    for act in (
        lambda: room.recipe_named(reference, registry, store),
        lambda: room.materialize(reference, tmp_path / "model", registry, store),
        lambda: room.promote(registry, store, alias, override="whatever it points at"),
    ):
        with pytest.raises(LedgerError, match=apart):
            act()
    assert not (tmp_path / "model").exists()
    assert len(room.history(registry, store).entries) == 1
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params |= {"store": store.model_dump(), "registry": registry.model_dump()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for words in (
        ["materialize", reference],
        ["export", "--for", "merged", "--recipe", reference],
        ["export", "--for", "vllm", "--recipe", reference],
    ):
        done = CliRunner().invoke(
            app, [*words, "--out", str(tmp_path / "o"), "--params", str(tmp_path / "params.yaml")]
        )
        assert isinstance(done.exception, LedgerError), words
        assert not (tmp_path / "o").exists()
    room.reconcile(registry, store)
    assert room.recipe_named(reference, registry, store)["digest"] == entry.model


def test_a_version_called_champion_is_loaded_only_if_the_ledger_agrees(released: Released) -> None:
    registry, store, client, name = released.registry, released.store, released.client, released.name
    digests = {row.version: row.tags["shadowft.recipe"] for row in client.search_model_versions(f"name = '{name}'")}
    digests = {int(number): digest for number, digest in digests.items()}
    client.set_registered_model_alias(name, "champion", "3")
    with pytest.raises(LedgerError, match="is empty, yet champion points at version 3"):
        room.require_alias_agrees(registry, store, 3, digests[3])
    room.promote(registry, store, "1")
    room.require_alias_agrees(registry, store, 1, digests[1])
    room.require_alias_agrees(registry, store, 3, digests[3])  # nobody calls it champion
    with pytest.raises(
        LedgerError, match=f"version 1: its recipe is {digests[2]}, entry 1 of the ledger has {digests[1]}"
    ):
        room.require_alias_agrees(registry, store, 1, digests[2])
    client.set_registered_model_alias(name, "champion", "3")
    room.require_alias_agrees(registry, store, 1, digests[1])
    with pytest.raises(LedgerError, match="ends at entry 1, version 1, yet champion points at version 3"):
        room.require_alias_agrees(registry, store, 3, digests[3])
