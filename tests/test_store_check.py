"""`ls` lists the deltas of a store; `check` names every bad object."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shadowft_core import store as room
from shadowft_core.cli import app
from shadowft_core.errors import StoreConflictError, StoreCorruptError, StoreError, StoreUnreachableError
from shadowft_core.files import bytes_digest
from shadowft_core.params import Store
from shadowft_core.store.backends.folder import FolderBackend
from tests.fixtures.deltas import chunks_of, damage, noise, stored_bytes, trusted, unpublish, write_delta

WEEK = 7 * 86400.0


def test_ls_returns_kind_bytes_and_shared_bytes(store: Store, two: tuple[str, str], tmp_path: Path) -> None:
    found = {delta.digest: delta for delta in room.ls(store)}
    assert set(found) == set(two)
    assert [found[digest].kind for digest in two] == ["dense", "lora"]
    for number, digest in enumerate(two, 1):
        delta = found[digest]
        assert delta.bytes == sum(path.stat().st_size for path in (tmp_path / f"delta-{number}").iterdir())
        assert 120_000 <= delta.shared_bytes < 121_000, "the tensor, and the header, which is the same"
        assert abs(delta.published - time.time()) < 120
        assert delta.problem is None
    backend = room.open_store(store)
    damage(backend, room.object_key(room.read_claim(backend, two[0]).manifest))
    broken = next(delta for delta in room.ls(store) if delta.digest == two[0])
    assert "is damaged" in str(broken.problem)


def test_check_names_every_bad_object_and_the_deltas_that_need_it(
    store: Store, two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = room.open_store(store)
    good = room.check(store)
    assert (good.deltas, good.bad, good.resumed) == (2, (), 0)
    assert good.objects == len(list(backend.list("objects"))) + 2
    first, second = (chunks_of(backend, digest) for digest in two)
    common, gone, lone = min(first & second), min(first - second), min(second - first)
    damage(backend, common)
    backend.delete(gone)
    damage(backend, lone)
    found = room.check(store)
    assert {bad.key: bad.deltas for bad in found.bad} == {
        common: tuple(sorted(two)),
        gone: (two[0],),
        lone: (two[1],),
    }
    assert {bad.key: "is missing" in bad.problem for bad in found.bad} == {common: False, gone: True, lone: False}
    assert {bad.key for bad in room.check(store, [two[1]]).bad} == {common, lone}
    damage(backend, f"deltas/{two[0][7:]}")
    assert f"deltas/{two[0][7:]}" in {bad.key for bad in room.check(store).bad}
    assert list((tmp_path / "var").iterdir()) == [], "a check that ended leaves no state"


def test_records_are_checked_and_never_pruned(
    store: Store, two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = room.open_store(store)
    texts = [b'{"decision":"hold"}', b'{"format":1}']
    recipe, verdict = digests = [room.keep_record(text, store) for text in texts]
    assert digests == [bytes_digest(text) for text in texts] == [room.keep_record(text, store) for text in texts]
    assert [room.record(digest, store) for digest in digests] == texts
    assert room.record("sha256:" + "0" * 64, store) is None
    unpublish(backend, two[0])
    assert room.prune(store, 0).removed > 0
    assert [room.record(digest, store) for digest in digests] == texts, "no claim names them, yet a registry may"
    before = room.check(store)
    assert (before.deltas, before.records, before.bad) == (1, 2, ())

    damage(backend, f"records/{verdict[7:]}")
    (bad,) = room.check(store).bad
    assert (bad.key, bad.deltas) == (f"records/{verdict[7:]}", ())
    assert "is damaged: its digest is sha256:" in bad.problem
    named = room.check(store, [recipe, two[1]])
    assert (named.deltas, named.records, named.bad) == (1, 1, ())
    assert [one.key for one in room.check(store, [verdict]).bad] == [f"records/{verdict[7:]}"]
    with pytest.raises(StoreCorruptError, match="is damaged: its digest is sha256:"):
        room.record(verdict, store)
    with pytest.raises(StoreConflictError, match="nothing was overwritten"):
        room.keep_record(texts[1], store)
    with pytest.raises(StoreError, match="at most 16777216 are allowed"):
        room.keep_record(b"x" * (16 << 20) + b"x", store)
    endpoint = ["--endpoint", store.endpoint] if store.endpoint else []
    done = CliRunner().invoke(app, ["store", "check", "--store", store.uri, *endpoint])
    assert isinstance(done.exception, StoreCorruptError)
    assert f"records/{verdict[7:]} is damaged" in done.stdout
    assert "objects of 1 deltas and 2 records are good" in done.stdout


def test_check_resumes_after_an_interruption(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted(folder_store)
    small = folder_store.model_copy(update={"chunk_bytes": 65536})
    digest = room.publish(write_delta(tmp_path / "delta", {"w": noise(0, 200_000)}), small)
    backend, state, read = room.open_store(folder_store), tmp_path / "state.txt", []
    chunks = chunks_of(backend, digest)
    real = FolderBackend.get

    def counted(self: FolderBackend, key: str, *rest: Any) -> None:
        if key in chunks:
            read.append(key)
            if limit and len(read) > limit:
                raise KeyboardInterrupt
        real(self, key, *rest)

    monkeypatch.setattr(FolderBackend, "get", counted)
    limit = 6
    with pytest.raises(KeyboardInterrupt):
        room.check(folder_store, [], state)
    with state.open("a") as file:
        file.write(max(chunks)[:-3])  # as if killed while it wrote
    known, limit = state.read_text().count("\n") - 1, 0
    assert 0 < known <= 6
    interrupted = state.read_bytes()
    gone = state.read_text().splitlines()[1]
    content = (Path(folder_store.uri) / gone).read_bytes()
    backend.delete(gone)  # after it was found good
    found = room.check(folder_store, [], state)
    assert ([bad.key for bad in found.bad], found.resumed) == ([gone], known - 1)
    (Path(folder_store.uri) / gone).write_bytes(content)
    state.write_bytes(interrupted)
    read.clear()
    found = room.check(folder_store, [], state)
    assert found.resumed == known
    assert len(read) == len(chunks) - known + 1  # delta.json, which names the files, is read each time
    assert not state.exists()
    state.write_text("objects found good in another place\n" + "".join(f"{key}\n" for key in chunks))
    assert room.check(folder_store, [], state).resumed == 0


def test_the_verbs_of_the_store_report_what_they_did(
    store: Store, two: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = ["--store", store.uri, *(["--endpoint", store.endpoint] if store.endpoint else [])]

    def shadowft(*words: str) -> Any:
        return CliRunner().invoke(app, ["store", *words, *place])

    listed = json.loads(shadowft("ls", "--json").stdout)["deltas"]
    assert {delta["digest"] for delta in listed} == set(two)
    assert f"{two[0]}  20" in shadowft("ls").stdout
    good = shadowft("check", "--json")
    assert (good.exit_code, json.loads(good.stdout)["bad"]) == (0, [])
    backend = room.open_store(store)
    unpublish(backend, two[0])
    assert json.loads(shadowft("prune", "--grace-days", "0", "--dry-run", "--json").stdout)["removed"] > 0
    assert "removed 0 objects" in shadowft("prune").stdout
    assert "too young" in shadowft("prune").stdout
    assert stored_bytes(backend) > 480_000
    assert shadowft("prune", "--grace-days", "0").exit_code == 0
    assert stored_bytes(backend) < 380_000
    bad = min(chunks_of(backend, two[1]))
    damage(backend, bad)
    done = shadowft("check")
    assert isinstance(done.exception, StoreCorruptError)
    assert f"{bad} is damaged" in done.stdout
    assert "1 of " in str(done.exception)


def test_ls_check_and_prune_end_when_the_store_does_not_answer(
    s3_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from shadowft_core.store.backends import s3

    monkeypatch.setattr(s3, "PATIENCE", 0.5)
    monkeypatch.chdir(tmp_path)
    away = s3_store.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    for act in (lambda: room.ls(away), lambda: room.check(away), lambda: room.prune(away, 0)):
        with pytest.raises(StoreUnreachableError, match="check that the server runs"):
            act()
