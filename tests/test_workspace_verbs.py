"""The verbs that make a workspace and run its flow: what they print, and which code and flow run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shadowft_core.workspace import making
from tests.fixtures.checkouts import run
from tests.fixtures.cli import Shadowft
from tests.test_workspace import git

ROOT = Path(__file__).parent.parent


def test_what_is_not_named_is_to_be_filled_in(
    tmp_path: Path, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in an empty folder that a shell is in."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    rename, moved = os.rename, []
    monkeypatch.setattr(os, "rename", lambda old, new: (moved.append(Path(new).name), rename(old, new)))
    code, out, _ = shadowft("init")
    assert code == 0
    assert moved[-1] == "dvc.yaml", "the file by which a workspace is known comes last"
    assert out.splitlines()[-2:] == [
        "  to fill in, in params.yaml: fetch.base, fetch.instruct, prepare.data",
        "next: fill in params.yaml, then shadowft run",
    ]
    assert {"dvc.yaml", ".git", "params.yaml"} <= {entry.name for entry in Path().iterdir()}
    assert not list(Path().glob(".*new*"))
    assert git(Path(), "status", "--porcelain") == ""
    os.chdir("..")
    out = shadowft("init", "other").out
    assert out.splitlines()[-1] == "next: fill in other/params.yaml, then cd other && shadowft run"


def test_what_a_workspace_has_is_printed_before_its_run_also_into_a_pipe() -> None:
    code = (
        "import os, pathlib; from shadowft_core.cli.workspaces import tell; "
        "from shadowft_core.workspace.making import Made; tell(Made(pathlib.Path('mine'))); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("mine: a workspace")


def test_the_old_verb_names_the_new_one(shadowft: Shadowft) -> None:
    code, _, err = shadowft("retrain", "--name", "x")
    assert code == 2
    assert "`retrain` is no longer accepted; use `run`" in " ".join(err.replace("│", "").split())


def test_run_outside_of_a_workspace_says_how_to_get_one(tmp_path: Path, shadowft: Shadowft) -> None:
    shadowft("run", tmp_path).refused(3, "flows/retrain.py: no such file", "`shadowft init` makes one")
    (tmp_path / "notes.txt").touch()
    shadowft("demo", tmp_path).refused(3, "expected an empty or new folder, found notes.txt")


def test_in_another_checkout_its_own_code_runs(tmp_path: Path) -> None:
    """Also from a checkout: Python would look for modules in the current folder first."""
    for name in ("shadowft_core/__init__.py", "shadowft_core/cli/__init__.py", "flows/retrain.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "shadowft_core/cli/__main__.py").write_text("import sys\nprint('its code', *sys.argv[1:])\n")
    assert run(ROOT, sys.executable, "-m", "shadowft_core.cli", "run", str(tmp_path)) == f"its code run {tmp_path}\n"


FLOW = """
from prefect.states import Completed
def retrain(*given, return_state):
    print("given", *given)
    return Completed()
"""


def test_the_flow_of_a_workspace_runs_or_is_refused_in_one_line(
    tmp_path: Path, shadowft: Shadowft, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("flows", "flows.retrain"):  # later tests of this process import the repository's own
        monkeypatch.setitem(sys.modules, name, sys)
        del sys.modules[name]
    making.demo(folder := tmp_path / "demo")
    flow = folder / "flows/retrain.py"
    text = flow.read_text(encoding="utf-8")
    flow.write_text("import nothing_of_that_name\n" + text, encoding="utf-8")
    shadowft("run", folder).refused(3, f"{flow}: ModuleNotFoundError: No module named 'nothing_of_that_name'")
    flow.write_text(text.replace("def retrain(", "def again("), encoding="utf-8")
    shadowft("run", folder).refused(3, f"{flow}: has no flow `retrain`")
    flow.write_text(FLOW, encoding="utf-8")  # of the user's own
    options = ("--store", "deltas", "--endpoint", "http://127.0.0.1:1", "--name", "mine")
    assert shadowft("run", folder, *options).out.splitlines()[0] == f"given {folder} deltas http://127.0.0.1:1 mine"
    numbers = (folder / "stages.yaml").read_text(encoding="utf-8")
    (folder / "stages.yaml").write_text(numbers.replace("report: 1\n", "report: 0\n"), encoding="utf-8")
    ended = shadowft("demo", folder)
    assert ended.err.splitlines()[:2] == [
        "upgrade: out of date, because their results changed: report",
        "upgrade: commit stages.yaml and these files",
    ]
    assert ended.out.splitlines()[0] == f"given {folder} None None None", "a workspace that is there is not made again"
    assert f"these paths and commands belong to the folder {folder}: `cd {folder}` first" in ended.out.splitlines()
    monkeypatch.chdir(folder)
    assert "belong to the folder" not in shadowft("demo", ".").out
