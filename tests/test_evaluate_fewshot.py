"""Few-shot examples never show an item its own answer; all others are those of the bare harness."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.engines.hf import Hf
from shadowft_core.rendering import load_tokenizer
from tests.fixtures.evaluation import World, rows, score_instruct, write_task

SPLITS = {"test": "odd.jsonl", "train": "odd.jsonl", "other": "other.jsonl"}


def options(folder: Path, items: list[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    """A task `odd` with two examples before each item; the options that evaluate it alone."""
    folder.mkdir()
    write_task(folder, "odd", items)
    write_task(folder, "other", rows("next"))
    (folder / "other.yaml").unlink()
    config = yaml.safe_load((folder / "odd.yaml").read_text())
    config |= {"num_fewshot": 2, "dataset_kwargs": {"data_files": SPLITS}, "target_delimiter": " "} | changes
    (folder / "odd.yaml").write_text(yaml.safe_dump(config))
    return {"tasks": str(folder), "domain": ("odd",), "guards": ()}


def shown(item: dict[str, Any]) -> tuple[str, list[str]]:
    """The question of an item, and those of its examples."""
    *examples, question = re.findall(r"<user> (.*?)\s*<end>", item["prompt"])
    return question, examples


def bare(world: World, folder: Path, seed: int = 0) -> dict[str, str]:
    """The prompt of each question, as the harness alone makes it."""
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(folder / "odd.yaml")
    files = {split: str(folder / name) for split, name in SPLITS.items()}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(folder / "cache")}
    task = TaskManager(include_defaults=False).load([config])["tasks"]["odd"]
    task.set_fewshot_seed(seed=seed)
    with Hf(world.instruct, load_tokenizer(world.instruct), 64).arm([], _no_options()) as arm:
        samples = lm_eval.evaluate(
            arm.lm, {"tasks": {"odd": task}}, apply_chat_template=True, fewshot_as_multiturn=True, bootstrap_iters=0
        )["samples"]["odd"]
    return {sample["doc"]["q"]: sample["arguments"][0][0] for sample in samples}


def _no_options() -> Any:
    from shadowft_core.grafting import Options

    return Options()


@pytest.mark.parametrize(
    "changes",
    [
        {},  # the harness falls back to the test split, and does not look
        {"fewshot_split": "test"},
        {"fewshot_split": "train"},  # another split with the same rows
        {"training_split": "train"},
        {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}},
    ],
    ids=["fallback", "test", "same-rows", "training", "first_n"],
)
def test_no_item_is_among_its_own_examples(world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
    asked = options(tmp_path / "tasks", rows("say")[:8], **changes)
    scores, items = score_instruct(world, tmp_path / "out", **asked)
    pairs = [shown(item) for item in items]
    assert len(pairs) == 8
    assert all(len(set(examples)) == 2 and question not in examples for question, examples in pairs)
    alone = bare(world, tmp_path / "tasks")
    differ = [item for item in items if alone[shown(item)[0]] != item["prompt"]]
    leaks = [q for q, prompt in alone.items() if prompt.count(f"<user> {q}") > 1]
    assert len(differ) == len(leaks) == scores["tasks"]["odd"]["counts"]["replaced_examples"]
    assert sorted(shown(item)[0] for item in differ) == sorted(leaks)
    assert bool(leaks) == (changes.get("fewshot_split") != "test")  # only then the harness looks


def test_the_same_question_is_found_in_other_words_of_its_document(world: World, tmp_path: Path) -> None:
    """Case and blanks differ, and so does a field beside the question."""
    (tmp_path / "rows").mkdir()
    asked = options(tmp_path / "tasks", [("say a", "a"), ("say b", "b")], fewshot_split="other")
    lines = [
        '{"q": "SAY  a", "a": "a"}',
        '{"q": "say b ", "a": "z"}',
        '{"q": "say c", "a": "c"}',
        '{"q": "say d", "a": "d"}',
    ]
    (tmp_path / "tasks/other.jsonl").write_text("\n".join(lines) + "\n")
    _, items = score_instruct(world, tmp_path / "out", **asked)
    for question, examples in map(shown, items):
        assert question.split() not in [example.casefold().split() for example in examples]


def test_too_few_other_examples_are_refused(world: World, tmp_path: Path, loads: list[Path]) -> None:
    asked = options(tmp_path / "tasks", rows("say")[:2], fewshot_split="train", fewshot_config={"sampler": "first_n"})
    with pytest.raises(
        EvaluationError, match=r"task odd: .*only 1 are other .* 'say a', expected 2; set fewshot_split"
    ):
        score_instruct(world, tmp_path / "out", **asked)
    assert loads == []


@pytest.mark.parametrize("config", [{}, {"sampler": "first_n"}], ids=["random", "first_n"])
def test_more_examples_than_there_are_are_refused(
    world: World, tmp_path: Path, loads: list[Path], config: dict[str, str]
) -> None:
    changes = {"fewshot_split": "train", "num_fewshot": 5, "fewshot_config": config}
    with pytest.raises(EvaluationError, match=r"task odd: num_fewshot is 5, but there are only 3 few-shot examples"):
        score_instruct(world, tmp_path / "out", **options(tmp_path / "tasks", rows("say")[:3], **changes))
    assert loads == []


def test_the_examples_are_the_same_in_every_run_and_arm(world: World, half: Path, tmp_path: Path) -> None:
    from shadowft_core.evaluate import evaluate

    asked = options(tmp_path / "tasks", rows("say")[:8])
    found = []
    for out in ("one", "two"):
        evaluate(world.instruct, world.data, world.delta, half, "shadow", world.params(**asked), tmp_path / out)
        found += [(tmp_path / out / arm / "items.jsonl").read_text() for arm in ("shadow", "shadow_scaled")]
    prompts = [re.findall(r'"prompt":"(.*?)","', text) for text in found]
    assert len(prompts[0]) == 8
    assert prompts[0] == prompts[1] == prompts[2] == prompts[3]


PYTHON = """
from lm_eval.api.task import ConfigurableTask
class Own(ConfigurableTask):
    def __init__(self, config=None):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
    def fewshot_context(self, doc, *args, **options):
        return "say a a " + doc["q"]  # whatever the item is
"""


def test_a_task_that_passes_its_sampler_by_is_refused(world: World, tmp_path: Path, loads: list[Path]) -> None:
    asked = options(tmp_path / "tasks", rows("say")[:3])
    (tmp_path / "tasks" / "helper.py").write_text(PYTHON)
    text = (tmp_path / "tasks" / "odd.yaml").read_text()
    (tmp_path / "tasks" / "odd.yaml").write_text(text + "class: !function helper.Own\n")
    with pytest.raises(EvaluationError, match=r"task odd: has few-shot examples that the harness's sampler does not"):
        score_instruct(world, tmp_path / "out", **asked)
    assert loads == []


def test_examples_in_order_stay_in_order(world: World, tmp_path: Path) -> None:
    changes = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    _, items = score_instruct(world, tmp_path / "out", **options(tmp_path / "tasks", rows("say")[:8], **changes))
    found = dict(map(shown, items))
    assert (found["say a"], found["say b"]) == (["say c", "say b"], ["say a", "say c"])
    assert {tuple(examples) for question, examples in found.items() if question[-1] > "b"} == {("say a", "say b")}


def test_the_question_of_an_example_is_what_its_own_settings_show(world: World, tmp_path: Path) -> None:
    """The pool writes its questions in another field than the items."""
    changes = {"fewshot_split": "other", "fewshot_config": {"doc_to_text": "{{ask}}", "doc_to_target": "a"}}
    asked = options(tmp_path / "tasks", rows("say")[:3], **changes)
    lines = [f'{{"q": "-", "ask": "say {a}", "a": "{a}"}}' for a in "abcd"]
    (tmp_path / "tasks/other.jsonl").write_text("\n".join(lines) + "\n")
    scores, items = score_instruct(world, tmp_path / "out", **asked)
    pairs = [shown(item) for item in items]
    assert all(len(set(examples)) == 2 and question not in examples for question, examples in pairs)
    assert scores["tasks"]["odd"]["counts"]["replaced_examples"] > 0
