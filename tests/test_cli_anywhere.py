"""Every verb in an empty folder, without params.yaml: it runs if its options name all inputs, else it is refused."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shadowft_core.cli import app
from shadowft_core.errors import ParamsError, ShadowError
from tests.fixtures.cli import leaf_verbs
from tests.fixtures.runs import Released

STORE = "store publish --delta {work}/delta/shadow --store here"

# Command lines that succeed, by verb; those of one verb run one after the other in the same empty folder.
GIVEN = {
    "init": ["init made --base {base} --instruct {instruct} --data {rows}", "init --upgrade made"],
    "prepare": [
        "prepare --data {rows} --tasks {tasks} --out data", "prepare --data {rows} --max-bad 0.99 --out looked_at"
    ],
    "start": ["start --out begin"],
    "train": ["train --model {model} --instruct {model} --data {data} --out tuned"],
    "extract": ["extract --base {base} --tuned {instruct} --out delta"],
    "graft": [
        "graft --instruct {instruct} --delta {work}/delta/shadow --scale 0.5 --out one",
        "graft --instruct {instruct} --base {base} --tuned {instruct} --scale 1 --unrelated --out two",
    ],
    "seeds": ["seeds --model {model} --instruct {model} --data {data} --grafted {data} --route shadow --out seeds"],
    "look": ["look --scores {judged}/scores --recipe {recipe} --out run.json"],
    "verdict": ["verdict --scores {judged}/scores --recipe {recipe} --out v.json --metrics m.json"],
    "report": ["report --work {judged} --out report.html --plots plots"],
    "store": [
        "store probe --store here", STORE, STORE, "store ls --store here", "store check --store here",
        "store prune --store here",
        "store fetch {digest} --store here --out got", "store ls", "store probe --store here",
    ],
    "regraft": [
        "regraft --recipe {work}/grafted/shadow/recipe.json --delta {work}/delta/shadow --instruct {other} --out new"
    ],
    "export": ["export --for merged --delta {work}/delta/shadow@0.5 --instruct {instruct} --out merged"],
    "pair": ["pair --base {base} --instruct {instruct} --full"],
    "receipt": ["receipt {work}/grafted/shadow"],
    "diff": ["diff {instruct} {instruct}"],
    "data": ["data diff {data} {data}", "data show {data} --tokenizer {model} --tasks {tasks}"],
    "history": ["history {name}", "history {name} --looks"],
    "reconcile": ["reconcile {name}"],
    "doctor": ["doctor"],
    "preset": ["preset list", "preset show qwen3-8b-lora"],
    "suite": ["suite list", "suite show math7"],
    "compare": ["compare {judged}/scores/instruct/instruct {judged}/scores/shadow/shadow"],
    "plan": ["plan --preset qwen3-8b-lora --device H100"],
    "materialize": ["materialize models:/{name}/1 --instruct {work}/pair/instruct --out rebuilt"],
}  # fmt: skip
LACKING = {  # command lines that lack something: part of the message
    "data add {rows}": "expected a folder of a DVC repository",
    "preflight --out preflight.json": "data-report.json: missing or without a digest; run `shadowft prepare`",
    "run": "flows/retrain.py: no such file",
    "demo {data}": "expected an empty or new folder",
    "fetch --out pair": "`fetch` is needed",
    "prepare --tasks {tasks} --out data": "`prepare` is needed",
    "sweep --instruct {instruct} --delta {work}/delta/shadow --data {data} --out s.json": "`sweep` is needed",
    "select --sweeps {judged}/sweep --out candidate.json": "`sweep` is needed",
    "evaluate --instruct {instruct} --data {data} --out scores": "`evaluate` is needed",
    "power --instruct {model} --data {data}": "`evaluate` is needed",
    "suite fetch gsm8k --from {data}": "no data of gsm8k (",
    "register --work {work} --lock {work}/report.html": "params.yaml: no such file",
    "promote nothing-like-it 1": "nothing-like-it",
    "rollback {name}": "nothing",
    "who-was {name} --at 2026-01-01T00:00Z": "nothing",
}


def verb_of(line: str) -> str:
    words = line.split()
    return " ".join(words[:2]) if words[0] in ("store", "data", "preset", "suite") else words[0]


def run(line: str, materials: dict[str, str], name: str) -> Result:
    return CliRunner().invoke(app, [word.format(**materials, name=name) for word in line.split()])


@pytest.mark.parametrize("verb", list(GIVEN))
def test_a_verb_runs_with_its_options_alone(
    verb: str, materials: dict[str, str], empty_folder: Path, released: Released, monkeypatch: Any
) -> None:
    if verb in ("history", "reconcile", "materialize"):
        monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    for line in GIVEN[verb]:
        done = run(line, materials, released.name)
        assert (done.exit_code, done.exception) == (0, None), f"{line}: {done.exception!r} {done.output}"
    assert not (empty_folder / "params.yaml").exists()


@pytest.mark.parametrize("line", list(LACKING))
def test_a_verb_names_the_option_or_file_that_is_missing(
    line: str, materials: dict[str, str], empty_folder: Path, released: Released
) -> None:
    done = run(line, materials, released.name)
    assert isinstance(done.exception, ShadowError)
    assert LACKING[line] in str(done.exception)
    assert not list(empty_folder.glob("[!v]*")), "a file was written"


@pytest.mark.parametrize(
    "verb",
    [
        verb
        for verb, lines in GIVEN.items()
        if any(option.name == "params" for option in leaf_verbs()[verb_of(lines[-1])].params)
    ],
)
def test_a_params_file_given_by_option_must_exist(verb: str, materials: dict[str, str], empty_folder: Path) -> None:
    """Also `--params params.yaml`, the name of the default."""
    done = run(f"{GIVEN[verb][-1]} --params params.yaml", materials, "name")
    assert isinstance(done.exception, ParamsError)
    assert "params.yaml: no such file" in str(done.exception)


def test_no_verb_is_forgotten() -> None:
    lines = [*(line for lines in GIVEN.values() for line in lines), *LACKING]
    assert {verb_of(line) for line in lines} == set(leaf_verbs())
