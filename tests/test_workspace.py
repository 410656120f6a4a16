"""`shadowft init` and `demo`: what a new workspace has, and what is refused before anything is written."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import CheckpointError, DataError, InputError, PairError, SameModelError, ShadowError
from shadowft_core.pair import fetch
from shadowft_core.params import Fetch, load_params
from shadowft_core.prepare.tracked import require_intact
from shadowft_core.suites import TaskFiles
from shadowft_core.workspace import making, template
from tests.fixtures.checkouts import run
from tests.fixtures.models import Pair
from tests.servers.hub import REVISION as COMMIT
from tests.servers.hub import Hub
from tests.test_loading import edit

ROOT = Path(__file__).parent.parent
ROW = '{"messages": [{"role": "user", "content": "hi %d"}, {"role": "assistant", "content": "hello"}]}\n'


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "my rows.jsonl"
    file.write_text("".join(ROW % n for n in range(9)), encoding="utf-8")
    return file


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def repository(folder: Path) -> Iterator[Any]:
    from dvc.repo import Repo

    with chdir(folder), Repo() as repo:
        yield repo


def test_a_workspace_has_all_that_a_run_needs(tmp_path: Path, rows: Path, tiny_llama_pair: Pair) -> None:
    folder = tmp_path / "mine"
    made = making.init(folder, os.path.relpath(tiny_llama_pair.base), str(tiny_llama_pair.instruct), str(rows))
    assert (made.to_fill, made.notes[-1]) == ([], f"data: data/my rows.jsonl is a copy of {rows}, tracked by DVC")
    assert git(folder, "status", "--porcelain") == ""
    assert git(folder, "log", "--format=%s") == "A workspace of shadowft"
    expected = {*template.FILES, *template.OWN, "stages.yaml", "data/.gitignore", "data/my rows.jsonl.dvc"}
    assert set(git(folder, "ls-files").splitlines()) == expected
    with chdir(folder):
        params = load_params(Path("params.yaml"))
        assert Path(params.prepare.data).read_bytes() == rows.read_bytes()
        assert require_intact(Path(params.prepare.data)), "the digest of the data is recorded"
        for section in (params.evaluate, params.sweep):
            assert TaskFiles(Path(params.evaluate.tasks)).resolve([*section.domain, *section.guards])
    assert (params.fetch.base, params.registry.name) == (str(tiny_llama_pair.base.resolve()), "mine")
    assert "logprob_per_byte" in params.verdict.metrics
    with repository(folder) as repo:
        assert repo.config["core"]["analytics"] is False
        assert {stage.addressing for stage in repo.index.stages if stage.cmd} >= {
            "train@shadow",
            "train@direct",
            "report",
        }
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_the_commit_of_the_readme_records_run_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc params diff HEAD~1` compares both files; the first run makes dvc.lock, which git does not know yet."""
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{name}", "somebody@localhost")
    folder = tmp_path / "mine"
    making.init(folder)
    (folder / "dvc.lock").write_text("schema: '2.0'\n", encoding="utf-8")
    settings = folder / "params.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("epochs: 2", "epochs: 3"), encoding="utf-8")
    (folder / "work").mkdir()
    (folder / "work/large").touch()
    command = re.search(r"After a run, `(git .*?)`", (folder / "README.md").read_text(encoding="utf-8"))
    assert command is not None
    subprocess.run(command[1], shell=True, cwd=folder, check=True)
    assert git(folder, "show", "--name-only", "--format=").splitlines() == ["dvc.lock", "params.yaml"]


def test_data_in_a_folder_stays_where_it_is(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many").mkdir()
    monkeypatch.chdir(tmp_path)
    made = making.init(Path("mine"), data="many")
    assert load_params(Path("mine/params.yaml")).prepare.data == str(tmp_path / "many")
    assert made.to_fill == ["fetch.base", "fetch.instruct"]
    assert "stays where it is" in made.notes[0]


REFUSED: dict[str, tuple[dict[str, str], type[ShadowError], str]] = {
    "no data": ({"data": "{tmp}/none.jsonl"}, DataError, "none.jsonl: no such file or folder"),
    "a device as data": ({"data": "/dev/null"}, DataError, "/dev/null: a pipe, socket or device"),
    "no Base": ({"base": "{tmp}/none", "instruct": "{instruct}"}, InputError, "none: no such folder"),
    "one model": ({"base": "{base}"}, InputError, "expected both models or neither; add --instruct"),
    "the other model": (
        {"instruct": "{base}"},
        InputError,
        "--instruct {base}: expected both models or neither; add --base",
    ),
    "the same model": ({"base": "{instruct}", "instruct": "{instruct}"}, SameModelError, "the same model"),
    "not a model": ({"base": "{tmp}", "instruct": "{instruct}"}, InputError, "safetensors"),
    "swapped": ({"base": "{instruct}", "instruct": "{base}"}, PairError, ""),
    "not pinned": ({"base": "hf:a/b@main", "instruct": "{instruct}"}, InputError, "not pinned"),
    "no preset": ({"preset": "qwen3-8b-lara"}, InputError, "qwen3-8b-lora"),
    "offline": ({"preset": "qwen3-8b-lora"}, InputError, "the hub failed"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_nothing_is_written_before_all_is_in_order(
    case: str, exists: bool, tmp_path: Path, tiny_llama_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    given, error, message = REFUSED[case]
    values = {"tmp": str(tmp_path), "base": str(tiny_llama_pair.base), "instruct": str(tiny_llama_pair.instruct)}
    folder = tmp_path / "mine"
    if exists:
        folder.mkdir()
    with pytest.raises(error) as refused:
        making.init(folder, **{name: value.format(**values) for name, value in given.items()})
    assert message.format(**values) in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == [folder] * exists


def test_code_of_a_tokenizer_is_refused_for_the_instruct_alone(tmp_path: Path, tiny_llama_pair: Pair) -> None:
    """Nobody loads the tokenizer of the Base."""
    own = {side: shutil.copytree(getattr(tiny_llama_pair, side), tmp_path / side) for side in ("base", "instruct")}
    for folder in own.values():
        edit(folder, "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": [None, "own.Own"]})
    with pytest.raises(CheckpointError, match=r"auto_map own\.Own: code that comes with a model is never run"):
        making.init(tmp_path / "mine", str(tiny_llama_pair.base), str(own["instruct"]))
    with pytest.raises(CheckpointError, match=r"auto_map own\.Own: code that comes with a model is never run"):
        fetch(Fetch(base=str(tiny_llama_pair.base), instruct=str(own["instruct"])), tmp_path / "pair")
    making.init(tmp_path / "mine", str(own["base"]), str(tiny_llama_pair.instruct))
    fetch(Fetch(base=str(own["base"]), instruct=str(tiny_llama_pair.instruct)), tmp_path / "pair")


@pytest.mark.parametrize("make", [making.init, making.demo])
def test_a_folder_with_files_is_refused(make: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"expected an empty or new folder, found notes\.txt; choose another folder"):
        make(tmp_path)
    (tmp_path / "stages.yaml").touch()
    with pytest.raises(InputError, match=r"it is a workspace: `shadowft run .*` runs it"):
        make(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        make(tmp_path / "notes.txt")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_a_failure_while_writing_leaves_nothing(
    exists: bool, tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[core\n", encoding="utf-8")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    folder = tmp_path / "mine"
    if exists:
        folder.mkdir()
    with pytest.raises(InputError, match=r"^git init: .*bad config.*; correct git's settings"):
        making.init(folder, data=str(rows))
    assert sorted(tmp_path.rglob("*")) == sorted([config, rows, *[folder] * exists])


def test_without_git_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="git: not found"):
        making.init(tmp_path / "mine")


@pytest.mark.parametrize("author", ["shadowft", "me"])
def test_without_a_name_in_git_the_first_commit_is_by_shadowft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, author: str
) -> None:
    """And only that one. A hook, a signature or a repository of the caller has no say."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "pre-commit").write_text("#!/bin/sh\nexit 1\n")
    (hooks / "pre-commit").chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(
        f"[user]\nuseConfigOnly = true\n[commit]\ngpgsign = true\n[core]\nhooksPath = {hooks}\n"
        "[init]\ndefaultBranch = theirs\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    ours = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")
    for name in ours:
        monkeypatch.setenv(name, str(tmp_path / "somewhere"))
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    if author == "me":  # half a name: git knows who wrote it, but not who commits it
        monkeypatch.setenv("GIT_AUTHOR_NAME", author)
        monkeypatch.setenv("GIT_AUTHOR_EMAIL", f"{author}@localhost")
    made = making.init(tmp_path / "mine")
    for name in ours:
        monkeypatch.delenv(name)
    assert not (tmp_path / "somewhere").exists()
    assert made.notes == [
        "git: it knows no name of yours, so shadowft made the first commit; set user.name and user.email"
    ]
    assert (
        git(tmp_path / "mine", "log", "--format=%D %an <%ae> %cn")
        == f"HEAD -> main {author} <{author}@localhost> shadowft"
    )
    assert "[user]" not in (tmp_path / "mine/.git/config").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("folder", "name"), [("my model!", "my-model-"), ("._x", "x"), ("é", "shadowft"), ("a" * 200, "a" * 100)]
)
def test_the_name_of_the_folder_becomes_that_of_the_registered_model(folder: str, name: str) -> None:
    assert making._registered(Path("/home") / folder) == name


def test_a_pair_that_would_be_downloaded_is_checked_later(tmp_path: Path, tiny_llama_pair: Pair) -> None:
    made = making.init(tmp_path / "mine", f"hf:a/b@{COMMIT}", str(tiny_llama_pair.instruct))
    assert made.notes == ["pair: not checked here, because that would download; the first stage, fetch, checks it"]


def test_a_workspace_in_another_repository_is_one_of_its_own(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    made = making.init(tmp_path / "mine")
    assert made.notes == ["git: the workspace is a repository of its own, inside another one; ignore it there"]
    assert git(tmp_path / "mine", "rev-parse", "--show-toplevel") == str(tmp_path / "mine")


UNDER_ANOTHER_OWNER = """
from shadowft_core.cli import main
from shadowft_core.workspace import making
asked = making.current_commit
making.current_commit = lambda repo: asked("owner/" + repo.split("/")[1])  # what the hub of the tests serves
main()
"""


@pytest.fixture
def hub(tmp_path: Path, rows: Path, tiny_llama_pair: Pair) -> Iterator[Hub]:
    (tmp_path / "set").mkdir()
    rows.rename(tmp_path / "set/train.jsonl")
    server = Hub(
        {"ours": tmp_path / "set", "Qwen3-8B-Base": tiny_llama_pair.base, "Qwen3-8B": tiny_llama_pair.instruct}
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_models_and_data_of_a_hub(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of a preset at the commits of today; the data, downloaded and tracked. The hub's client reads its
    settings on import, hence a process."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    words = ["init", "mine", "--preset", "qwen3-8b-lora", "--data", f"hf:owner/ours@{COMMIT}"]
    out = run(tmp_path, sys.executable, "-c", UNDER_ANOTHER_OWNER, *words)
    assert f"  data: data/ours was downloaded from hf:owner/ours@{COMMIT} and is tracked by DVC" in out.splitlines()
    params = load_params(tmp_path / "mine/params.yaml")
    assert (params.fetch.base, params.fetch.instruct) == (
        f"hf:Qwen/Qwen3-8B-Base@{COMMIT}",
        f"hf:Qwen/Qwen3-8B@{COMMIT}",
    )
    assert params.prepare.data == "data/ours"
    assert (tmp_path / "mine/data/ours/train.jsonl").read_bytes() == (tmp_path / "set/train.jsonl").read_bytes()
    assert "data/ours.dvc" in git(tmp_path / "mine", "ls-files").splitlines()


def test_the_demo_is_the_run_of_the_repository(tmp_path: Path) -> None:
    """With its data and tasks as its own files."""
    making.demo(tmp_path / "demo")
    own = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert (tmp_path / "demo/params.yaml").read_text(encoding="utf-8") == own.replace("shadowft_core/demo/pico/", "")
    pico = ROOT / "shadowft_core/demo/pico"
    for name in ("data", "tasks", "replay.jsonl"):
        done = subprocess.run(["diff", "-r", pico / name, tmp_path / "demo" / name], capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, b"")
    assert git(tmp_path / "demo", "status", "--porcelain") == ""
