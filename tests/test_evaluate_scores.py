"""What a score is: per byte or from 0 to 1, for an item named by prompt and answer, in float32 on a CPU."""

import dataclasses
import json
import shutil
from pathlib import Path

import ml_dtypes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate, load_folder
from shadowft_core.weights import open_checkpoint, write_checkpoint
from tests.fixtures.evaluation import World, prepared, read_arm, score_instruct, write_task

METRIC = """
task: odd
dataset_path: json
dataset_kwargs: {{data_files: {{test: odd.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: a
generation_kwargs: {{until: ["<end>"], max_gen_toks: 3}}
process_results: !function helper.score
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_log_likelihood_is_divided_by_bytes_not_letters(world: World, tmp_path: Path) -> None:
    """The same two unknown tokens, in three bytes and in six."""
    scores = {}
    for name, reply in (("ascii", "A B"), ("wide", "é 漢")):
        held = [prepared(f"say {letter}", reply) for letter in "abc"]
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(held), tmp_path / name / "test.parquet")
        with_replies = dataclasses.replace(world, data=tmp_path / name)
        scores[name], _ = score_instruct(with_replies, tmp_path / f"{name}-out", domain=("heldout",), guards=())
    narrow, wide = (scores[name]["tasks"]["heldout"]["mean"] for name in ("ascii", "wide"))
    assert len("é 漢".encode()) == 2 * len("A B")
    assert narrow < 0
    assert wide == pytest.approx(narrow / 2)


@pytest.mark.parametrize(
    ("value", "fits"), [("1.0", True), ("0", True), ("1.01", False), ("-0.01", False), ("float('nan')", False)]
)
def test_a_score_is_a_number_from_0_to_1(world: World, tmp_path: Path, value: str, fits: bool) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "odd.jsonl").write_text(json.dumps({"q": "say a", "a": "a"}) + "\n")
    (tasks / "odd.yaml").write_text(METRIC.format())
    (tasks / "helper.py").write_text(f"def score(doc, results):\n    return {{'acc': {value}}}\n")
    options = {"tasks": str(tasks), "domain": ("odd",), "guards": ()}
    if fits:
        assert score_instruct(world, tmp_path / "out", **options)[0]["tasks"]["odd"]["mean"] == float(value)
    else:
        with pytest.raises(EvaluationError, match=r"task odd: acc is .* for an item, expected a number from 0 to 1"):
            score_instruct(world, tmp_path / "out", **options)


RANDOM = """
import random
import numpy
import torch
def score(doc, results):
    return {"acc": (random.random() + numpy.random.rand() + float(torch.rand(()))) / 3}
"""


def test_judging_that_draws_numbers_draws_the_same_for_every_arm(world: World, half: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "odd.jsonl").write_text("".join(json.dumps({"q": f"say {a}", "a": a}) + "\n" for a in "abc"))
    (tasks / "odd.yaml").write_text(METRIC.format())
    (tasks / "helper.py").write_text(RANDOM)
    params = world.params(tasks=str(tasks), domain=("odd",), guards=())
    evaluate(world.instruct, world.data, world.delta, half, "shadow", params, tmp_path / "out")
    (one, items), (other, others) = (read_arm(tmp_path / "out" / arm) for arm in ("shadow", "shadow_scaled"))
    assert one["model_digest"] != other["model_digest"]
    assert [item["score"] for item in items] == [item["score"] for item in others]
    assert len({item["score"] for item in items}) == 3


def test_the_end_of_a_long_prompt_is_shown(world: World, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", "long", [("x" * 3000 + " say a", "a")])
    params = {"tasks": str(tmp_path / "tasks"), "domain": ("long",), "guards": ()}
    _, [item] = score_instruct(world, tmp_path / "out", **params)
    assert item["prompt"] == "x" * (2000 - len(end := " say a <end> <bot> ")) + end


def test_items_of_one_prompt_and_two_answers_are_two(world: World, tmp_path: Path) -> None:
    """Paired by the prompt alone, the score of one would be compared with that of the other."""
    found = []
    for number, rows in enumerate([[("say a", "a"), ("say a", "b")], [("say a", "b"), ("say a", "a")]]):
        tasks = tmp_path / str(number)
        tasks.mkdir()
        write_task(tasks, "asked", rows)
        options = {"tasks": str(tasks), "domain": ("asked",), "guards": ()}
        _, items = score_instruct(world, tmp_path / f"out{number}", **options)
        assert not any("#" in item["item"] for item in items)
        found.append({item["item"]: item["score"] for item in items})
    assert found[0] == found[1], "whatever the order of the rows"
    assert sorted(found[0].values()) == [0.0, 1.0]


def test_bfloat16_weights_are_scored_in_float32_on_a_cpu(world: World, tmp_path: Path) -> None:
    import torch

    folder = shutil.copytree(world.instruct, tmp_path / "half")
    model = open_checkpoint(world.instruct)
    (folder / "model.safetensors").unlink()
    write_checkpoint(folder, ((name, model.read(name).astype(ml_dtypes.bfloat16)) for name in model.names))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    expected = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    assert {parameter.dtype for parameter in load_folder(folder).parameters()} == {expected}
