"""A whole run in which the user's own script is the train stage of both routes: `dvc repro` of the real dvc.yaml."""

import html
import json
from pathlib import Path

import pytest

from tests.fixtures.checkouts import checkout, edit_params, ran, run, two_routes
from tests.fixtures.trainers import write_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COMMAND = "python my_train.py --lora"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pico_pair: Path) -> Path:
    place = checkout(tmp_path_factory.mktemp("command"))
    two_routes(place)
    write_script(place)
    edit_params(
        place,
        train={"command": COMMAND, "seeds": [0, 1]},
        sweep={"scales": [1.0]},
        evaluate={"limit": 4},
        verdict={"resamples": 999},
    )
    return place


def test_a_script_that_dvc_does_not_watch_is_refused_by_the_stage(place: Path) -> None:
    said = run(place, "dvc", "repro", "train@shadow", code=255)
    assert "error: train.command names my_train.py, whose changes DVC would not see; add to the deps" in said
    assert "train: `- my_train.py`; seeds: `- my_train.py`" in said


def test_the_script_trains_both_routes_and_the_run_says_what_is_not_known(place: Path) -> None:
    pipeline = place / "dvc.yaml"
    text = pipeline.read_text(encoding="utf-8")
    before = "        - shadowft_core/train\n"  # in the deps of the stages of a route, train and seeds
    assert text.count(before) == 2
    pipeline.write_text(text.replace(before, f"{before}        - my_train.py\n"), encoding="utf-8")
    run(place, "dvc", "repro")
    for route, model in (("shadow", "base"), ("direct", "instruct")):
        facts = json.loads((place / f"work/tuned/{route}/train.json").read_text())
        pair = json.loads((place / "work/pair/pair.json").read_text())
        assert (facts["command"], facts["steps"], facts["model_digest"]) == (COMMAND, 2, pair[model]["digest"])
        assert list(facts["files"]) == ["my_train.py"]
        delta = json.loads((place / f"work/delta/{route}/delta.json").read_text())
        assert (delta["kind"], delta["trainer"]) == ("lora", facts["trainer"])
        [further] = json.loads((place / f"work/seeds/{route}/seeds.json").read_text())["further"]
        assert further["seed"] == 1
    assert "not_measured" in json.loads((place / "work/preflight.json").read_text())
    page = html.unescape((place / "work/report.html").read_text())
    assert f"shadow</strong> was tuned by transformers (<code>{COMMAND}</code>)" in page
    assert "Not known: whether it used the seed, whether it used these rows, and how it rendered them" in page
    assert "That the routes had the same rows and settings is not shown" in page
    assert not list((place / "var/checkpoints").glob("command-*"))


def test_a_change_of_the_script_trains_again(place: Path) -> None:
    assert ran(run(place, "dvc", "repro")) == []
    script = place / "my_train.py"
    script.write_text(script.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    said = run(place, "dvc", "status", "train@shadow", "train@direct", "seeds@shadow", "prepare")
    assert [line.split(":")[0] for line in said.splitlines() if line.endswith(":") and "@" in line] == [
        "train@shadow", "train@direct", "seeds@shadow"
    ]  # fmt: skip
