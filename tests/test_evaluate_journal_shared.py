"""The journal of several processes and of other engines: nothing is asked twice, and nothing gets lost."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shadowft_core.evaluate import evaluate
from tests.fixtures.answering import ROOT, answering, note_batches, write_mixed, write_params
from tests.fixtures.evaluation import World, forget_answers
from tests.fixtures.serving import served
from tests.fixtures.training import tree

TASKS = {"domain": ("mixed",), "guards": ("choice",), "batch_size": 1}


@pytest.fixture(scope="module", autouse=True)
def mixed(world: World) -> None:
    write_mixed(world.tasks)


def test_two_runs_at_once_share_their_answers(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, asked = world.params(**TASKS), list[str]()
    undo = note_batches(lambda ids: asked.append(f"{ids}"))
    evaluate(world.instruct, world.data, None, None, "shadow", params, tmp_path / "expected")
    undo()
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    file, log = write_params(tmp_path, world, **TASKS), tmp_path / "log"
    words = "evaluate", "--instruct", world.instruct, "--data", world.data, "--params", file
    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(answering, log, "never", 0, *words, "--out", tmp_path / name) for name in ("a", "b")]
    for run in runs:
        assert run.result().returncode == 0, run.result().stderr
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "expected")
    assert sorted(log.read_text().splitlines()) == sorted(asked), "each batch was asked once, by one of the two"


@pytest.mark.slow
def test_answers_of_several_devices_go_on_with_one(world: World, tmp_path: Path) -> None:
    """A run on two devices is killed; one process goes on, and asks at most one batch of each device again."""
    tasks = {**TASKS, "engine": {"kind": "hf", "devices": 2}}
    evaluate(world.instruct, world.data, None, None, "shadow", world.params(**TASKS), tmp_path / "expected")
    forget_answers()
    params, out = write_params(tmp_path, world, **tasks), tmp_path / "out"
    command = [sys.executable, "-m", "shadowft_core.cli", "evaluate", "--instruct", world.instruct]
    command += ["--data", world.data, "--params", params, "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([*map(str, command)], env=environment, cwd=tmp_path, stderr=subprocess.PIPE)
    answers = Path(os.environ["SHADOWFT_CACHE"], "answers")
    deadline = time.monotonic() + 300
    while sum(path.read_bytes().count(b"\n") for path in answers.glob("*")) < 4 and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    kept = sum(path.read_bytes().count(b"\n") - 1 for path in answers.glob("*"))
    assert kept >= 3
    asked: list[int] = []
    undo = note_batches(lambda ids: asked.append(len(ids)))
    evaluate(world.instruct, world.data, None, None, "shadow", world.params(**TASKS), tmp_path / "out")
    undo()
    assert len(asked) == 13 + 11 - kept, "batches of one request, or of one question with its choices"
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")


def test_answers_of_a_server_are_kept_one_by_one(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The journal is cut to its first half, as by a kill; the second run asks for the rest, the third for nothing."""
    with served(world) as (state, params):
        out = tmp_path / "one"
        evaluate(world.instruct, world.data, None, None, "shadow", params, out)
        paths = sorted(Path(os.environ["SHADOWFT_CACHE"], "answers").glob("*"))
        lines = [path.read_bytes().splitlines(keepends=True) for path in paths]
        assert sorted(map(len, lines)) == [1 + 5, 1 + 13, 1 + 13, 1 + 169]
        for path, of_file in zip(paths, lines, strict=True):
            path.write_bytes(b"".join(of_file[: 1 + len(of_file) // 2]))
        capfd.readouterr()
        before = len(state.asked)
        evaluate(world.instruct, world.data, None, None, "shadow", params, tmp_path / "two")
        assert "85 of 169 answers from an interrupted run" in capfd.readouterr().err
        between = len(state.asked)
        evaluate(world.instruct, world.data, None, None, "shadow", params, tmp_path / "three")
        assert len(state.asked) - between < between - before < before
    assert tree(tmp_path / "two") == tree(tmp_path / "three") == tree(out)
