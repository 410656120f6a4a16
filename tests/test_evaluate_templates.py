"""Templates of task files are compiled once, in the block only, and give the same texts."""

from pathlib import Path

import pytest
import yaml
from lm_eval import utils
from lm_eval.utils import apply_template

from shadowft_core.evaluate.templates import compiled_once
from shadowft_core.suites.consent import isolate_templates
from tests.fixtures.evaluation import World, rows, score_instruct, write_task

STATEFUL = (
    "{% set ns = namespace(n=0) %}{% for one in rows %}{% set ns.n = ns.n + one %}{% endfor %}{{ ns.n }} {{ word }}"
)


def test_texts_are_those_of_the_harness() -> None:
    docs = [{"rows": list(range(n)), "word": f"w{n}"} for n in range(5)]
    isolate_templates()
    env = utils.env
    expected = [apply_template(STATEFUL, doc) for doc in docs]
    with compiled_once(), compiled_once():
        assert [apply_template(STATEFUL, doc) for doc in docs] == expected
        assert env.from_string(STATEFUL) is env.from_string(STATEFUL)
    assert "from_string" not in env.__dict__
    assert env.from_string(STATEFUL) is not env.from_string(STATEFUL)


def test_an_evaluation_compiles_a_template_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_task(tasks, "odd", rows("say")[:4])
    config = yaml.safe_load((tasks / "odd.yaml").read_text())
    (tasks / "odd.yaml").write_text(yaml.safe_dump(config | {"doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}))
    compiled: list[str] = []
    isolate_templates()
    from_string = utils.env.from_string

    def noted(source: str) -> object:
        compiled.append(source)
        return from_string(source)

    monkeypatch.setattr(utils.env, "from_string", noted)
    score_instruct(world, tmp_path / "out", tasks=str(tasks), domain=("odd",), guards=())
    assert sorted(compiled) == ["{{a}}", "{{q}}"]
