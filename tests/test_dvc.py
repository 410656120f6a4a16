"""What DVC watches, and what it passes to a shell: the real dvc.yaml in a separate checkout, run by DVC."""

import json
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import DataError
from shadowft_core.pair import write_origin
from shadowft_core.params import Fetch
from shadowft_core.prepare.tracked import content_of
from tests.fixtures.checkouts import checkout, edit_params, ran, run
from tests.fixtures.models import Pair

ROOT = Path(__file__).parent.parent
ROW = '{"messages": [{"role": "user", "content": "hi %d"}, {"role": "assistant", "content": "hello"}]}\n'
JUNK = """
kernel_c.cpython-311-x86_64-linux-gnu.so kernel_c.abi3.so kernel.o model.py~ .model.py.swp #model.py# .#model.py
model.py.orig model.py.rej model.py.bak 4913 core tags .DS_Store Thumbs.db .coverage build/lib/model.py
build/temp.linux-x86_64/kernel.c __pycache__/model.cpython-311.pyc .mypy_cache/3.11/model.data.json
.ruff_cache/0.1/notes.json .pytest_cache/v/lastfailed.json .ipynb_checkpoints/model.py .idea/room.py .vscode/room.json
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    return checkout(folder)


@contextmanager
def repository(folder: Path) -> Iterator[Any]:
    from dvc.repo import Repo

    with chdir(folder), Repo() as repo:
        yield repo


def code_dependencies() -> set[str]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    named = {dep for stage in stages for dep in stage.get("do", stage)["deps"]}
    named |= {params["prepare"]["data"], params["evaluate"]["tasks"]}  # those in shadowft_core
    return {dep for dep in named if dep.startswith("shadowft_core")}


def test_dvc_sees_the_files_that_git_tracks_and_no_others(place: Path) -> None:
    """A library compiled on one machine, for instance, must not make stages stale on another."""
    for folder in {path.parent for path in (place / "shadowft_core").rglob("*.py")}:
        for name in JUNK.split():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("junk", encoding="utf-8")
    assert len(code_dependencies()) > 15
    with repository(place) as repo:
        for dependency in code_dependencies():
            seen = set(repo.dvcignore.find(repo.fs, str(place / dependency))) or {str(place / dependency)}
            tracked = run(place, "git", "ls-files", "-z", "--", dependency).split("\0")
            assert seen == {str(place / name) for name in tracked if name}, dependency
            assert not any(map(repo.dvcignore.is_ignored_file, seen)), dependency


NAMES = [
    "my rows [v1] (2) {a} 'q' \"d\" `touch ran`.jsonl",
    "$(touch ran); touch ran & ünï→|>ran $HOME.jsonl",
    "-rf --out.jsonl",
    "a:b#c?d%20* ${train.seed} {route}.jsonl",
]


@pytest.mark.parametrize("name", NAMES)
def test_data_and_tasks_may_have_any_name(place: Path, name: str) -> None:
    """`dvc repro` prepares them, and again after a change; no shell runs any part of a name."""
    tasks = f"tasks {name}" if not name.startswith("-") else "-tasks"
    (place / name).write_text("".join(ROW % i for i in range(60)), encoding="utf-8")
    (place / tasks).mkdir()
    (place / tasks / "items.jsonl").write_text('{"prompt": "hi 3"}\n', encoding="utf-8")
    edit_params(place, prepare={"data": name}, evaluate={"tasks": tasks})
    run(place, "dvc", "repro", "-s", "prepare")
    report = json.loads((place / "work/data/data-report.json").read_text(encoding="utf-8"))
    assert report["files"][0]["file"] == name
    assert report["contaminated"]["count"] == 1
    assert not list(place.rglob("ran"))
    with repository(place) as repo:
        assert repo.status(targets=["prepare"]) == {}
    for changed in (name, f"{tasks}/items.jsonl"):
        before = (place / changed).read_text(encoding="utf-8")
        (place / changed).write_text(before + ROW % 100, encoding="utf-8")
        with repository(place) as repo:
            assert "prepare" in repo.status(targets=["prepare"]), changed
        (place / changed).write_text(before, encoding="utf-8")


def test_replay_files_are_pinned_under_dvc(place: Path) -> None:
    """DVC does not watch them: their digest is a parameter, and the flow refuses other files before its first stage."""
    from shadowft_core.pipeline.steps import preflight

    general = place / "$(touch ran) general.jsonl"
    general.write_text("".join(ROW % i for i in range(60)), encoding="utf-8")
    replay = {"data": general.name, "digest": content_of(general).digest, "share": 0.01}
    edit_params(place, prepare={"replay": replay})
    run(place, "dvc", "repro", "-s", "prepare")
    report = json.loads((place / "work/data/data-report.json").read_text(encoding="utf-8"))
    assert (report["replay"]["rows_read"], report["replay"]["digest"]) == (60, replay["digest"])
    assert not list(place.rglob("ran"))
    general.write_text(ROW % 1, encoding="utf-8")
    assert "expected prepare.replay.digest, sha256:" in run(place, "dvc", "repro", "-f", "-s", "prepare", code=255)
    with chdir(place), pytest.raises(DataError, match=r"expected prepare\.replay\.digest, sha256:"):
        preflight(Path("params.yaml"), None)


def test_a_route_is_trained_again_only_for_its_own_settings(place: Path) -> None:
    with repository(place) as repo:
        for route in ("shadow", "direct"):
            stage = repo.stage.load_one(name=f"train@{route}")
            assert stage.cmd.endswith("--start work/start --route {route}")
            assert {name for one in stage.params for name in one.params} == {"train", "render", f"routes.{route}"}


EVIL = "$(touch ran)`touch ran`; touch ran"


@pytest.mark.parametrize(
    "routes",
    [
        {"shadow": {"model": "base", "graft": EVIL}},
        {"shadow": {"model": f"{EVIL}/../base", "graft": ""}},
        {EVIL: {"model": "base", "graft": ""}},
        {"shadow": {"model": "base", EVIL: ""}},
        {"shadow": {"model": "base", "graft": ""}, "-o x": {"model": "base", "graft": ""}},
    ],
)
def test_no_shell_runs_a_value_of_a_route(place: Path, routes: dict[str, dict[str, str]]) -> None:
    """Every stage of a route, forced to run: the verb refuses in one line, and nothing in the values is run."""
    params = yaml.safe_load((place / "params.yaml").read_text(encoding="utf-8"))
    (place / "params.yaml").write_text(yaml.safe_dump(params | {"routes": routes}), encoding="utf-8")
    key = next(reversed(routes))
    for folder in ("pair/base", "pair/instruct", "data", f"tuned/{key}", f"delta/{key}"):
        (place / "work" / folder).mkdir(parents=True, exist_ok=True)
        (place / "work" / folder / "file").write_text("x", encoding="utf-8")
    (place / "work/sweep").mkdir()
    (place / f"work/sweep/{key}.json").write_text("{}", encoding="utf-8")
    for stage in ("train", "extract", "graft"):
        output = run(place, "dvc", "repro", "-f", "-s", f"{stage}@{key}", code=255)
        assert "error: params.yaml: routes" in output or "ERROR: " in output
    assert not list(place.rglob("ran"))


def test_a_stage_runs_the_code_of_its_workspace(place: Path) -> None:
    """The command `shadowft` belongs to another checkout, but DVC records the digests of this checkout's code."""
    room = place / "shadowft_core/prepare/__init__.py"
    room.write_text(room.read_text(encoding="utf-8").replace("prepare: read", "prepare: read here"), encoding="utf-8")
    output = run(place, "dvc", "repro", "-s", "prepare")
    assert "prepare: read here train_alpaca.json" in output


def test_editing_a_generated_pair_fetches_no_other_pair(place: Path, tiny_llama_pair: Pair) -> None:
    edit_params(place, fetch={"base": str(tiny_llama_pair.base), "instruct": str(tiny_llama_pair.instruct)})
    assert ran(run(place, "dvc", "repro", "fetch")) == ["fetch-origin", "fetch"]
    for source in ("pico/world.py", "pico/__init__.py", "smollm2.py"):
        with (place / "shadowft_core/demo" / source).open("a", encoding="utf-8") as file:
            file.write("\n# edited\n")
    assert ran(run(place, "dvc", "repro", "fetch")) == ["fetch-origin"]

    edit_params(place, fetch={"base": "pico:base", "instruct": "smollm2:instruct"})
    run(place, "dvc", "repro", "-s", "fetch-origin")
    first = (place / "work/origin.json").read_bytes()
    with (place / "shadowft_core/demo/pico/world.py").open("a", encoding="utf-8") as file:
        file.write("\n# edited again\n")
    run(place, "dvc", "repro", "-s", "fetch-origin")
    assert (place / "work/origin.json").read_bytes() != first


@pytest.mark.parametrize(
    ("reference", "sources"), [("pico:base", 2), ("smollm2:base?steps=3", 1), ("hf:a/b@c", 0), ("x", 0)]
)
def test_the_sources_of_a_reference_are_recorded(tmp_path: Path, reference: str, sources: int) -> None:
    write_origin(Fetch(base=reference, instruct="elsewhere"), tmp_path / "origin.json")
    origin = json.loads((tmp_path / "origin.json").read_bytes())
    assert (len(origin["base"]), origin["instruct"]) == (sources, {})
