"""Servers that `engine.server.command` starts: one at a time, for the Instruct or a dense arm, and none is left."""

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import open_engine
from shadowft_core.grafting import ONTO_BASE, Options, graft
from shadowft_core.weights import open_checkpoint
from tests.fixtures.evaluation import World
from tests.fixtures.processes import marked, none_left
from tests.fixtures.serving import with_server
from tests.test_engine_server import hf, same_scores, scores

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "tests.servers.completions", "{model}", "{name}", "{port}")
OPTIONS = Options("all", waivers=(ONTO_BASE,))
PARENT = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from shadowft_core.evaluate import open_engine
from shadowft_core.grafting import Options
from shadowft_core.params import Engine, Evaluate, Server
server = Server(model="tiny", command=sys.argv[2:])
params = Evaluate(tasks=".", domain=("x",), engine=Engine(kind="server", server=server))
folder = Path(sys.argv[1])
with open_engine(folder, AutoTokenizer.from_pretrained(folder), params) as engine, engine.arm([], Options()):
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A value in the environment of every process that the test starts; temporary files go to tmp_path/temporary."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("SHADOWFT_TEST_MARK", value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return value


def test_a_dense_arm_is_served_by_a_process_of_its_own(world: World, tmp_path: Path, mark: str) -> None:
    params = with_server(world, command=COMMAND)
    deltas = [(world.delta, 0.5)]
    digest, found = scores(world, params, deltas)
    assert none_left(mark, seconds=1)
    assert list((tmp_path / "temporary").iterdir()) == []
    recipe = graft(world.instruct, deltas, tmp_path / "grafted", OPTIONS)
    expected_digest, expected = scores(world, hf(params), deltas)
    assert digest == expected_digest == recipe["digest"] == open_checkpoint(tmp_path / "grafted").digest()
    same_scores(found, expected)


def test_one_server_runs_at_a_time_and_serves_instruct_and_adapters(world: World, low_rank: Path, mark: str) -> None:
    from transformers import AutoTokenizer

    def servers() -> list[str]:
        """The folders that are served."""
        found = [process.cmdline() for process in marked(mark)]
        return [words[3] for words in found if words[1:3] == ["-m", "tests.servers.completions"]]

    params = with_server(world, command=COMMAND)
    instruct = str(world.instruct)
    with open_engine(world.instruct, AutoTokenizer.from_pretrained(world.instruct), params) as engine:
        assert engine.identity["command"] == list(COMMAND)
        for deltas in ([], [(low_rank, 0.5)], [(low_rank, 2.0)]):
            with engine.arm(deltas, OPTIONS):
                assert servers() == [instruct]
        before = {process.pid for process in marked(mark)}
        with engine.arm([(world.delta, 1.0)], OPTIONS):
            [folder] = servers()
            assert folder != instruct
        assert servers() == []
        assert not Path(folder).exists()
        with engine.arm([], OPTIONS):
            assert servers() == [instruct]
            assert not before & {process.pid for process in marked(mark)}
    assert none_left(mark, seconds=1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_survives_its_parent(world: World, mark: str, number: signal.Signals) -> None:
    words = [sys.executable, "-W", "ignore", "-c", PARENT, str(world.instruct), *COMMAND]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"up\n"
        assert len(marked(mark)) >= 3  # parent, guard, server
        parent.send_signal(number)
        parent.wait(timeout=30)
    assert none_left(mark, seconds=15)


def test_a_server_that_ends_during_an_arm(world: World, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    params = with_server(world, command=COMMAND)
    tokenizer = AutoTokenizer.from_pretrained(world.instruct)

    def end_it_and_ask() -> None:
        with open_engine(world.instruct, tokenizer, params) as engine, engine.arm([], OPTIONS) as arm:
            [pid] = [process.pid for process in marked(mark) if process.cmdline()[1:3] == list(COMMAND[1:3])]
            os.kill(pid, signal.SIGKILL)
            arm.lm.require_likelihood(["say"])

    with pytest.raises(EvaluationError, match=r"ended with exit code 137; .* before that: task say: .* no server answ"):
        end_it_and_ask()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("no-such-server", "{model}{name}{port}"), r"engine\.server\.command: no-such-server is not a program;"),
        (
            (sys.executable, "-c", "raise SystemExit('no GPU found')", "{model}{name}{port}"),
            r"ended with exit code 1; correct the command; its log ends with: no GPU found",
        ),
        (
            (sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(60)", "{model}{name}{port}"),
            r"does not answer 2 s after its start; raise engine\.server\.timeout; its log ends with: loading",
        ),
        (
            (*COMMAND[:4], "other", "{port}", "--context", "{name}"),
            r"ended with exit code 2; .*invalid int value: 'tiny'",
        ),
    ],
)
def test_a_command_that_starts_no_server(world: World, mark: str, command: tuple[str, ...], message: str) -> None:
    params = with_server(world, command=command, timeout=2)
    with pytest.raises(EvaluationError, match=message):
        scores(world, params)
    assert none_left(mark, seconds=10)
