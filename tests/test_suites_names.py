"""Names of params.yaml: tasks, groups, names of the harness, and names that nothing has."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import Item, TaskScore, evaluate
from shadowft_core.evaluate.items import Role
from shadowft_core.suites import Group, Leaf, TaskFiles
from shadowft_core.suites.names import some
from shadowft_core.sweep import one_item, point
from tests.fixtures.evaluation import World, rows, write_task

BY_SIZE = {"aggregate_metric_list": [{"metric": "exact_match"}]}  # weight_by_size is true unless it is written


def folder_of(place: Path, *groups: dict[str, Any], tasks: str = "abc") -> Path:
    """A folder with tasks a, b and c, and these groups."""
    place.mkdir(exist_ok=True)
    for task in tasks:
        write_task(place, task, rows("say")[:3])
    for number, group in enumerate(groups):
        (place / f"group{number}.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return place


def names(folder: Path, *asked: str) -> dict[str, str]:
    return {task: leaf.named for task, leaf in TaskFiles(folder).resolve(asked).items()}


def test_a_name_is_a_task_or_all_tasks_of_a_group_below_any_number_of_groups(tmp_path: Path) -> None:
    inner, outer = {"group": "inner", "task": ["c", "b"]}, {"group": "outer", "task": ["inner"]}
    folder = folder_of(tmp_path, inner, outer)
    assert names(folder, "a", "outer") == {"a": "a", "b": "outer", "c": "outer"}
    assert names(folder, "inner") == {"b": "inner", "c": "inner"}
    inline = folder_of(tmp_path / "inline", {"group": "g", "task": ["a", {"group": "x", "task": ["b", "c"]}]})
    assert names(inline, "g") == {"a": "g", "b": "g", "c": "g"}


def test_a_group_can_set_keys_of_its_tasks_and_what_is_further_above_wins(tmp_path: Path) -> None:
    inner = {"group": "inner", "task": [{"task": "a", "num_fewshot": 1}, "b"], "num_fewshot": 2, "repeats": 1}
    outer = {"group": "outer", "task": [{"group": "inner", "repeats": 3}], **BY_SIZE}
    found = TaskFiles(folder_of(tmp_path, inner, outer)).resolve(["outer"])
    assert found == {
        "a": Leaf("a", (Group("outer", True), Group("inner", False)), {"num_fewshot": 1, "repeats": 3}),
        "b": Leaf("b", (Group("outer", True), Group("inner", False)), {"num_fewshot": 2, "repeats": 3}),
    }
    task = TaskFiles(tmp_path).build("b", tmp_path, tmp_path / "cache", found["b"].overrides)
    assert (task.config.num_fewshot, task.config.repeats) == (2, 3)


@pytest.mark.parametrize(
    ("groups", "asked", "message"),
    [
        ([{"group": "g", "task": ["a"]}], ["g", "a"], "task a: named twice in params.yaml, by g and a; remove one"),
        ([{"group": "g", "task": ["a", "b", "a"]}], ["g"], "group g: holds task a twice"),
        (
            [{"group": "g", "task": ["h"]}, {"group": "h", "task": ["g"]}],
            ["g"],
            "group g: holds itself, by g > h; remove it",
        ),
        ([{"group": "g", "task": ["a", "nope"]}], ["g"], "group g: nope: no such task or group"),
        ([{"group": "g", "task": []}], ["g"], "group g: has no tasks"),
        ([{"group": "a", "task": ["b"]}], ["a"], r"group0\.yaml: group a is also defined in .*a\.yaml"),
    ],
)
def test_a_group_that_is_not_clear_is_refused(
    tmp_path: Path, groups: list[dict[str, Any]], asked: list[str], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        TaskFiles(folder_of(tmp_path, *groups)).resolve(asked)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8k", "task gsm8k: is in the installed lm-evaluation-harness, but its data is not in .*suite fetch gsm8k`"),
        ("mmlu", "group mmlu: is in the installed .*suite fetch mmlu`"),
        ("ai2_arc", "group ai2_arc: is in the installed .*suite fetch ai2_arc`"),
        ("svamp", "task svamp: its data is not in .*; fetch it with `shadowft suite fetch svamp`"),
        ("math7", "task math7: its data is not in .*; fetch it with `shadowft suite fetch math7`"),
        ("gsm8", "task gsm8: unknown; did you mean gsm8k"),
        ("one_of_many_01", "task one_of_many_01: unknown; did you mean one_of_many_"),
    ],
)
def test_a_name_that_is_not_in_the_folder_is_refused_in_few_words(tmp_path: Path, name: str, message: str) -> None:
    folder = folder_of(tmp_path)
    for number in range(150):
        task = (folder / "a.yaml").read_text(encoding="utf-8").replace("task: a", f"task: one_of_many_{number:03}")
        (folder / f"many{number}.yaml").write_text(task, encoding="utf-8")
    with pytest.raises(EvaluationError, match=message) as caught:
        TaskFiles(folder).resolve([name])
    assert len(str(caught.value)) <= 1000
    assert "\n" not in str(caught.value)


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    every = [f"name_{number:04}" for number in range(500)]
    shown, rest = re.fullmatch(r"(.*) and (\d+) more", some(every)).groups()  # type: ignore[union-attr]
    assert len(shown.split(", ")) + int(rest) == 500
    assert len(some(every)) <= 500
    assert some(["b", "a"]) == "a, b"


def test_scores_keep_the_tasks_of_a_group_and_its_name(world: World, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "tasks", {"group": "letters", "task": ["a", "b"]})
    params = world.params(tasks=str(folder), domain=("letters",), guards=("c",))
    evaluate(world.instruct, world.data, None, None, "instruct", params, tmp_path / "out")
    scores = json.loads((tmp_path / "out/instruct/scores.json").read_bytes())["tasks"]
    seen = {name: (score["role"], score["group"], score["n"], score["mean"]) for name, score in scores.items()}
    assert seen == {"a": ("domain", "letters", 3, 1), "b": ("domain", "letters", 3, 1), "c": ("guard", "c", 3, 1)}


def scored(values: list[int], *groups: tuple[str, bool], role: Role = "domain") -> TaskScore:
    items = tuple(Item(f"{number}", value, "", "") for number, value in enumerate(values))
    held = tuple(Group(name, by_size) for name, by_size in groups)
    return TaskScore(role, "m", items, group=held[0].name if held else "", groups=held)


@pytest.mark.parametrize(
    ("by_size", "inner_by_size", "shares"),
    [
        (False, False, [1 / 8, 1 / 8, 1 / 4, 1 / 2]),
        (False, True, [1 / 5, 1 / 20, 1 / 4, 1 / 2]),
        (True, True, [8 / 40, 2 / 40, 10 / 40, 1 / 2]),
        (True, False, [5 / 40, 5 / 40, 10 / 40, 1 / 2]),
    ],
)
def test_a_group_weighs_as_much_as_a_task(by_size: bool, inner_by_size: bool, shares: list[float]) -> None:
    """Group g holds group i, with tasks of 8 and 2 items, and a task of 10 items; beside it is a task of 4 items."""
    g, i = ("g", by_size), ("i", inner_by_size)
    ones = {"a": [1] * 8, "b": [1] * 2, "c": [1] * 10, "t": [1] * 4}
    held = {"a": (g, i), "b": (g, i), "c": (g,), "t": ()}
    for share, task in zip(shares, ones, strict=True):
        values = {name: one if name == task else [0] * len(one) for name, one in ones.items()}
        scores = {name: scored(value, *held[name]) for name, value in values.items()}
        assert point(1.0, scores)["domain"] == pytest.approx(share)
    assert one_item(scores) == pytest.approx(max(s / len(ones[t]) for s, t in zip(shares, ones, strict=True)))


def test_naming_tasks_does_not_import_the_harness(tmp_path: Path) -> None:
    """`prepare` resolves names, too, and must stay fast."""
    folder_of(tmp_path, {"group": "g", "task": ["a"]})
    code = (
        "import sys, pathlib; from shadowft_core.suites import item_files; "
        "print(item_files(pathlib.Path(sys.argv[1]), ['g', 'gsm8k'], ('.jsonl',)).not_compared); "
        "assert not {'lm_eval', 'torch', 'datasets', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("['gsm8k']", "")
