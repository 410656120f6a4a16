"""Every verb in an empty folder, without params.yaml: given all it needs it runs, else it says what is missing."""

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from shadowft_core.cli import app
from shadowft_core.errors import ParamsError, ShadowError
from shadowft_core.files import file_digest
from shadowft_core.params import Prepare
from shadowft_core.prepare import prepare
from tests.fixtures.models import Pair, shifted
from tests.fixtures.runs import Released
from tests.fixtures.training import write_model
from tests.test_report import write_work

ROW = '{"messages": [{"role": "user", "content": "%d plus %d"}, {"role": "assistant", "content": "is %d"}]}\n'
STORE = "store publish --delta {work}/delta/shadow --store here"

# What is typed, in the order of a day's work; several lines are typed one after the other in the same empty folder.
GIVEN = {
    "prepare": ["prepare --data {rows} --tasks {tasks} --out data"],
    "train": ["train --model {model} --instruct {model} --data {data} --out tuned"],
    "extract": ["extract --base {base} --tuned {instruct} --out delta"],
    "graft": [
        "graft --instruct {instruct} --delta {work}/delta/shadow --scale 0.5 --out one",
        "graft --instruct {instruct} --base {base} --tuned {instruct} --scale 1 --unrelated --out two",
    ],
    "verdict": ["verdict --scores {judged}/scores --recipe {recipe} --out v.json --metrics m.json"],
    "report": ["report --work {judged} --out report.html --plots plots"],
    "store": [
        "store probe --store here", STORE, STORE, "store ls --store here", "store check --store here", "store prune --store here",
        "store fetch {digest} --store here --out got", "store ls", "store probe --store here",
    ],
    "regraft": [
        "regraft --recipe {work}/grafted/shadow/recipe.json --delta {work}/delta/shadow --instruct {other} --out new"
    ],
    "export": ["export --for merged --delta {work}/delta/shadow@0.5 --instruct {instruct} --out merged"],
    "pair": ["pair --base {base} --instruct {instruct} --full"],
    "receipt": ["receipt {work}/grafted/shadow"],
    "diff": ["diff {instruct} {instruct}"],
    "history": ["history {name}"],
    "reconcile": ["reconcile {name}"],
    "materialize": ["materialize models:/{name}/1 --instruct {work}/pair/instruct --out rebuilt"],
}  # fmt: skip
LACKING = {
    "fetch --out pair": "`fetch` is needed",
    "prepare --tasks {tasks} --out data": "`prepare` is needed",
    "prepare --data {rows} --out data": "`evaluate` is needed",
    "sweep --instruct {instruct} --delta {work}/delta/shadow --data {data} --out s.json": "`sweep` is needed",
    "evaluate --instruct {instruct} --data {data} --out scores": "`evaluate` is needed",
    "register --work {work} --lock {work}/report.html": "params.yaml: no such file",
    "promote nothing-like-it 1": "nothing-like-it",
    "rollback {name}": "nothing",
    "who-was {name} --at 2026-01-01T00:00Z": "nothing",
}


def shown(verb: str) -> str:
    return CliRunner().invoke(app, [*GIVEN[verb][-1].split()[: 2 if verb == "store" else 1], "--help"]).output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama_pair: Pair, finished_work: Path) -> dict[str, str]:
    """What a person has at hand, as absolute paths."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "rows.jsonl").write_text("".join(ROW % (i % 10, i // 10, i % 12) for i in range(60)), encoding="utf-8")
    (folder / "tasks").mkdir()
    prepare(folder / "rows.jsonl", folder / "tasks", Prepare(data="-"), folder / "data")
    judged = write_work(folder / "judged")
    shifted(tiny_llama_pair.instruct, folder / "other", 0.001, seed=5)
    names = {name: str(folder / name) for name in ("rows.jsonl", "tasks", "data")}
    return {
        "rows": names.pop("rows.jsonl"),
        **names,
        "model": str(write_model(folder / "model", seed=0)),
        "judged": str(judged),
        "recipe": str(next(judged.rglob("recipe.json"))),
        "work": str(finished_work),
        "base": str(tiny_llama_pair.base),
        "instruct": str(tiny_llama_pair.instruct),
        "other": str(folder / "other"),
        "digest": file_digest(finished_work / "delta/shadow/delta.json"),
    }


@pytest.fixture
def somewhere(tmp_path: Path, released: Released, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; the registry and, for what a recipe names, the store are told by the environment."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", released.registry.tracking_uri)
    return folder


def typed(line: str, made: dict[str, str], name: str) -> Result:
    return CliRunner().invoke(app, [word.format(**made, name=name) for word in line.split()])


@pytest.mark.parametrize("verb", list(GIVEN))
def test_it_runs(verb: str, made: dict[str, str], somewhere: Path, released: Released, monkeypatch: Any) -> None:
    if verb in ("history", "reconcile", "materialize"):
        monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    for line in GIVEN[verb]:
        done = typed(line, made, released.name)
        assert (done.exit_code, done.exception) == (0, None), f"{line}: {done.exception!r} {done.output}"
    assert not (somewhere / "params.yaml").exists()


@pytest.mark.parametrize("line", list(LACKING))
def test_it_says_what_is_missing(line: str, made: dict[str, str], somewhere: Path, released: Released) -> None:
    done = typed(line, made, released.name)
    assert isinstance(done.exception, ShadowError)
    assert LACKING[line] in str(done.exception)
    assert not list(somewhere.glob("[!v]*")), "nothing is left behind"


@pytest.mark.parametrize("verb", [verb for verb in GIVEN if "--params" in shown(verb)])
def test_params_that_were_named_must_be_there(verb: str, made: dict[str, str], somewhere: Path) -> None:
    """Also `--params params.yaml`, which is the default where it exists."""
    done = typed(f"{GIVEN[verb][-1]} --params params.yaml", made, "name")
    assert isinstance(done.exception, ParamsError)
    assert "params.yaml: no such file" in str(done.exception)


def test_no_verb_is_forgotten() -> None:
    tried = {*GIVEN, *(line.split()[0] for line in LACKING)}
    assert tried == set(get_command(app).commands)  # type: ignore[attr-defined]
