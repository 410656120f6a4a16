"""Engine hf on several devices: the bits of one process, errors and warnings as they are, and no orphans."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shadowft_core.errors import EvaluationError, MisfitError
from shadowft_core.evaluate import evaluate
from shadowft_core.evaluate.engines import Reply, open_engine
from shadowft_core.evaluate.engines.parallel import Parallel
from shadowft_core.evaluate.quiet import quiet
from shadowft_core.grafting import Options
from shadowft_core.rendering import load_tokenizer
from shadowft_core.weights import open_checkpoint
from tests.fixtures.evaluation import World
from tests.fixtures.models import write_weights
from tests.fixtures.processes import marked, none_left
from tests.test_evaluate_replies import Heard, pairs, requests, texts

WAIVED = Options(waivers=("onto-base",))
PARTS = Options(("*mlp*", "*norm*"), scale_for=(("*mlp*", 0.25),), waivers=("onto-base",))
CUT = ("<user> say a <end> <bot>", {"until": ["<end>"], "max_gen_toks": 1})
TWO = {"kind": "hf", "devices": 2}


def test_two_processes_write_the_bytes_of_one(
    world: World, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"domain": ("next", "choice", "heldout"), "guards": ("say", "twins"), "batch_size": 3}
    for name, engine in (("one", {}), ("two", TWO)):
        monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache" / name))  # each is asked itself
        params = world.params(**tasks, engine=engine)
        evaluate(world.instruct, world.data, world.delta, half, "shadow", params, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.json*"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[Any]:
    with open_engine(world.instruct, load_tokenizer(world.instruct), world.params(batch_size=4, engine=TWO)) as opened:
        yield opened


def test_answers_equal_those_of_one_process_and_reach_the_hook(world: World, engine: Parallel) -> None:
    params = world.params(batch_size=4)
    with open_engine(world.instruct, load_tokenizer(world.instruct), params) as alone:
        assert alone.identity == engine.identity, "answers may be shared between them"
        found = []
        for opened in (alone, engine):
            with opened.arm([(world.delta, 0.5)], PARTS) as arm:
                arm.lm.set_cache_hook(hook := Heard())
                replies = arm.lm.generate_until(requests("generate_until", [*texts(), CUT]))
                likelihoods = arm.lm.loglikelihood(requests("loglikelihood", pairs()))
                rolling = arm.lm.loglikelihood_rolling(requests("loglikelihood_rolling", [("a b " * 40,)]))
                ends = [(reply.finish, reply.tokens) for reply in replies if isinstance(reply, Reply)]
                found.append((arm.digest, replies, ends, likelihoods, rolling, sorted(map(repr, hook.calls))))
    assert found[0] == found[1]
    assert len(found[0][2]) == len(texts()) + 1
    assert {finish for finish, _ in found[0][2]} == {"stop", "length"}


def test_both_processes_answer(world: World, engine: Parallel) -> None:
    with engine.arm([], Options()) as arm:
        before = [cpu_seconds(worker) for worker in engine._workers]
        for _ in range(3):
            arm.lm.generate_until(requests("generate_until", texts()))
        spent = [cpu_seconds(worker) - was for worker, was in zip(engine._workers, before, strict=True)]
    assert min(spent) > 0.1 * max(spent)


def cpu_seconds(worker: Any) -> float:
    times = process_of(worker).cpu_times()
    return float(times.user + times.system)


def process_of(worker: Any) -> psutil.Process:
    [process] = psutil.Process(worker.guard.pid).children()
    return process


def test_warnings_of_the_harness_arrive(world: World, engine: Parallel) -> None:
    """The score of a truncated prompt is wrong; the harness only warns, and the bench refuses the warning."""
    asked = [("<user> " + "say b " * 40, {"until": [], "max_gen_toks": 4})]
    with engine.arm([], Options()) as arm, quiet() as warnings:
        arm.lm.generate_until(requests("generate_until", asked))
    assert any("Left truncation applied" in warning for warning in warnings)


@pytest.mark.slow
def test_an_error_arrives_and_the_next_arm_starts_afresh(world: World, engine: Parallel) -> None:
    asked = [("<user> say b", {"until": [], "max_gen_toks": 99})]
    refused = pytest.raises(EvaluationError, match=r"process \d of the engine: AssertionError: Invalid configuration")
    with refused, engine.arm([], Options()) as arm:
        arm.lm.generate_until(requests("generate_until", asked))
    with engine.arm([], Options()) as arm:
        assert len(arm.lm.generate_until(requests("generate_until", texts()))) == len(texts())


def test_a_killed_process_ends_the_arm_with_its_exit_code(world: World, engine: Parallel) -> None:
    ended = pytest.raises(EvaluationError, match=r"process 1 of the engine ended with exit code 137, killed")
    with ended, engine.arm([], Options()) as arm:
        process_of(engine._workers[1]).kill()
        arm.lm.generate_until(requests("generate_until", texts()))
    assert not engine._workers


@pytest.mark.slow
def test_logits_that_are_not_finite_name_the_same_item_and_tensor(world: World, tmp_path: Path) -> None:
    folder = shutil.copytree(world.instruct, tmp_path / "instruct")
    checkpoint = open_checkpoint(world.instruct)
    tensors = {name: checkpoint.read(name) for name in checkpoint.names}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    write_weights(folder, tensors)
    said = []
    for engine in ({}, TWO):
        with pytest.raises(EvaluationError) as raised:
            evaluate(folder, world.data, None, None, "shadow", world.params(engine=engine), tmp_path / "out")
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert "item sha256:" in said[0]
    assert "weight tensor model.layers.1.mlp.up_proj.weight has 1 of" in said[0]


def test_an_arm_that_is_refused_starts_no_process(world: World, half: Path, tmp_path: Path) -> None:
    engine = Parallel(world.instruct, None, 4, 2, tmp_path)
    with pytest.raises(MisfitError):
        engine.arm([(world.delta, 1.0)], Options()).__enter__()
    assert not engine._workers


PARENT = """
import sys, time
from pathlib import Path
from shadowft_core.evaluate.engines.parallel import Parallel
from shadowft_core.grafting import Options
from shadowft_core.rendering import load_tokenizer

instruct, scratch = map(Path, sys.argv[1:])
engine = Parallel(instruct, load_tokenizer(instruct), 4, 2, scratch)
with engine.arm([], Options()):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_no_process_outlives_a_killed_parent(world: World, tmp_path: Path) -> None:
    command, mark = [sys.executable, "-c", PARENT, str(world.instruct), str(tmp_path)], f"devices-{os.getpid()}"
    environment = os.environ | {"SHADOWFT_TEST_MARK": mark}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        assert len(marked(mark)) == 5, "the parent, two guards and two processes"
        parent.kill()
    assert none_left(mark, 30)
