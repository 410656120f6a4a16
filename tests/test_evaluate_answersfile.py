"""Answers from the journal are those of the model: every part of them comes back, and nothing wrong is kept."""

import math
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import engines
from shadowft_core.evaluate.answersfile import open_answers
from shadowft_core.evaluate.engines import Reply
from shadowft_core.evaluate.journal import Journal, _surroundings
from shadowft_core.evaluate.progress import Progress
from tests.fixtures.evaluation import World, score_instruct, write_task
from tests.test_evaluate_replies import requests

ANSWERS = {0: Reply("a", "length", 3), 1: Reply("", "stop", 1), 2: "b", 3: (-1.5, False), 4: (-0.1, True), 5: -2.25}


def kept(about: dict[str, Any]) -> dict[int, Any]:
    with open_answers(about, lambda line: None) as file:
        return dict(file.answers)


def test_every_part_of_an_answer_comes_back() -> None:
    with open_answers({"a": 1}, lambda line: None) as file:
        file.append(ANSWERS)
    again = kept({"a": 1})
    assert (again, [*map(type, again.values())]) == (ANSWERS, [*map(type, ANSWERS.values())])
    assert [(again[at].finish, again[at].tokens) for at in (0, 1)] == [("length", 3), ("stop", 1)]
    assert kept({"a": 2}) == {}


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_answer_that_is_not_finite_is_not_kept(value: float) -> None:
    with open_answers({}, lambda line: None) as file:
        file.append({0: (-1.0, True)})
        file.append({1: (value, False)})
    assert kept({}) == {0: (-1.0, True)}


def test_accuracy_is_that_of_the_model(world: World, tmp_path: Path) -> None:
    """Of a log-likelihood, the journal keeps whether the text was the likeliest."""
    write_task(tmp_path, "odd", [("say a", "a"), ("say b", "x"), ("say c", "c"), ("say d", "y")])
    config = yaml.safe_load((tmp_path / "odd.yaml").read_text())
    del config["generation_kwargs"]
    config |= {"output_type": "loglikelihood", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(config))
    asked = {"tasks": str(tmp_path), "domain": ("odd",), "guards": ()}
    first = score_instruct(world, tmp_path / "one", **asked)
    assert first == score_instruct(world, tmp_path / "two", **asked)
    assert first[0]["tasks"]["odd"]["mean"] == 0.5


class Two:
    """A stand-in for an engine that reports one answer and returns another."""

    cache_hook: Any = None

    def set_cache_hook(self, hook: Any) -> None:
        self.cache_hook = hook

    def generate_until(self, asked: list[Any]) -> list[Reply]:
        for one in asked:
            self.cache_hook.add_partial("generate_until", one.args, Reply("a", "stop", 1))
        return [Reply("b", "stop", 1) for _ in asked]


def test_an_engine_that_reports_another_answer_than_it_returns_is_refused() -> None:
    journal = Journal(Two(), {"a": 3}, Progress({"": 1}, StringIO()), {})
    with pytest.raises(EvaluationError, match=r'reported the answer .*"a".* and returned .*"b"'):
        journal.generate_until(requests("generate_until", [("say a", {"until": []})]))


def test_the_code_that_asks_is_part_of_the_key(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _surroundings(world.instruct)
    folder = Path(shutil.copytree(Path(engines.__file__).parent, tmp_path / "engines"))
    monkeypatch.setattr(engines, "__file__", str(folder / "__init__.py"))
    assert _surroundings(world.instruct) == before
    (folder / "hf.py").write_text((folder / "hf.py").read_text() + "\n")
    changed = _surroundings(world.instruct)
    assert (changed["code"] == before["code"], changed["files"] == before["files"]) == (False, True)
