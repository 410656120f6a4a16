"""The chain of a ledger: edited, missing and reordered entries, and a head that was moved back, are detected."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import promotion as room
from shadowft_core.errors import InputError, LedgerError, StoreUnreachableError
from shadowft_core.files import canonical_json
from shadowft_core.promotion.ledger import Entry, Ledger
from shadowft_core.store.backends.folder import FolderBackend
from tests.fixtures.runs import Released

ROOT = Path(__file__).parent.parent


def entries(released: Released) -> dict[int, Path]:
    """The files of the ledger by entry number."""
    folder = Path(released.store.uri) / "ledger" / released.name / "entries"
    return {json.loads(path.read_bytes())["number"]: path for path in folder.iterdir()}


@pytest.fixture
def chain(released: Released) -> list[Entry]:
    for version in ("1", "2", "1", "2"):
        room.promote(released.registry, released.store, version)
    return room.history(released.registry, released.store).entries


def test_an_edited_entry_is_detected(released: Released, chain: list[Entry]) -> None:
    path = entries(released)[2]
    path.write_bytes(chain[1].model_copy(update={"who": "nobody@nowhere"}).raw)
    with pytest.raises(
        LedgerError, match=rf"{path.name} was edited: its digest is sha256:.*, the chain has {chain[1].digest}"
    ):
        room.history(released.registry, released.store)


def test_a_missing_entry_is_detected(released: Released, chain: list[Entry]) -> None:
    entries(released)[3].unlink()
    with pytest.raises(LedgerError, match="is missing; restore it"):
        room.history(released.registry, released.store)


def test_a_reordered_chain_is_detected(released: Released, chain: list[Entry]) -> None:
    """A person with write access can make entries with right digests; their numbers are then not consecutive."""
    forged = chain[3].model_copy(update={"previous": chain[1].digest})
    folder = Path(released.store.uri) / "ledger" / released.name
    (folder / "entries" / forged.digest.removeprefix("sha256:")).write_bytes(forged.raw)
    head = json.loads((folder / "head").read_bytes()) | {"entry": forged.digest}
    (folder / "head").write_bytes(canonical_json(head))
    with pytest.raises(LedgerError, match="entry 4 follows entry 2; entries are missing or reordered"):
        room.history(released.registry, released.store)


def test_a_head_moved_back_is_detected(released: Released, chain: list[Entry]) -> None:
    head = Path(released.store.uri) / "ledger" / released.name / "head"
    real = json.loads(head.read_bytes())
    released.move_back(chain[1])
    with pytest.raises(LedgerError, match=r"ends at entry 2, yet entry 4 of .* the head was moved back"):
        room.history(released.registry, released.store)
    head.write_bytes(canonical_json(real | {"number": 3}))
    with pytest.raises(LedgerError, match="names entry 3, but that entry has number 4"):
        room.promote(released.registry, released.store, "1")


def test_a_head_moved_back_by_one_is_named_and_recorded(released: Released, chain: list[Entry]) -> None:
    """It looks like a promotion that was cut off, except that the alias points at the later entry."""
    registry, store = released.registry, released.store
    released.move_back(chain[2])
    found = room.history(registry, store)
    assert (found.entries, found.dangling) == (chain[:3], [chain[3]])
    (remark,) = found.remarks
    assert re.match(r"entry 4 \(promote, version 2, .*does not name it: a promotion was cut off", remark)
    with pytest.raises(LedgerError, match=r"champion points at version 2 of entry 4, .* was moved back, or the alias"):
        room.reconcile(registry, store)
    assert room.history(registry, store) == found
    assert released.champion() == 2

    assert room.rollback(registry, store, to="1").changed is False  # the remedy in the error
    assert released.champion() == 1
    assert room.reconcile(registry, store, dry_run=True).done == (remark,)
    assert room.history(registry, store) == found
    assert room.reconcile(registry, store) == room.Repair(registry.name, 1, (remark,))
    settled = room.history(registry, store)
    assert (settled.dangling, settled.entries[-1].action, settled.entries[-1].reason) == ([], "reconcile", remark)
    assert room.reconcile(registry, store).done == ()


def test_without_a_head_the_first_entry_dangles(released: Released) -> None:
    first = room.promote(released.registry, released.store, "1").entry
    (Path(released.store.uri) / "ledger" / released.name / "head").unlink()
    found = room.history(released.registry, released.store)
    assert (found.entries, found.dangling) == ([], [first])
    with pytest.raises(LedgerError, match="is empty, yet champion points at version 1"):
        room.reconcile(released.registry, released.store)


def test_a_promoter_killed_before_the_head_leaves_a_dangling_entry(released: Released) -> None:
    registry, store = released.registry, released.store
    room.promote(registry, store, "1")
    code = f"""
import os, signal
from shadowft_core.store.backends.folder import FolderBackend
from shadowft_core.params import Registry, Store
from shadowft_core.promotion import promote
FolderBackend.swap = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
promote(Registry(**{registry.model_dump()!r}), Store(**{store.model_dump()!r}), "2")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -9
    found = room.history(registry, store)
    assert [entry.version for entry in found.dangling] == [2]
    assert released.champion() == 1
    assert room.reconcile(registry, store) == room.Repair(registry.name, 1, tuple(found.remarks))
    assert room.promote(registry, store, "2").entry.number == 3
    assert room.history(registry, store).dangling == []


def test_a_writer_that_lost_a_race_leaves_a_valid_history(released: Released, chain: list[Entry]) -> None:
    ledger = Ledger(released.store, released.name)
    before = ledger.tip()
    room.promote(released.registry, released.store, "1")
    facts = chain[1].model_dump(include={"version", "model", "recipe", "verdict", "decision", "run_id", "source"})
    with pytest.raises(LedgerError, match=r"won with entry 5 \(promote, version 1, 20.*nothing was changed"):
        ledger.append(before, undo=None, action="promote", override=False, reason="", **facts)
    assert len(room.history(released.registry, released.store).entries) == 5
    assert len(entries(released)) == 5  # by number: two entries have number 5
    assert len(list(Path(released.store.uri, "ledger", released.name, "entries").iterdir())) == 6


def test_an_entry_of_another_model_is_detected(released: Released, chain: list[Entry]) -> None:
    """Its digest and number are right; only its name differs."""
    foreign = chain[3].model_copy(update={"name": "another-model"})
    folder = Path(released.store.uri) / "ledger" / released.name
    (folder / "entries" / foreign.digest.removeprefix("sha256:")).write_bytes(foreign.raw)
    head = json.loads((folder / "head").read_bytes()) | {"entry": foreign.digest}
    (folder / "head").write_bytes(canonical_json(head))
    with pytest.raises(LedgerError, match="belongs to 'another-model'; restore the entry of"):
        room.history(released.registry, released.store)


def test_history_during_promotions_finds_a_valid_chain(
    released: Released, chain: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two promotions happen after its first read, of any kind: neither is reported as a head that was moved back."""
    waiting = ["1", "2"]

    def promote_at_first(method: str) -> None:
        real = getattr(FolderBackend, method)

        def looked(self: FolderBackend, *arguments: Any) -> Any:
            found = list(real(self, *arguments)) if method == "list" else real(self, *arguments)
            todo, waiting[:] = waiting[:], []
            for version in todo:
                room.promote(released.registry, released.store, version)
            return found

        monkeypatch.setattr(FolderBackend, method, looked)

    promote_at_first("list")
    promote_at_first("read")
    found = room.history(released.registry, released.store)
    assert waiting == []
    assert [entry.number for entry in found.entries] == [1, 2, 3, 4, 5, 6]
    assert found.dangling == []


def test_a_lost_reply_at_the_swap_names_the_remedy(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, store = released.registry, released.store
    room.promote(registry, store, "1")
    real = FolderBackend.swap

    def lost(self: FolderBackend, *arguments: Any) -> str:
        real(self, *arguments)
        raise StoreUnreachableError("no answer in 12 s")

    with monkeypatch.context() as patch:
        patch.setattr(FolderBackend, "swap", lost)
        with pytest.raises(
            LedgerError,
            match=rf"entry 2 may or may not have been written \(no answer in 12 s\); .*history {released.name}`, then",
        ):
            room.promote(registry, store, "2")
    assert released.champion() == 1
    assert room.reconcile(registry, store).number == released.champion() == 2


def test_who_was_champion_at_a_time(released: Released, chain: list[Entry]) -> None:
    now = datetime.now(UTC)
    assert room.who_was(released.store, released.name, datetime.fromisoformat(chain[-1].when)) == chain[-1]
    assert room.who_was(released.store, released.name, now + timedelta(minutes=1)) == chain[-1]
    with pytest.raises(LedgerError, match=r"had no champion at .* the first was made champion at"):
        room.who_was(released.store, released.name, now - timedelta(days=1))
    with pytest.raises(InputError, match="no time zone"):
        room.who_was(released.store, released.name, datetime(2026, 1, 1))
