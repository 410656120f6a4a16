"""The champion is the version in the ledger; an alias that points elsewhere is refused by every verb."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from shadowft_core import promotion as room
from shadowft_core.cli import app
from shadowft_core.errors import LedgerError, RegistryError
from shadowft_core.files import bytes_digest, canonical_json
from tests.fixtures.cli import Shadowft
from tests.fixtures.runs import ROOT, Released


@pytest.mark.parametrize("alias", ["champion", "Champion"])
def test_the_champion_is_that_of_the_ledger(released: Released, tmp_path: Path, alias: str) -> None:
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
    message = f"ends at entry 1, version 1, yet champion points at version 3; .*`shadowft reconcile {name}`"
    for act in (
        lambda: room.recipe_named(reference, registry, store),
        lambda: room.materialize(reference, tmp_path / "model", registry, store),
        lambda: room.promote(registry, store, alias, override="whatever it points at"),
    ):
        with pytest.raises(LedgerError, match=message):
            act()
    assert not (tmp_path / "model").exists()
    assert len(room.history(registry, store).entries) == 1
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params |= {"store": store.model_dump(), "registry": registry.model_dump()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for words in (
        ["materialize", reference],
        ["export", reference, "--for", "merged"],
        ["export", reference, "--for", "vllm"],
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
    room.require_alias_agrees(registry, store, 3, digests[3])  # it has no alias champion
    with pytest.raises(
        LedgerError, match=f"version 1: its recipe is {digests[2]}, entry 1 of the ledger has {digests[1]}"
    ):
        room.require_alias_agrees(registry, store, 1, digests[2])
    client.set_registered_model_alias(name, "champion", "3")
    room.require_alias_agrees(registry, store, 1, digests[1])
    with pytest.raises(LedgerError, match="ends at entry 1, version 1, yet champion points at version 3"):
        room.require_alias_agrees(registry, store, 3, digests[3])


def test_the_options_of_the_verbs_reach_the_ledger(
    released: Released, shadowft: Shadowft, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    name = released.name

    def entry(*words: object) -> dict[str, Any]:
        done = shadowft(*words, "--json")
        assert done.code == 0, done
        written: dict[str, Any] = json.loads(done.out)["entry"]
        return written

    assert entry("promote", name, 1, "--after", 0)["number"] == 1
    head = Path(released.store.uri) / "ledger" / name / "head"
    saved = head.read_bytes()
    head.unlink()
    assert f"run `shadowft promote {name} VERSION`" in shadowft("history", name).out
    head.write_bytes(saved)
    shadowft("promote", name, 2, "--after", 0).refused(9, "ledger")
    forced = entry("promote", name, 3, "--after", 1, "--override", "the team decided")
    assert (forced["decision"], forced["override"], forced["reason"]) == ("hold", True, "the team decided")
    back = entry("rollback", name, "--to", 1, "--reason", "wrong language")
    assert (back["version"], back["action"], back["reason"]) == (1, "rollback", "wrong language")
    lines = shadowft("history", name).out.splitlines()
    assert lines[1].endswith("AGAINST the verdict hold: the team decided")
    assert lines[2].endswith(": wrong language")
