"""The metric that decides a task is the one that params or the task file names first; the others are kept beside it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import EvaluationError
from tests.fixtures.evaluation import LETTERS, World, rows, score_instruct, write_task

FILTERS = [
    {"name": "whole", "filter": [{"function": "take_first"}]},
    {"name": "a-to-f", "filter": [{"function": "regex", "regex_pattern": "([a-f])"}, {"function": "take_first"}]},
]


def metric(name: str, *, better: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": "matthews_corrcoef" if name == "mcc" else "mean", "higher_is_better": better}


def task(folder: Path, **changes: Any) -> dict[str, Any]:
    """A task `odd` of 13 questions, its file changed; the options that evaluate it alone."""
    folder.mkdir()
    write_task(folder, "odd", rows("say")[:13])
    config = yaml.safe_load((folder / "odd.yaml").read_text()) | changes
    (folder / "odd.yaml").write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return {"tasks": str(folder), "domain": ("odd",), "guards": ()}


def choice(folder: Path, metrics: list[str] | None) -> dict[str, Any]:
    listed = None if metrics is None else [metric(name) for name in metrics]
    return task(
        folder, output_type="multiple_choice", doc_to_choice=LETTERS, metric_list=listed, generation_kwargs=None
    )


def test_the_first_metric_that_is_listed_decides(world: World, tmp_path: Path) -> None:
    scores, items = score_instruct(world, tmp_path / "out", **choice(tmp_path / "tasks", ["acc_norm", "acc", "mcc"]))
    assert scores["tasks"]["odd"]["metric"] == "acc_norm"
    assert scores["tasks"]["odd"]["others"].keys() == {"acc", "mcc"}  # mcc only for the whole task
    assert all(item["others"].keys() == {"acc"} for item in items)
    scores, _ = score_instruct(world, tmp_path / "out2", **choice(tmp_path / "tasks2", None))
    assert scores["tasks"]["odd"]["metric"] == "acc"


def test_params_name_metric_and_filter(world: World, tmp_path: Path) -> None:
    options = task(tmp_path / "tasks", filter_list=FILTERS)
    first, _ = score_instruct(world, tmp_path / "one", **options)
    second, items = score_instruct(world, tmp_path / "two", **options, metrics={"odd": "a-to-f/exact_match"})
    assert first["tasks"]["odd"]["mean"] == second["tasks"]["odd"]["others"]["whole/exact_match"] == 1
    assert second["tasks"]["odd"]["mean"] == first["tasks"]["odd"]["others"]["a-to-f/exact_match"] == 6 / 13
    assert second["tasks"]["odd"]["metric"] == "exact_match"
    assert (first["tasks"]["odd"]["counts"]["unparsed"], second["tasks"]["odd"]["counts"]["unparsed"]) == (0, 7)
    assert {(item["output"].strip() in "abcdef", item["parsed"]) for item in items} == {(True, True), (False, False)}
    assert {item["others"]["whole/exact_match"] for item in items} == {1}


def test_params_name_the_metric_of_a_group(world: World, tmp_path: Path) -> None:
    options = choice(tmp_path / "tasks", ["acc", "acc_norm"]) | {"domain": ("both",), "metrics": {"both": "acc_norm"}}
    (tmp_path / "tasks" / "both.yaml").write_text("group: both\ntask: [odd]\n")
    assert score_instruct(world, tmp_path / "out", **options)[0]["tasks"]["odd"]["metric"] == "acc_norm"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"odd": "acc"}, "metric acc, but filter whole has exact_match; name one of these"),
        ({"odd": "nix/exact_match"}, "filter nix, but the filters are whole, a-to-f"),
        ({"odd": "a-to-f/acc"}, "metric acc, but filter a-to-f has exact_match"),
        ({"old": "exact_match"}, "task old: unknown"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_before_a_model_is_loaded(
    world: World, tmp_path: Path, loads: list[Path], metrics: dict[str, str], message: str
) -> None:
    options = task(tmp_path / "tasks", filter_list=FILTERS)
    with pytest.raises(EvaluationError, match=message):
        score_instruct(world, tmp_path / "out", **options, metrics=metrics)
    assert loads == []
    assert not (tmp_path / "out").exists()


def test_a_metric_that_a_scorer_does_not_give_is_refused_before_a_model_is_loaded(
    world: World, tmp_path: Path, loads: list[Path]
) -> None:
    options = task(tmp_path / "tasks", scorer="chart", metric_list=None)
    with pytest.raises(EvaluationError, match=r"metric strct, but it has lenient, parsed, strict; name one of these"):
        score_instruct(world, tmp_path / "out", **options, metrics={"odd": "strct"})
    assert loads == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_list": [metric("bleu"), metric("exact_match")]}, "only a whole task has a score bleu.*: exact_match"),
        ({"metric_list": [metric("ter", better=False)]}, "lower ter is better.*it has none that can decide"),
        (
            {"output_type": "loglikelihood", "metric_list": [metric("perplexity", better=False), metric("acc")]},
            "lower perplexity is better.*: acc, logprob_per_byte",
        ),
        ({"output_type": "loglikelihood_rolling", "metric_list": None}, "lower word_perplexity is better"),
        ({"output_type": "loglikelihood_rolling", "metric_list": [metric("bits_per_byte")]}, "only a whole task has"),
    ],
)
def test_a_metric_without_a_score_per_item_is_refused_before_a_model_is_loaded(
    world: World, tmp_path: Path, loads: list[Path], changes: dict[str, Any], message: str
) -> None:
    options = task(tmp_path / "tasks", **{"generation_kwargs": None, **changes})
    with pytest.raises(EvaluationError, match=f"task odd: {message}"):
        score_instruct(world, tmp_path / "out", **options)
    assert loads == []


def test_a_log_likelihood_task_may_be_scored_by_accuracy_or_per_byte(world: World, tmp_path: Path) -> None:
    options = task(tmp_path / "tasks", output_type="loglikelihood", generation_kwargs=None, metric_list=[metric("acc")])
    scores, _ = score_instruct(world, tmp_path / "acc", **options)
    assert (scores["tasks"]["odd"]["metric"], scores["tasks"]["odd"]["mean"]) == ("acc", 1)
    scores, items = score_instruct(world, tmp_path / "byte", **options, metrics={"odd": "logprob_per_byte"})
    assert scores["tasks"]["odd"]["metric"] == "logprob_per_byte"
    assert -1 < scores["tasks"]["odd"]["mean"] < 0
    assert {item["others"]["acc"] for item in items} == {1}


def test_the_metric_of_a_task_goes_before_that_of_its_group(world: World, tmp_path: Path) -> None:
    options = choice(tmp_path / "tasks", ["acc_norm", "acc"])
    options |= {"domain": ("both",), "metrics": {"both": "acc_norm", "odd": "acc"}}
    (tmp_path / "tasks" / "both.yaml").write_text("group: both\ntask: [odd]\n")
    assert score_instruct(world, tmp_path / "out", **options)[0]["tasks"]["odd"]["metric"] == "acc"


def test_what_a_filter_gives_in_place_of_an_answer_is_its_own_affair(world: World, tmp_path: Path) -> None:
    found = {"function": "regex", "regex_pattern": "([a-f])", "fallback": "nothing"}
    options = task(tmp_path / "tasks", filter_list=[{"name": "a-to-f", "filter": [found, {"function": "take_first"}]}])
    counts = score_instruct(world, tmp_path / "out", **options)[0]["tasks"]["odd"]["counts"]
    assert (counts["unparsed"], counts["empty"]) == (7, 0)
