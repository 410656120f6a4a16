"""Ledger and alias, with a real MLflow on SQLite and a real store: races, crashes, manual changes."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shadowft_core import promotion as room
from shadowft_core import store as stores
from shadowft_core.errors import InputError, LedgerError, PromotionRefusedError, RegistryError, StoreError
from shadowft_core.params import Store
from shadowft_core.registry import tracking
from tests.fixtures.runs import Released, Run

ROOT = Path(__file__).parent.parent


def test_the_champion_changes_only_on_a_positive_verdict_or_with_a_reason(released: Released) -> None:
    registry, store = released.registry, released.store
    first = room.promote(registry, store, "1")
    assert (first.number, first.previous, first.changed, first.entry.number) == (1, None, True, 1)
    again = room.promote(registry, store, "1")
    assert (again.previous, again.changed, again.entry) == (1, False, first.entry)
    with pytest.raises(
        PromotionRefusedError, match=r"version 3: the verdict is hold: domain gain too small; guard <harm>\."
    ):
        room.promote(registry, store, "3")
    with pytest.raises(PromotionRefusedError, match="needs a reason"):
        room.promote(registry, store, "3", override="  ")
    assert released.champion() == 1
    third = room.promote(registry, store, "3", override="shown to the customer")
    assert (third.number, third.previous) == (3, 1)
    assert (third.entry.override, third.entry.reason, third.entry.decision) == (True, "shown to the customer", "hold")
    assert third.entry.previous == first.entry.digest
    assert "@" in third.entry.who
    assert released.champion() == 3
    with pytest.raises(RegistryError, match=f"no version '7' of '{released.name}' in the registry; it has "):
        room.promote(registry, store, "7")
    assert room.history(released.registry, store).entries == [first.entry, third.entry]


def test_an_override_of_a_positive_verdict_is_not_recorded(released: Released) -> None:
    entry = room.promote(released.registry, released.store, "1", override="to be sure").entry
    assert (entry.override, entry.reason, entry.decision) == (False, "better than the Instruct", "promote")


def test_a_caller_with_an_older_view_of_the_ledger_changes_nothing(released: Released) -> None:
    registry, store = released.registry, released.store
    first = room.promote(registry, store, "1", after=0).entry
    for stale in (0, 7):
        with pytest.raises(LedgerError, match=r"won with entry 1 \(promote, version 1.*nothing was changed"):
            room.promote(registry, store, "2", after=stale)
    assert room.history(registry, store).entries == [first]
    assert released.champion() == 1
    assert room.promote(registry, store, "2", after=1).number == 2


def test_the_alias_is_read_back(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process sets the alias at the same moment: the promoter sets it again."""
    real, other = tracking.set_alias, ["3"]

    def set_alias(client: Any, name: str, alias: str, number: int) -> None:
        real(client, name, alias, number)
        if other:
            client.set_registered_model_alias(name, alias, other.pop())

    monkeypatch.setattr(tracking, "set_alias", set_alias)
    room.promote(released.registry, released.store, "1")
    assert (released.champion(), other) == (1, [])


def test_a_version_whose_delta_is_missing_is_not_promoted(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    next(Path(released.store.uri, "deltas").iterdir()).unlink()
    with pytest.raises(StoreError, match=r"lacks delta .* of this version, so the version cannot be rebuilt"):
        room.promote(released.registry, released.store, "1")
    assert released.champion() is None
    assert room.history(released.registry, released.store).entries == []


def test_rollback_refuses_a_version_whose_delta_is_missing(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    for version in ("1", "2"):
        room.promote(released.registry, released.store, version)
    next(Path(released.store.uri, "deltas").iterdir()).unlink()
    with pytest.raises(StoreError, match=r"lacks delta .* of this version, so the version cannot be rebuilt"):
        room.rollback(released.registry, released.store)
    assert released.champion() == 2
    assert len(room.history(released.registry, released.store).entries) == 2


def test_one_of_eight_promoters_wins_and_the_others_learn_who_it_was(released: Released) -> None:
    registry, store = released.registry, released.store
    room.promote(registry, store, "1")
    for number in range(2, 5):
        outcomes = race(released, store, after=number - 1)
        chain = room.history(registry, store).entries
        (winner,) = [found for found in outcomes if isinstance(found, room.Promotion) and found.changed]
        assert chain[number - 1 :] == [winner.entry]
        for found in outcomes:
            if isinstance(found, str):
                assert f"won with entry {number} (promote, version {winner.number}," in found
            elif found != winner:  # promoted the current champion, which changes nothing
                assert (found.entry, found.changed) == (chain[number - 2], False)
        assert sum(isinstance(found, str) for found in outcomes) >= 4
        assert released.champion() == winner.number


def test_promoters_on_s3_leave_alias_and_ledger_equal(released: Released, s3_store: Store) -> None:
    """Without `after`, several may promote one after the other; each is then in the chain."""
    for path in Path(released.store.uri, "records").iterdir():
        stores.keep_record(path.read_bytes(), s3_store)
    outcomes = race(released, s3_store, after=None)
    chain = room.history(released.registry, s3_store).entries
    moved = [found.entry for found in outcomes if isinstance(found, room.Promotion) and found.changed]
    assert sorted(moved, key=lambda entry: entry.number) == chain != []
    assert all("won with entry" in found for found in outcomes if isinstance(found, str)), outcomes
    assert released.champion() == chain[-1].version


def race(released: Released, store: Store, after: int | None) -> list[room.Promotion | str]:
    """Eight promoters of three versions at the same moment; the result or error of each."""
    barrier = threading.Barrier(8)

    def attempt(place: int) -> room.Promotion | str:
        barrier.wait(30)
        try:
            override = "race" if place % 3 == 2 else None
            return room.promote(released.registry, store, str(place % 3 + 1), override, after)
        except LedgerError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(attempt, range(8)))


def test_rollback_goes_back_one_champion_at_a_time(released: Released) -> None:
    registry, store = released.registry, released.store
    with pytest.raises(LedgerError, match="nothing was ever promoted"):
        room.rollback(registry, store)
    one = room.promote(registry, store, "1").entry
    room.promote(registry, store, "2")
    room.promote(registry, store, "3", override="a mistake")
    back = room.rollback(registry, store, reason="wrong language")
    assert (back.number, back.previous, back.entry.reason) == (2, 3, "wrong language")
    back = room.rollback(registry, store)
    assert (back.number, back.entry.model, back.entry.recipe) == (1, one.model, one.recipe)
    with pytest.raises(LedgerError, match=r"no champion before version 1; .* lists all champions"):
        room.rollback(registry, store)
    assert room.rollback(registry, store, to="3").number == 3  # a former champion, chosen by a person
    assert room.rollback(registry, store).previous == 3  # the default is still the champion before it
    assert released.champion() == 2
    assert room.rollback(registry, store, to=one.recipe).number == 1
    with pytest.raises(LedgerError, match="7 was never champion"):
        room.rollback(registry, store, to="7")
    assert [entry.action for entry in room.history(registry, store).entries] == ["promote"] * 3 + ["rollback"] * 5


def test_rollback_reads_nothing_of_the_newest_version_and_takes_under_a_second(released: Released) -> None:
    registry, store = released.registry, released.store
    one = room.promote(registry, store, "1").entry
    newest = room.promote(registry, store, "2").entry
    released.client.delete_run(newest.run_id)
    released.client.delete_model_version(registry.name, "2")
    assert released.champion() is None
    started = time.monotonic()
    back = room.rollback(registry, store)
    seconds = time.monotonic() - started
    released.client.restore_run(newest.run_id)
    assert (back.number, back.entry.model) == (1, one.model)
    assert released.champion() == 1
    assert seconds < 1, f"rollback took {seconds:.2f} s"


def test_rollback_registers_a_deleted_version_again(released: Released) -> None:
    registry, store = released.registry, released.store
    one = room.promote(registry, store, "1").entry
    room.promote(registry, store, "2")
    released.client.delete_model_version(registry.name, "1")
    back = room.rollback(registry, store)
    assert (back.number, back.entry.recipe, back.entry.model) == (4, one.recipe, one.model)
    assert released.champion() == 4


def test_reconcile_names_a_lost_champion_and_the_remedy(run: Run, client: object) -> None:
    version = run.register()
    standing = room.promote(run.params.registry, run.params.store).entry
    client.delete_model_version(version.name, "1")  # type: ignore[attr-defined]
    client.delete_logged_model(standing.source.rpartition("/")[2])  # type: ignore[attr-defined]
    with pytest.raises(
        RegistryError, match=rf"run {standing.run_id} or its recipe was removed .*rollback --to VERSION"
    ):
        room.reconcile(run.params.registry, run.params.store)
    assert room.history(run.params.registry, run.params.store).entries == [standing]
    assert client.search_model_versions(f"name = '{version.name}'") == []  # type: ignore[attr-defined]


def test_reconcile_repairs_manual_changes_and_crashes(released: Released) -> None:
    registry, store, client = released.registry, released.store, released.client
    assert room.reconcile(registry, store) == room.Repair(registry.name, None, ())
    client.set_registered_model_alias(registry.name, "champion", "3")
    with pytest.raises(
        LedgerError, match=f"is empty, yet champion points at version 3; `shadowft promote {registry.name} 3`"
    ):
        room.reconcile(registry, store)
    first = room.promote(registry, store, "1").entry
    assert room.reconcile(registry, store) == room.Repair(registry.name, 1, ())

    client.set_registered_model_alias(registry.name, "champion", "3")
    words = ("champion pointed at version 3, it is set to version 1",)
    assert room.reconcile(registry, store, dry_run=True) == room.Repair(registry.name, 1, words)
    assert released.champion() == 3
    assert room.reconcile(registry, store) == room.Repair(registry.name, 1, words)
    assert released.champion() == 1

    client.delete_model_version(registry.name, "1")
    assert released.champion() is None
    assert room.reconcile(registry, store, dry_run=True).number is None
    assert [row.version for row in client.search_model_versions(f"name = '{registry.name}'")] == [3, 2]
    repair = room.reconcile(registry, store)
    assert repair.number == released.champion() == 4
    assert repair.done == (
        "version 1 was deleted from the registry, or has another recipe",
        "its recipe is registered again as a new version",
        "champion was not set, it is set to version 4",
    )
    chain = room.history(registry, store).entries
    assert [entry.action for entry in chain] == ["promote", "reconcile", "reconcile"]
    assert {entry.recipe for entry in chain} == {first.recipe}
    assert room.reconcile(registry, store).done == ()


def test_reconcile_sets_the_alias_after_a_promoter_was_killed(released: Released) -> None:
    registry, store = released.registry, released.store
    room.promote(registry, store, "1")
    code = f"""
import os, signal
from shadowft_core.params import Registry, Store
from shadowft_core.registry import tracking
from shadowft_core.promotion import promote
tracking.set_alias = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
promote(Registry(**{registry.model_dump()!r}), Store(**{store.model_dump()!r}), "2")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -9
    assert released.champion() == 1
    assert room.history(registry, store).entries[-1].version == 2
    assert room.reconcile(registry, store).done == ("champion pointed at version 1, it is set to version 2",)
    assert released.champion() == 2


def test_the_verbs_print_text_and_json(released: Released, tmp_path: Path) -> None:
    import yaml

    from shadowft_core.cli import app

    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params |= {"store": released.store.model_dump(), "registry": released.registry.model_dump()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    options = ["--params", str(tmp_path / "params.yaml")]

    def say(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    name = released.name
    assert say("promote", name, "1") == f"champion of {name} is version 1 (was not set), ledger entry 1\n"
    assert say("promote", name, "1") == f"champion of {name} is version 1 already\n"
    done = CliRunner().invoke(app, ["promote", name, "2", "--override", "to be sure", "--json", *options])
    assert json.loads(done.stdout)["previous"] == 1
    assert "--override was not needed, because the verdict is promote" in done.stderr
    assert say("rollback", name) == f"champion of {name} is version 1 (was version 2), ledger entry 3\n"
    repair = {"format": 1, "kind": "reconciliation", "name": name, "champion": 1, "dry_run": False, "done": []}
    assert json.loads(say("reconcile", name, "--json")) == repair
    assert say("reconcile", name, "--dry-run") == f"{name}: alias and ledger agree, champion is version 1\n"
    lines = say("history", name).splitlines()
    assert len(lines) == 4
    assert lines[2].split()[:1] + lines[2].split()[2:5] == ["3", "rollback", "version", "1"]
    whole = json.loads(say("history", name, "--json"))
    facts = whole["entries"]
    assert whole["dangling"] == []
    assert [entry["version"] for entry in facts] == [1, 2, 1]
    assert facts[1]["previous"] == facts[0]["digest"]
    assert "version 1" in say("who-was", name, "--at", "2999-01-01T00:00Z")
    released.move_back(room.history(released.registry, released.store).entries[1])
    assert [entry["number"] for entry in json.loads(say("history", name, "--json"))["dangling"]] == [3]
    named, last = say("history", name).splitlines()[2:]
    assert named.startswith("dangling: entry 3 (rollback, version 1, ")
    assert named.endswith(f"or the head was moved back; run `shadowft reconcile {name}`")
    assert last == "2 entries, the chain is complete up to its head"
    with pytest.raises(InputError, match="not a time"):
        CliRunner().invoke(app, ["who-was", name, "--at", "yesterday", *options], catch_exceptions=False)
