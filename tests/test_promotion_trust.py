"""Promotion relies on the records in the store: what was edited in MLflow alone is neither promoted nor loaded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import promotion as room
from shadowft_core import store as stores
from shadowft_core.errors import (
    PromotionRefusedError,
    RegistrationPendingError,
    RegistryError,
    StoreCorruptError,
)
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.registry import register_pending
from shadowft_core.registry.registration import tags_of
from tests.fixtures.runs import OUTCOMES, Run

MADE = ["key", "recipe", "lock", "data", "base", "instruct", "delta", "model", "scale", "verdict", "decision"]


class Forger:
    """A person with write access to all of MLflow, and to nothing else."""

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
        """Forge a verdict that is better in every claim; return its digest."""
        found = json.loads(self._verdict.read_bytes())
        claims = [claim | {"outcome": "better"} for claim in found["claims"]]
        self._verdict.write_bytes(canonical_json(found | {"decision": "promote", "claims": claims}))
        return bytes_digest(self._verdict.read_bytes())

    def everything(self) -> None:
        """Forge verdict, recipe and every tag, so that all digests in MLflow agree."""
        self.whole({"verdict": {"digest": self.verdict(), "decision": "promote"}, "waivers": ["onto-base"]})

    def whole(self, changes: Mapping[str, Any]) -> None:
        """Forge the recipe and every tag that follows from it."""
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
    "everything, with matching digests": (Forger.everything, "its recipe sha256:.* is not in store"),
    "decision of the run": (lambda f: f.tag_run(decision="promote"), "its run's tag shadowft.decision is promote"),
    "verdict removed": (lambda f: f.remove("_verdict"), r"its verdict\.json cannot be read"),
    "recipe removed": (lambda f: f.remove("_recipe"), r"its recipe\.json cannot be read"),
} | {f"tag {tag}": (lambda f, tag=tag: f.tag(**{tag: "sha256:" + "0" * 64}), ".*") for tag in MADE}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_in_mlflow_is_not_promoted(run: Run, client: Any, tmp_path: Path, forgery: str) -> None:
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
    if "recipe" in forgery or "tag" in forgery:  # a model is rebuilt from these
        with pytest.raises(RegistryError, match=message):
            run.materialize(f"models:/{name}/1", tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_all_tags_except_those_of_git_are_checked_against_the_recipe(run: Run, client: Any) -> None:
    tags = client.get_model_version(run.register().name, "1").tags
    assert {tag.removeprefix("shadowft.") for tag in tags} == {*MADE, "git.commit", "git.dirty"}


def test_a_forged_champion_is_refused_everywhere(run: Run, client: Any) -> None:
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


def test_a_forged_version_of_a_run_can_be_deleted_and_registered_again(run: Run, client: Any) -> None:
    name = run.register().name
    Forger(client, name).tag(model="sha256:" + "0" * 64)
    with pytest.raises(
        RegistrationPendingError, match=r"version 1: its tag shadowft\.model is sha256:0000.*delete this version"
    ):
        run.register()
    client.delete_model_version(name, "1")
    (version,) = register_pending(run.params.registry, run.pending)
    assert room.promote(run.params.registry, run.params.store).number == version.number == 2


def test_a_verdict_of_another_model_is_refused(run: Run, client: Any) -> None:
    """Also in the store, a recipe of other weights cannot use a good verdict."""
    forger = Forger(client, run.register().name)
    forger.whole({"digest": "sha256:" + "0" * 64})
    stores.keep_record(canonical_json(forger.recipe()), run.params.store)
    with pytest.raises(RegistryError, match=r"its verdict is of model sha256:.*, its recipe is of sha256:0000"):
        room.promote(run.params.registry, run.params.store)


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("promote", {"outcome": "tie"}, "its verdict states promote, the claims of its verdict decide hold"),
    ("promote", {"outcome": "too few items"}, "states promote, the claims of its verdict decide undecided"),
    ("hold", {"outcome": "better"}, "states hold, the claims of its verdict decide promote"),
    (
        "promote",
        {"against": "nobody"},
        "no claim that decides superiority of shadow_scaled over instruct",
    ),
]


@pytest.mark.parametrize(("decision", "claim", "message"), CONTRADICTIONS)
def test_the_decision_follows_from_the_claims(run: Run, decision: str, claim: dict[str, Any], message: str) -> None:
    found = json.loads((run.work / "verdict.json").read_bytes())
    run.judge(decision, claims=[found["claims"][0] | claim])
    run.register()
    for override in (None, "a person believes it"):
        with pytest.raises(RegistryError, match=message):
            room.promote(run.params.registry, run.params.store, override=override)
    assert room.history(run.params.registry, run.params.store).entries == []


def test_a_verdict_whose_claims_cannot_be_read_is_not_registered(run: Run) -> None:
    found = json.loads((run.work / "verdict.json").read_bytes())
    run.judge("promote", claims=[found["claims"][0] | {"outcome": "great"}])
    with pytest.raises(RegistryError, match=r"verdict.json: claims.0.outcome: .*found 'great'"):
        run.register()


@pytest.mark.parametrize("decision", OUTCOMES)
def test_only_the_decision_promote_is_promoted(run: Run, decision: str) -> None:
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


def test_a_version_without_records_in_the_store_must_be_registered_again(run: Run) -> None:
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


def test_a_changed_record_in_the_store_is_named(run: Run) -> None:
    run.register()
    for path in Path(run.params.store.uri, "records").iterdir():
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StoreCorruptError, match=r"records/.* is damaged: its digest is sha256:"):
        room.promote(run.params.registry, run.params.store)


def test_a_waiting_registration_has_its_records_and_is_sent_without_the_store(run: Run, tmp_path: Path) -> None:
    up = run.params
    down = up.registry.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/dvc.lock/x.db"})
    run.params = up.model_copy(update={"registry": down})
    with pytest.raises(RegistrationPendingError):
        run.register()
    assert len(list(Path(up.store.uri, "records").iterdir())) == 2, "before anything is sent to MLflow"
    Path(up.store.uri).rename(tmp_path / "away")
    (version,) = register_pending(up.registry, run.pending)
    (tmp_path / "away").rename(up.store.uri)
    assert room.promote(up.registry, up.store).number == version.number == 1


def test_a_refusal_says_first_and_briefly_what_does_not_hold(run: Run) -> None:
    run.judge("hold", reasons=["guard: passed " * 60, "domain: tie"])
    run.register()
    with pytest.raises(
        PromotionRefusedError, match=r"the verdict is hold: domain: tie; guard: passed .* \.\.\.\. "
    ) as error:
        room.promote(run.params.registry, run.params.store)
    assert len(str(error.value)) < 1000
