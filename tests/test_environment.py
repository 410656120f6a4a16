"""Importing the library leaves the environment alone; every program of ours has telemetry off and hubs offline."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.environment import VARIABLES
from shadowft_core.pipeline.run import Run
from tests.fixtures.evaluation import World
from tests.fixtures.models import Pair
from tests.fixtures.workspace import copy_flows, make_workspace

ROOT = Path(__file__).parent.parent
READERS = ("numpy", "mlflow", "prefect", "dvc", "huggingface_hub", "datasets", "transformers", "git")
# Python imports a module of this name at its start. It notes the variables when a library that reads them is imported,
# when a worker is forked, and when the process ends.
RECORDER = f"""
import atexit, json, os, sys

def note(what):
    found = {{name: os.environ.get(name) for name in {[*VARIABLES]}}}
    line = {{"what": what, "pid": os.getpid(), "argv": sys.argv[:2], "set": found}}
    with open(os.environ["RECORDED"], "a") as file:
        file.write(json.dumps(line) + "\\n")

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in {READERS}:
            note("import " + name)

sys.meta_path.insert(0, Finder())
sys.addaudithook(lambda event, _: note(event) if event == "os.fork" else None)
atexit.register(note, "end")
"""


class Recorded:
    """Runs programs without the variables of ours, and reads what their processes noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "recorder").mkdir()
        (folder / "recorder/sitecustomize.py").write_text(RECORDER)
        kept = {name: value for name, value in os.environ.items() if name not in {*VARIABLES, "OMP_NUM_THREADS"}}
        path = os.pathsep.join([str(folder / "recorder"), str(ROOT)])
        self.environment = kept | {"PYTHONPATH": path, "RECORDED": str(folder / "recorded.jsonl")}

    def run(self, *words: object, code: int = 0, **variables: str) -> list[dict[str, Any]]:
        command = [sys.executable, *map(str, words)]
        environment = self.environment | variables
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in (self.folder / "recorded.jsonl").read_text().splitlines()]


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path)


def test_importing_the_public_names_changes_nothing(recorded: Recorded) -> None:
    code = """
        import logging, os, signal, sys, warnings
        import numpy, yaml                  # what libraries do to themselves at import is theirs
        def state():
            loggers = {n: (l.level, l.disabled, len(l.handlers)) for n, l in logging.Logger.manager.loggerDict.items()
                       if isinstance(l, logging.Logger) and n.startswith("shadowft")}
            return (set(os.environ.items()), list(warnings.filters), logging.root.level, list(logging.root.handlers),
                    loggers, numpy.geterr(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
                    os.getcwd(), sys.excepthook, sys.stdin, sys.stdout, sys.stderr, os.umask(os.umask(0)))
        before = state()
        import shadowft_core
        for name in shadowft_core.__all__:
            getattr(shadowft_core, name)
        after = state()
        assert after[0] == before[0], after[0] ^ before[0]
        assert after == before, [pair for pair in zip(before, after) if pair[0] != pair[1]]
    """
    (recorded.folder / "program.py").write_text(textwrap.dedent(code))
    noted = recorded.run("program.py")
    assert {value for line in noted for value in line["set"].values()} == {None}
    assert [line["what"] for line in noted][-1] == "end"


def require_ours(noted: list[dict[str, Any]], *whats: str) -> None:
    """Every process noted the values of ours, each time; `whats` are among what they noted."""
    assert noted
    for line in noted:
        assert line["set"] == VARIABLES, f"{line['what']} in {line['argv']}"
    assert set(whats) <= {line["what"] for line in noted}


GRAFT = [
    "graft",
    "--instruct",
    "{instruct}",
    "--base",
    "{base}",
    "--tuned",
    "{instruct}",
    "--scale",
    "1",
    "--unrelated",
]


@pytest.mark.parametrize("start", [["-m", "shadowft_core.cli"], [Path(sys.executable).with_name("shadowft")]])
def test_the_command_line_forks_workers_with_numpy_in_one_thread(
    recorded: Recorded, start: list[Any], tiny_llama_pair: Pair
) -> None:
    words = [word.format(base=tiny_llama_pair.base, instruct=tiny_llama_pair.instruct) for word in GRAFT]
    require_ours(recorded.run(*start, *words, "--out", "grafted"), "import numpy", "os.fork", "end")


def test_a_variable_that_is_set_stays(recorded: Recorded) -> None:
    noted = recorded.run("-m", "shadowft_core.cli", "--help", HF_HUB_OFFLINE="0")
    assert [line["set"] for line in noted if line["what"] == "end"] == [VARIABLES | {"HF_HUB_OFFLINE": "0"}]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-m", "flows.retrain", "--workspace", "."], 3),  # there is no params.yaml
        (["-m", "shadowft_core.demo.real", "--data", "none.jsonl"], 3),
        (["-m", "benchmarks.graft", "--help"], 0),
        (["-m", "benchmarks.evaluate", "--help"], 0),
        (["-m", "tests.conformance", "--help"], 0),
    ],
    ids=lambda words: words[1] if isinstance(words, list) else "",
)
def test_every_program_sets_them_before_a_library_is_imported(recorded: Recorded, words: list[str], code: int) -> None:
    require_ours(recorded.run(*words, code=code), "end")


def test_the_libraries_read_them_as_they_are_meant() -> None:
    """The tests are a program of ours, too."""
    from dvc.analytics import is_enabled
    from huggingface_hub import constants
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY, MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
    from prefect.settings import get_current_settings

    assert (constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY) == (True, True)
    assert constants.HF_HUB_DISABLE_PROGRESS_BARS
    assert (MLFLOW_DISABLE_TELEMETRY.get(), MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.get()) == (True, False)
    assert (is_enabled(), get_current_settings().server.analytics_enabled) == (False, False)


def test_a_run_sets_them_for_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a Prefect worker no program of ours is the parent."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with Run(str(tmp_path), None, None, None):
        assert {name: os.environ[name] for name in VARIABLES} == VARIABLES | {"HF_HUB_OFFLINE": "0"}
    assert [name for name in VARIABLES if name in os.environ] == ["HF_HUB_OFFLINE"]


@pytest.mark.slow
def test_the_flow_its_server_and_its_stages_have_them(recorded: Recorded) -> None:
    copy_flows(make_workspace(recorded.folder / "home"))
    for name in ("SHADOWFT_STORE_URI", "SHADOWFT_STORE_ENDPOINT", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        recorded.environment.pop(name, None)
    noted = recorded.run("-m", "flows.retrain", "--workspace", "home")
    require_ours(noted, "import prefect", "import dvc", "import mlflow", "import numpy", "end")
    programs = {Path(line["argv"][0]).name for line in noted}
    assert {"retrain.py", "reproduce.py", "shadowft"} <= programs, programs


@pytest.mark.slow
def test_the_processes_of_an_engine_have_them(recorded: Recorded, world: World) -> None:
    settings = world.params(domain=("next",), engine={"kind": "hf", "devices": 2}).model_dump(mode="json")
    code = """
        import json, sys
        from pathlib import Path
        from shadowft_core.environment import set_variables
        set_variables()
        from shadowft_core.evaluate import evaluate
        from shadowft_core.params import Evaluate
        if __name__ == "__main__":
            instruct, data = map(Path, sys.argv[1:3])
            evaluate(instruct, data, None, None, "shadow", Evaluate(**json.loads(sys.argv[3])), Path("scores"))
    """
    (recorded.folder / "program.py").write_text(textwrap.dedent(code))
    noted = recorded.run("program.py", world.instruct, world.data, json.dumps(settings))
    require_ours(noted, "import transformers", "import huggingface_hub")
    assert len({line["pid"] for line in noted if line["argv"][0].endswith("worker.py")}) == 2


OFFLINE = """
import socket, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        print(event, arguments, file=sys.stderr)
        raise SystemExit(97)

sys.addaudithook(refuse)
"""


def test_a_local_pair_is_fetched_and_loaded_without_a_network(recorded: Recorded, tiny_llama_pair: Pair) -> None:
    """A library user has the hubs online; nothing is asked of them all the same."""
    code = f"""
        from pathlib import Path
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from shadowft_core.loading import load, load_model
        from shadowft_core.pair import fetch
        from shadowft_core.params import Fetch
        fetch(Fetch(base={str(tiny_llama_pair.base)!r}, instruct={str(tiny_llama_pair.instruct)!r}), Path("pair"))
        load(AutoTokenizer, Path("pair/instruct"))
        load_model(AutoModelForCausalLM, Path("pair/instruct"))
        from huggingface_hub import constants
        assert not constants.HF_HUB_OFFLINE
    """
    (recorded.folder / "program.py").write_text(OFFLINE + textwrap.dedent(code))
    recorded.run("program.py")
    assert (recorded.folder / "pair/pair.json").is_file()
    (recorded.folder / "asks.py").write_text(
        OFFLINE + "from urllib.request import urlopen; urlopen('http://127.0.0.1:9')"
    )
    recorded.run("asks.py", code=97)
