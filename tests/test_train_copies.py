"""Copies of checkpoints in the store: another machine resumes from them, and no store is needed to finish."""

import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from shadowft_core import store as room
from shadowft_core.cli import app
from shadowft_core.cli.following import copied_to
from shadowft_core.errors import ParamsError, StoreError, StoreUnreachableError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Checkpoint, Store
from shadowft_core.store.backends import Backend, s3
from shadowft_core.store.backends.folder import FolderBackend
from shadowft_core.train import train
from shadowft_core.train.checkpoints import Checkpoints, Saved, open_checkpoints
from tests.fixtures.copies import another_file, flipped, malformed, missing, outside, replace
from tests.fixtures.deltas import publish_two
from tests.fixtures.interrupted import Training
from tests.fixtures.launched import train_command
from tests.fixtures.training import run, tree
from tests.test_train_checkpoints import IDENTITY, saved
from tests.test_train_resume import LORA, Runs

KEY = bytes_digest(canonical_json(IDENTITY)).removeprefix("sha256:")[:16]


class Stored(Runs):
    """A training whose checkpoints are copied into a store."""

    store: Store

    def start(self) -> Training:
        checkpoint = self.checkpoint.model_copy(update={"store": True})
        return Training(self.place, self.out, self.settings, checkpoint, self.log, self.store)


class Killed(Exception):
    """Ends a run as a kill does: nothing is removed."""


def keys(store: Store, below: str = "checkpoints") -> list[str]:
    return list(room.open_store(store).list(below))


def copied(store: Store) -> list[int]:
    return room.checkpoint_copies(store, KEY).steps()


def killed_after(folder: Path, store: Store, *steps: int, keep: int = 2) -> None:
    """A run in this folder completes checkpoints of these steps and is killed."""
    with (
        suppress(Killed),
        open_checkpoints(Checkpoint(keep=keep, folder=str(folder)), IDENTITY, 0, copied_to(store)) as checkpoints,
    ):
        checkpoints.newest()
        saved(checkpoints, *steps)
        raise Killed


def resumed(folder: Path, store: Store) -> Saved | None:
    """What the same run finds in this folder and the store."""
    found = None
    with (
        suppress(Killed),
        open_checkpoints(Checkpoint(folder=str(folder)), IDENTITY, 0, copied_to(store)) as checkpoints,
    ):
        found = checkpoints.newest()
        raise Killed
    return found


@pytest.fixture
def nowhere(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store at a port where nothing listens."""
    monkeypatch.setattr(s3, "PATIENCE", 0.5)
    return s3_store.model_copy(update={"endpoint": "http://127.0.0.1:9"})


@pytest.fixture(scope="module")
def expected(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    run(place, out, LORA)
    return tree(out)


def test_a_killed_run_goes_on_without_its_folder_and_leaves_nothing_in_the_store(
    place: Path, tmp_path: Path, store: Store, expected: dict[str, bytes]
) -> None:
    runs = Stored(place, tmp_path, LORA)
    runs.store = store
    assert runs.killed_at(5).ended() == -signal.SIGKILL
    steps = {key.split("/")[2] for key in keys(store) if key.endswith("/copy.json")}
    assert 1 <= len(steps) <= 3
    shutil.rmtree(runs.kept)
    last = runs.start()
    assert last.ended() == 0, last.said
    newest = max(int(step.removeprefix("checkpoint-")) for step in steps)
    assert f"train: fetched checkpoint-{newest} from {room.open_store(store).location}: checkpoints/" in last.said
    assert f"train: resumed at step {newest} of 21" in last.said
    assert tree(runs.out) == expected
    assert keys(store) == []


def test_a_store_that_goes_away_costs_nothing_but_the_copies(
    place: Path, tmp_path: Path, folder_store: Store, expected: dict[str, bytes]
) -> None:
    runs, root = Stored(place, tmp_path, LORA), Path(folder_store.uri)
    runs.store = folder_store
    training = runs.start()
    training.wait_for_step(3)
    root.rename(tmp_path / "gone")
    root.write_text("not a folder")
    assert training.ended() == 0, training.said
    assert "checkpoint-20 was not sent, the next checkpoint will be tried again (" in training.said
    assert tree(runs.out) == expected


def test_the_newest_copies_are_kept_and_the_same_bytes_come_back(tmp_path: Path, store: Store) -> None:
    killed_after(tmp_path / "one", store, 1, 2, 3)
    assert copied(store) == [2, 3]
    found = resumed(tmp_path / "two", store)
    assert found is not None
    assert (found.step, found.run) == (3, {"at": 3})
    assert tree(found.folder) == tree(tmp_path / f"one/{KEY}/checkpoint-3")
    killed_after(tmp_path / "two", store, 4)
    assert copied(store) == [3, 4], "the one that was fetched counts"


def test_a_copy_is_not_fetched_when_the_folder_is_as_new(tmp_path: Path, folder_store: Store) -> None:
    killed_after(tmp_path / "one", folder_store, 1, 2)
    for key in keys(folder_store):
        replace(room.open_store(folder_store), key, b"damaged")
    found = resumed(tmp_path / "one", folder_store)
    assert found is not None
    assert found.step == 2


def test_an_interrupted_copy_is_absent_and_is_replaced_by_the_next(tmp_path: Path, store: Store) -> None:
    killed_after(tmp_path / "one", store, 1, 2)
    backend = room.open_store(store)
    backend.delete(f"checkpoints/{KEY}/checkpoint-2/copy.json")
    assert copied(store) == [1]
    killed_after(tmp_path / "two", store, 2, 3, keep=1)
    assert {key.split("/")[2] for key in keys(store)} == {"checkpoint-3"}


def test_the_index_is_written_last_and_removed_first(
    tmp_path: Path, folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    for name in ("put_if_absent", "delete"):
        act = getattr(FolderBackend, name)
        monkeypatch.setattr(
            FolderBackend, name, lambda *a, act=act, name=name, **k: done.append((name, a[1])) or act(*a, **k)
        )
    killed_after(tmp_path, folder_store, 1)
    room.checkpoint_copies(folder_store, KEY).remove()
    index = f"checkpoints/{KEY}/checkpoint-1/copy.json"
    half = len(done) // 2
    assert done[half - 1 : half + 1] == [("put_if_absent", index), ("delete", index)]
    assert half > 2
    assert keys(folder_store) == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flipped, "is damaged: found "),
        (missing, "is missing"),
        (malformed, "copy.json"),
        (outside, "copy.json names the file '../../evil'"),
        (another_file, "state has 4 bytes, expected 1"),
    ],
)
def test_a_damaged_copy_is_named_and_the_next_older_one_is_used(
    tmp_path: Path,
    folder_store: Store,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Backend, str], None],
    reason: str,
) -> None:
    killed_after(tmp_path / "one", folder_store, 1, 2)
    backend = room.open_store(folder_store)
    at = f"checkpoints/{KEY}/checkpoint-2"
    damage(backend, at)
    found = resumed(tmp_path / "two", folder_store)
    said = capfd.readouterr().err
    assert found is not None
    assert found.step == 1
    assert f"train: {backend.location}: {at}: passed over: " in said
    assert reason in said
    assert "publish" not in said
    assert not (tmp_path / f"two/{KEY}/saving/checkpoint-2").exists()
    killed_after(tmp_path / "two", folder_store, 2)
    assert resumed(tmp_path / "three", folder_store).step == 2  # type: ignore[union-attr]


def test_an_outage_while_sending_is_a_line_and_the_next_checkpoint_is_sent(
    tmp_path: Path, s3_store: Store, nowhere: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / KEY
    (folder / "saving").mkdir(parents=True)
    away, back = (room.checkpoint_copies(store, KEY) for store in (nowhere, s3_store))
    checkpoints = Checkpoints(folder, folder / "saving", "sha256:k", Checkpoint(), away)
    place = saved(checkpoints, 1)
    assert f"train: {place} was not sent, the next checkpoint will be tried again (s3://" in capfd.readouterr().err
    assert (place / "checkpoint.json").exists()
    checkpoints.copies = back
    saved(checkpoints, 2)
    assert back.steps() == [2]
    assert "not sent" not in capfd.readouterr().err


def test_a_run_begins_anew_only_if_the_store_answers(
    tmp_path: Path, nowhere: Store, folder_store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoreUnreachableError, match=r"or set checkpoint\.store to false, to begin without"):
        resumed(tmp_path / "one", nowhere)
    killed_after(tmp_path / "two", folder_store, 1)
    found = resumed(tmp_path / "two", nowhere)
    assert found is not None
    assert found.step == 1
    assert f"going on from {found.folder}, whether or not the store has a newer one" in capfd.readouterr().err


def test_check_ls_and_prune_leave_copies_alone(tmp_path: Path, store: Store) -> None:
    deltas = publish_two(store, tmp_path)
    before = room.check(store, state=tmp_path / "state")
    killed_after(tmp_path / "one", store, 1, 2)
    held = keys(store)
    assert room.check(store, state=tmp_path / "state") == before
    assert {delta.digest for delta in room.ls(store)} == set(deltas)
    assert room.prune(store, 0).removed == 0
    assert keys(store) == held
    assert resumed(tmp_path / "two", store) is not None


def test_the_copies_of_other_runs_are_named_and_stay(
    tmp_path: Path, folder_store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    killed_after(tmp_path / "one", folder_store, 1)
    held = keys(folder_store)
    with open_checkpoints(Checkpoint(folder=str(tmp_path)), {"other": 1}, 0, copied_to(folder_store)) as checkpoints:
        assert checkpoints.newest() is None
        saved(checkpoints, 1)
        assert len(keys(folder_store)) > len(held)
    assert keys(folder_store) == held
    assert "also holds 0.0 GB of checkpoints of 1 other runs" in capfd.readouterr().err


def test_copies_without_a_store_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(ParamsError, match=r"checkpoint\.store is true, but no store was passed"):
        train(nothing, nothing, nothing, LORA, tmp_path / "out", checkpoint=Checkpoint(store=True))


def test_the_verb_train_uses_the_store_of_the_params_file(
    place: Path, tmp_path: Path, nowhere: Store, expected: dict[str, bytes]
) -> None:
    words = train_command(place, tmp_path / "out", LORA, checkpoint_steps=1)
    params = yaml.safe_load((tmp_path / "out.yaml").read_text())
    params["store"] = nowhere.model_dump(mode="json")
    params["checkpoint"]["store"] = True
    (tmp_path / "out.yaml").write_text(yaml.safe_dump(params))
    failed = CliRunner().invoke(app, words).exception
    assert isinstance(failed, StoreError)
    assert "set checkpoint.store to false" in str(failed)
    params["checkpoint"]["store"] = False
    (tmp_path / "out.yaml").write_text(yaml.safe_dump(params))
    assert CliRunner().invoke(app, words).exception is None
    assert tree(tmp_path / "out") == expected
