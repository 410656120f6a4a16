"""`evaluate.generation`: the same system text, thinking and limits for every arm, honoured or refused, and recorded."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate, open_bench
from shadowft_core.evaluate.engines import Reply
from shadowft_core.evaluate.prompts import Prompts
from shadowft_core.params import Evaluate, Generation, Render
from shadowft_core.rendering import load_renderer
from shadowft_core.verdict.scores import read_arms
from tests.fixtures.evaluation import World, read_arm, rows, score_instruct, write_task
from tests.fixtures.thinking import OPENS, PLAIN, SWITCH, write_thinker

MUTE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<bot> {% endif %}"
)


@pytest.fixture(scope="module")
def thinker(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    return replace(world, instruct=write_thinker(tmp_path_factory.mktemp("thinker") / "model"))


def templated(world: World, folder: Path, template: str) -> World:
    shutil.copytree(world.instruct, folder)
    (folder / "chat_template.jinja").write_text(template)
    return replace(world, instruct=folder)


def answers(world: World, out: Path, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return score_instruct(world, out, domain=("say",), guards=(), **changes)


def test_settings_are_recorded(world: World, tmp_path: Path) -> None:
    scores, _ = answers(world, tmp_path / "none")
    unset = {"system": None, "thinking": "template", "thinking_tokens": None, "max_tokens": None}
    assert scores["generation"] == unset
    scores, _ = answers(world, tmp_path / "some", generation={"system": "say", "max_tokens": 2})
    assert scores["generation"] == unset | {"system": "say", "max_tokens": 2}


def test_the_system_text_comes_before_every_prompt(world: World, tmp_path: Path) -> None:
    settings = {"generation": {"system": "next next"}}
    _, items = score_instruct(world, tmp_path / "out", domain=("say", "choice"), guards=(), **settings)
    assert {item["task"] for item in items} == {"say", "choice"}
    assert all(item["prompt"].startswith("<bot> next next <end> <user> say ") for item in items)


def test_a_template_without_system_turns_folds_or_refuses(world: World, tmp_path: Path, loads: list[Path]) -> None:
    mute, settings = templated(world, tmp_path / "mute", MUTE), {"domain": ("say",), "guards": ()}
    params = mute.params(**settings, generation={"system": "next next"})
    with pytest.raises(EvaluationError, match=r"prints no system turn; set render\.system to fold"):
        evaluate(mute.instruct, mute.data, None, None, "shadow", params, tmp_path / "out")
    assert loads == []
    evaluate(mute.instruct, mute.data, None, None, "shadow", params, tmp_path / "out", Render(system="fold"))
    _, items = read_arm(tmp_path / "out/instruct")
    assert all(item["prompt"].startswith("<user> next next\n\nsay ") for item in items)


def test_max_tokens_takes_the_place_of_the_tasks_limit(world: World, tmp_path: Path) -> None:
    write = tmp_path / "tasks"
    write.mkdir()
    write_task(write, "say", rows("say")[:4], tokens=1)  # alone, all would be cut
    scores, items = answers(world, tmp_path / "out", tasks=str(write), generation={"max_tokens": 2})
    assert (scores["tasks"]["say"]["mean"], scores["tasks"]["say"]["counts"]["cut"]) == (1, 0)
    assert {item["tokens"] for item in items} == {2}


@pytest.mark.parametrize("template", [PLAIN, OPENS, SWITCH], ids=["plain", "opens", "switch"])
def test_thoughts_are_taken_off(thinker: World, tmp_path: Path, template: str) -> None:
    """The task allows two tokens of an answer; the thought has four."""
    world = templated(thinker, tmp_path / "model", template)
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "say", rows("say"), tokens=2)
    settings = {"tasks": str(tmp_path / "tasks"), "generation": {"thinking_tokens": 5}}
    scores, items = answers(world, tmp_path / "out", **settings)
    assert scores["tasks"]["say"]["mean"] > 0.9
    assert not any("think" in item["output"] for item in items)
    assert {item["finish"] for item in items} == {"stop"}
    assert {item["tokens"] for item in items} == {5 if template == OPENS else 6}


def test_without_tokens_for_thoughts_the_answers_are_cut(thinker: World, tmp_path: Path) -> None:
    world = templated(thinker, tmp_path / "model", PLAIN)
    with pytest.raises(EvaluationError, match="13 of 13 answers were cut at the token limit"):
        answers(world, tmp_path / "out")


def test_a_thought_that_never_ends_is_cut_and_empty(thinker: World, tmp_path: Path) -> None:
    """Its limit allows the thought and one more token, so that half of a thought is never scored as an answer."""
    world = templated(thinker, tmp_path / "model", OPENS)
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "say", [("say a", "a"), ("say b", "b")], tokens=1)
    settings = {"tasks": str(tmp_path / "tasks"), "generation": {"thinking_tokens": 1}}
    with pytest.raises(EvaluationError, match="2 of 2 answers were cut"):
        answers(world, tmp_path / "out", **settings)


def test_stop_texts_end_answers_not_thoughts(thinker: World, tmp_path: Path) -> None:
    world = templated(thinker, tmp_path / "model", PLAIN)
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "say", rows("say"), tokens=3)
    text = (tmp_path / "tasks/say.yaml").read_text().replace('["<end>"]', '["</think>", "<end>"]')
    (tmp_path / "tasks/say.yaml").write_text(text)
    settings = {"tasks": str(tmp_path / "tasks"), "generation": {"thinking_tokens": 5}}
    assert answers(world, tmp_path / "out", **settings)[0]["tasks"]["say"]["mean"] > 0.9
    (tmp_path / "tasks/say.yaml").write_text(text.replace('"<end>"', '"b"'))
    outputs = {
        item["prompt"].split()[2]: item["output"].strip() for item in answers(world, tmp_path / "b", **settings)[1]
    }
    assert (outputs["a"], outputs["b"]) == ("a", "")


@pytest.mark.parametrize("template", [OPENS, SWITCH], ids=["opens", "switch"])
def test_thinking_off_closes_the_thought(thinker: World, tmp_path: Path, template: str) -> None:
    world = templated(thinker, tmp_path / "model", template)
    scores, items = answers(world, tmp_path / "out", generation={"thinking": "off"})
    assert scores["tasks"]["say"]["mean"] > 0.9
    assert all(item["prompt"].endswith("<think>\n\n</think>\n\n") for item in items)


def test_given_texts_are_never_scored_inside_a_thought(thinker: World, tmp_path: Path) -> None:
    world = templated(thinker, tmp_path / "model", OPENS)
    scores, items = score_instruct(world, tmp_path / "out", domain=("choice",), guards=())
    assert all(item["prompt"].endswith("<bot> <think>\n\n</think>\n\n") for item in items)
    assert scores["tasks"]["choice"]["mean"] > 0.9


@pytest.mark.parametrize(
    ("template", "generation", "message"),
    [
        (OPENS, {}, r"task say: the chat template .* opens a thought .*thinking_tokens is not set"),
        (PLAIN, {"thinking": "on", "thinking_tokens": 9}, r"thinking is on, but the chat template .* does not read"),
        (PLAIN, {"thinking": "off"}, r"thinking is off, but the chat template .* does not read enable_thinking"),
    ],
)
def test_what_a_template_cannot_honour_is_refused_before_a_model_is_loaded(
    thinker: World, tmp_path: Path, loads: list[Path], template: str, generation: dict[str, Any], message: str
) -> None:
    world = templated(thinker, tmp_path / "model", template)
    with pytest.raises(EvaluationError, match=message):
        answers(world, tmp_path / "out", generation=generation)
    assert loads == []


NOTES = {
    "unset": (SWITCH, {}, "thinks unless enable_thinking is false, as it is in training for rows without thoughts"),
    "with room": (SWITCH, {"thinking_tokens": 5}, ""),
    "off": (SWITCH, {"thinking": "off"}, ""),
    "no thoughts": (PLAIN, {}, ""),
    "room for nothing": (PLAIN, {"thinking_tokens": 5}, "thinking_tokens is 5, but the chat template .* neither opens"),
    "opens": (OPENS, {"thinking_tokens": 5}, ""),
}


@pytest.mark.parametrize("name", list(NOTES))
def test_a_setting_that_may_not_be_wanted_is_told(
    thinker: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    template, generation, note = NOTES[name]
    world = templated(thinker, tmp_path / "model", template)
    params = world.params(domain=("say", "heldout"), guards=(), generation=generation)
    with open_bench(world.instruct, world.data, params, params.domain, ()):
        said = capsys.readouterr().err
    assert said.count("enable_thinking") == bool(note)
    assert re.search(note, said)
    with open_bench(world.instruct, world.data, params, ("heldout",), ()):
        assert "enable_thinking" not in capsys.readouterr().err  # its rows are rendered as in training


def test_thinking_off_asks_as_training_does_for_rows_without_thoughts(thinker: World, tmp_path: Path) -> None:
    world = templated(thinker, tmp_path / "model", SWITCH)
    [sample] = load_renderer(world.instruct, Render()).samples(
        [{"role": "user", "content": "say a"}, {"role": "assistant", "content": "a"}]
    )
    asked = {
        thinking: prompts(world, thinking=thinking).chat("say", "generate_until") for thinking in ("template", "off")
    }
    texts = {thinking: chat([{"role": "user", "content": "say a"}]) for thinking, chat in asked.items()}
    assert texts["off"] == sample.prompt
    assert texts["template"] == sample.prompt.replace("<think>\n\n</think>\n\n", "") != sample.prompt


def test_thinking_may_be_written_without_quotes() -> None:
    assert Generation.model_validate({"thinking": False}).thinking == "off"
    assert Generation.model_validate({"thinking": True, "thinking_tokens": 9}).thinking == "on"
    for wrong in ({"thinking": "on"}, {"thinking": "off", "thinking_tokens": 9}, {"thinking": "maybe"}):
        with pytest.raises(ValueError, match="thinking"):
            Evaluate.model_validate({"tasks": "t", "domain": ["d"], "generation": wrong})


def test_arms_of_other_settings_are_not_compared(world: World, half: Path, tmp_path: Path) -> None:
    """The prompts are the same, so the items are; only the limit differs."""
    tasks = {"domain": ("next",), "guards": ("say",)}
    for group, limit in (("instruct", None), ("shadow", 3)):
        delta = (None, None) if group == "instruct" else (world.delta, half)
        params = world.params(**tasks, generation={"max_tokens": limit})
        evaluate(world.instruct, world.data, *delta, "shadow", params, tmp_path / "scores" / group)
    with pytest.raises(
        EvaluationError, match=r'differently: generation is .*"max_tokens": 3.* and .*"max_tokens": null'
    ):
        read_arms(tmp_path / "scores", ["shadow"])
    for file in (tmp_path / "scores").rglob("scores.json"):  # as an older version wrote them
        content = json.loads(file.read_text())
        del content["generation"]
        file.write_text(json.dumps(content))
    assert read_arms(tmp_path / "scores", ["shadow"]).keys() == {"instruct", "shadow", "shadow_scaled"}


CHILD = """
import datetime, sys
from transformers.utils import chat_template_utils
class Day(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(*map(int, sys.argv[1].split("-")), tzinfo=tz)
chat_template_utils.datetime = Day  # the clock that templates read
from pathlib import Path
from shadowft_core.evaluate import evaluate, open_bench
from shadowft_core.loading import load
from shadowft_core.params import Evaluate
from transformers import AutoTokenizer
model, data, tasks, out = map(Path, sys.argv[2:])
print(load(AutoTokenizer, model).apply_chat_template([{"role": "user", "content": "a"}], tokenize=False))
params = Evaluate(tasks=str(tasks), domain=("say",))
evaluate(model, data, None, None, "shadow", params, out)
"""


@pytest.mark.slow
def test_two_days_meet_the_same_prompts(world: World, tmp_path: Path) -> None:
    """Two processes, whose clocks show two days; transformers alone would write two dates."""
    template = (world.instruct / "chat_template.jinja").read_text()
    dated = templated(world, tmp_path / "dated", "{{ '<bot> ' + strftime_now('%d %b %Y') + ' ' }}" + template)
    printed, found = [], []
    for day in ("2031-01-05", "2032-11-28"):
        places = [dated.instruct, world.data, world.tasks, tmp_path / day]
        command = [sys.executable, "-c", CHILD, day, *map(str, places)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
        found.append([(tmp_path / day / "instruct" / name).read_bytes() for name in ("scores.json", "items.jsonl")])
    assert ("05 Jan 2031" in printed[0], "28 Nov 2032" in printed[1]) == (True, True)
    assert found[0] == found[1]
    assert b"2031" not in found[0][1]


def prompts(world: World, **settings: Any) -> Prompts:
    return Prompts(load_renderer(world.instruct, Render()), Generation(**settings))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think> a </think> b STOP c END d", "b "),  # the stop text that comes first in the answer, not in the list
        ("<think> STOP </think> b", "b"),
        ("<think> I write </think> to end it </think> b", "b"),  # half of a thought is no answer
        ("b END", "b "),
    ],
)
def test_an_answer_begins_after_the_thought_and_ends_at_its_first_stop_text(
    world: World, text: str, answer: str
) -> None:
    found = prompts(world, thinking_tokens=9).answer("a", Reply(text, "length", 7), {"until": ["END", "STOP"]})
    assert isinstance(found, Reply)
    assert (found, found.finish, found.tokens) == (answer, "length" if answer == "b" else "stop", 7)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"max_new_tokens": 3},
        {"max_completion_tokens": 5, "max_tokens": 4},
        {"max_new_tokens": 3, "max_gen_toks": 2, "max_tokens": 4},
    ],
)
def test_the_limit_of_an_answer_is_the_one_that_the_harness_takes(world: World, kwargs: dict[str, int]) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    expected = normalize_gen_kwargs({"until": ["x"], **kwargs})["max_gen_toks"]
    assert prompts(world).settings({"until": ["x"], **kwargs}) == {"until": ["x"], "max_gen_toks": expected}
    assert prompts(world, max_tokens=9).settings(kwargs)["max_gen_toks"] == 9
    both = prompts(world, max_tokens=9, thinking_tokens=5).settings({"until": ["x"], **kwargs})
    assert both == {"until": [], "max_gen_toks": 14}
