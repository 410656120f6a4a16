"""The journal: a killed evaluation loses at most one batch and ends with the same bytes; nothing is asked twice."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.evaluate import answersfile, evaluate
from shadowft_core.params import Sweep
from shadowft_core.sweep import sweep
from tests.fixtures.answering import answering, note_batches, write_mixed, write_params
from tests.fixtures.evaluation import World, score_instruct
from tests.fixtures.training import tree
from tests.test_train_full_disk import files_of_at_most

TASKS = {"domain": ("mixed", "heldout"), "guards": ("choice",), "batch_size": 3}
DEV = Sweep(scales=(0.5, 1.0), domain=("next_dev",), guards=("say_dev",), tolerance=0.02)


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """The ids of each batch that a model was asked in this process."""
    batches: list[str] = []
    undo = note_batches(lambda ids: batches.append(f"{ids}"))
    yield batches
    undo()


@pytest.fixture(scope="module", autouse=True)
def mixed(world: World) -> None:
    write_mixed(world.tasks)


def journals() -> list[Path]:
    """The files of this test's cache, the largest first."""
    found = Path(os.environ["SHADOWFT_CACHE"], "answers").glob("*.jsonl")
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def scored(world: World, out: Path, **changes: Any) -> dict[str, bytes]:
    score_instruct(world, out, **{**TASKS, **changes})
    return tree(out)


def test_a_killed_run_goes_on_in_the_same_batches(
    world: World, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed four times, through the command line: in each kind of task, before, within and after a write."""
    expected, undisturbed = scored(world, tmp_path / "expected"), list(asked)
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    params, log, out = write_params(tmp_path, world, **TASKS), tmp_path / "log", tmp_path / "out"
    words = "evaluate", "--instruct", world.instruct, "--data", world.data, "--params", params, "--out", out
    for place, number in [("after", 3), ("within", 4), ("before", 3), ("within", 4)]:
        done = answering(log, place, number, *words)
        assert done.returncode == -9, done.stderr
        assert not out.exists()
    done = answering(log, "never", 0, *words)
    assert done.returncode == 0, done.stderr
    assert "mixed: 3 of 11 answers from an interrupted run" in done.stderr
    assert tree(out) == expected
    batches = log.read_text().splitlines()
    assert set(batches) == set(undisturbed), "the batches of a run that goes on are those of an undisturbed one"
    assert len(batches) <= len(undisturbed) + 3, "each kill before the end of a write loses one batch, no more"


def test_what_was_answered_is_never_asked_again(
    world: World, half: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The untouched Instruct in the sweeps of two routes; the same arms in a second evaluation."""

    def run(out: Path) -> None:
        for route in ("shadow", "direct"):
            link = tmp_path / "delta" / route
            link.parent.mkdir(exist_ok=True)
            if not link.exists():
                link.symlink_to(world.delta)
            sweep(world.instruct, link, world.data, DEV, world.params(), out / f"{route}.json")
        evaluate(world.instruct, world.data, world.delta, half, "shadow", world.params(), out / "scores")

    run(tmp_path / "one")
    assert len(asked) == 2 * (3 + 2), "three points of one sweep and two arms, with two tasks of one batch each"
    run(tmp_path / "two")
    assert len(asked) == 10
    monkeypatch.setattr("shadowft_core.evaluate.journal.Journals.expect", lambda *_: None)  # without a journal
    run(tmp_path / "three")
    assert len(asked) == 10 + 2 * (3 + 3 + 2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "three")


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        pytest.param({"batch_size": 4}, False, id="batch-size"),
        pytest.param({"limit": 5}, False, id="items"),
        pytest.param({"generation": {"max_tokens": 2}}, False, id="generation"),
        pytest.param({"limits": {"cut": 0.9}}, True, id="what-is-done-with-the-answers"),
    ],
)
def test_other_settings_are_another_key(
    world: World, tmp_path: Path, asked: list[str], change: dict[str, Any], kept: bool
) -> None:
    scored(world, tmp_path / "one")
    before = len(asked)
    scored(world, tmp_path / "two", **change)
    assert (len(asked) == before) is kept


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_the_files_beside_the_weights_are_part_of_the_key(
    world: World, tmp_path: Path, asked: list[str], name: str
) -> None:
    from dataclasses import replace
    from shutil import copytree

    scored(world, tmp_path / "one")
    before = len(asked)
    copytree(world.instruct, tmp_path / "instruct")
    copy = replace(world, instruct=tmp_path / "instruct")
    assert scored(copy, tmp_path / "two") == tree(tmp_path / "one")
    assert len(asked) == before, "the same model in another folder has the same answers"
    (copy.instruct / name).write_text((copy.instruct / name).read_text() + " ")
    scored(copy, tmp_path / "three")
    assert len(asked) == 2 * before


def damaged(raw: bytes, how: str) -> bytes:
    lines = raw.splitlines(keepends=True)
    if how == "another-key":
        lines[0] = lines[0].replace(b'"batch_size": 3', b'"batch_size": 4')
    elif how == "earlier-line":
        lines[2] = lines[2].replace(b'"text": "', b'"text": "x', 1)
    elif how == "last-line":
        lines[-1] = lines[-1][:-9]
    elif how == "zeros":
        lines[-1] = bytes(len(lines[-1]))
    return b"garbage" if how == "garbage" else b"".join(lines)


@pytest.mark.parametrize(
    ("how", "again", "said"),
    [
        ("last-line", 1, "the last line is incomplete; the 9 answers before it are used"),
        ("zeros", 1, "the last line is incomplete; the 9 answers before it are used"),
        ("earlier-line", 3, "a line is damaged or has another key; the 3 answers before it are used"),
        ("another-key", 4, "a line is damaged or has another key; the 0 answers before it are used"),
        ("garbage", 4, "a line is damaged or has another key; the 0 answers before it are used"),
    ],
)
def test_a_damaged_file_is_named_and_only_its_good_part_used(
    world: World, tmp_path: Path, asked: list[str], capfd: pytest.CaptureFixture[str], how: str, again: int, said: str
) -> None:
    expected = scored(world, tmp_path / "one", domain=("mixed",), guards=())
    [path] = journals()
    good, before = path.read_bytes(), list(asked)
    assert (len(before), path.stat().st_mode & 0o777) == (4, 0o600)
    path.write_bytes(damaged(good, how))
    capfd.readouterr()
    assert scored(world, tmp_path / "two", domain=("mixed",), guards=()) == expected
    assert asked[4:] == before[-again:]
    assert f"{path}: {said}" in capfd.readouterr().err
    assert path.read_bytes() == good, "it is whole again"


def test_a_full_disk_costs_no_result(
    world: World, tmp_path: Path, asked: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    expected = scored(world, tmp_path / "one", domain=("choice",), guards=())
    [path] = journals()
    good, batches = path.read_bytes(), len(asked)
    path.unlink()
    with files_of_at_most(len(good) - 20):  # too small for the last batch, large enough for the scores
        assert scored(world, tmp_path / "two", domain=("choice",), guards=()) == expected
    assert f"{path}: No space left on device; further answers are not kept" in capfd.readouterr().err
    assert path.read_bytes() == good[: good.rindex(b"\n", 0, -1) + 1], "no part of a line is left"
    asked.clear()
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):  # too small for the scores
        scored(world, tmp_path / "three", domain=("choice",), guards=())
    assert not (tmp_path / "three").exists()
    assert scored(world, tmp_path / "three", domain=("choice",), guards=()) == expected
    assert (batches, len(asked)) == (5, 2), "once more the last batch, and again, as it could not be kept"


def test_a_cache_that_cannot_be_written_costs_no_result(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = scored(world, tmp_path / "one", domain=("mixed",), guards=())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "file"))
    assert scored(world, tmp_path / "two", domain=("mixed",), guards=()) == expected
    assert "Not a directory; answers are not kept" in capfd.readouterr().err


def test_the_files_used_last_stay_within_the_bound(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(world, tmp_path / "one", domain=("mixed",), guards=())
    [oldest] = journals()
    os.utime(oldest, (0, 0))
    scored(world, tmp_path / "two", domain=("heldout",), guards=())
    [newer] = [path for path in journals() if path != oldest]
    os.utime(newer, (1, 1))
    monkeypatch.setattr(answersfile, "LARGEST", newer.stat().st_size + 10)
    scored(world, tmp_path / "three", domain=("heldout",), guards=())
    assert journals() == [newer]
    assert newer.stat().st_mtime > 1, "reading counts as a use"
