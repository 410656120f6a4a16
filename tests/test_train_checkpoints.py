"""Checkpoints on disk, without a training: order, what is synced, what is passed over, what stays."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.params import Checkpoint
from shadowft_core.train.checkpoints import Checkpoints, open_checkpoints

IDENTITY = {"seed": 1}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Checkpoints]:
    with open_checkpoints(Checkpoint(keep=2, folder=str(tmp_path / "kept")), IDENTITY) as checkpoints:
        yield checkpoints


def saved(checkpoints: Checkpoints, *steps: int) -> Path:
    """Complete checkpoints of these steps; returns the last."""
    for step in steps:
        partial = checkpoints.saving / f"checkpoint-{step}"
        (partial / "inner").mkdir(parents=True)
        (partial / "state").write_text(str(step))
        (partial / "inner/part").write_text("part")
        place = checkpoints.complete(step, {"at": step})
    return place


def again(checkpoints: Checkpoints) -> Checkpoints:
    """The same checkpoints as another process finds them."""
    return Checkpoints(checkpoints.folder, checkpoints.saving, checkpoints.key, checkpoints.settings)


def steps_in(checkpoints: Checkpoints) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in checkpoints.folder.glob("checkpoint-*"))


def test_the_newest_is_that_of_the_highest_step_and_the_oldest_is_removed_first(opened: Checkpoints) -> None:
    saved(opened, 8, 9, 10)
    assert steps_in(opened) == [9, 10]
    assert (opened.newest_step, opened.last_good) == (10, str(opened.folder / "checkpoint-10"))
    later = again(opened)
    assert (later.newest_step, later.last_good) == (0, "none")
    found = later.newest()
    assert found is not None
    assert (found.step, found.run, later.newest_step) == (10, {"at": 10}, 10)
    saved(later, 11)
    assert steps_in(later) == [10, 11], "those of the process before count"


def test_what_is_moved_to_its_place_is_on_disk(opened: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda number: (done.append(("sync", os.readlink(f"/proc/self/fd/{number}"))), fsync(number))[1]
    )
    monkeypatch.setattr(os, "rename", lambda old, new: (done.append(("move", str(old))), rename(old, new))[1])
    saved(opened, 3)
    partial = opened.saving / "checkpoint-3"
    moved = done.index(("move", str(partial)))
    before = {path for what, path in done[:moved] if what == "sync"}
    assert {str(partial / name) for name in ("state", "inner", "inner/part", "run.json")} <= before
    assert any(path.startswith(str(partial)) and "checkpoint.json" in path for path in before)
    assert ("sync", str(opened.folder)) in done[moved:]


@pytest.mark.parametrize("damage", ["format", "renamed", "link", "inner"])
def test_a_checkpoint_that_is_not_what_its_manifest_has_is_passed_over(
    opened: Checkpoints, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    place, reason = saved(opened, 4), ""
    if damage == "format":
        facts = json.loads((place / "checkpoint.json").read_text())
        (place / "checkpoint.json").write_text(json.dumps(facts | {"format": 2}))
        reason = "its format is 2, expected 1"
    elif damage == "renamed":
        place = place.rename(place.with_name("checkpoint-5"))
        reason = "it is of step 4"
    elif damage == "link":
        (place / "state").rename(opened.folder / "elsewhere")
        (place / "state").symlink_to(opened.folder / "elsewhere")
        reason = "state is missing"
    else:
        (place / "inner/more").write_text("")
        reason = "inner/more is not in its checkpoint.json"
    later = again(opened)
    assert later.newest() is None
    assert f"{place}: passed over: {reason}" in capsys.readouterr().err
    assert later.newest_step == 0


def test_a_step_that_was_passed_over_is_saved_again(opened: Checkpoints) -> None:
    (saved(opened, 4) / "state").write_text("other")
    later = again(opened)
    assert later.newest() is None
    saved(later, 4)
    found = again(opened).newest()
    assert found is not None
    assert (found.folder / "state").read_text() == "4"


def test_a_run_that_fails_leaves_what_it_can_go_on_from_and_nothing_else(tmp_path: Path) -> None:
    settings = Checkpoint(folder=str(tmp_path / "kept"))

    def fail(left: Any) -> Path:
        with contextlib.suppress(ZeroDivisionError), open_checkpoints(settings, IDENTITY) as checkpoints:
            left(checkpoints)
            raise ZeroDivisionError
        return checkpoints.folder

    assert not fail(lambda _: None).exists()
    smaller = {"batch_size": 1, "accumulation": 4}
    folder = fail(lambda checkpoints: checkpoints.go_on_with(smaller))
    with open_checkpoints(settings, {"seed": 2}) as other:
        assert (other.smaller, other.folder != folder) == (None, True)
    fail(lambda checkpoints: saved(checkpoints, 2))
    with open_checkpoints(settings, IDENTITY) as checkpoints:
        found = checkpoints.newest()
        assert (checkpoints.smaller, found and found.step) == (smaller, 2)
        with pytest.raises(Exception, match="another process is writing this folder"):
            shutil.rmtree(fail(lambda _: None))
    assert list((tmp_path / "kept").iterdir()) == []
