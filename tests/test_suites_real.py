"""Suites by name at their real prompts, on SmolLM2-135M-Instruct: the scores of the bare harness, item by item.

The benchmark files come from the folder in SHADOWFT_EVAL_DATA; none is shipped.
"""

import os
from pathlib import Path

import pytest
import yaml

from shadowft_core.demo import smollm2
from shadowft_core.errors import InputError
from shadowft_core.evaluate import evaluate
from shadowft_core.params import Evaluate, Generation
from shadowft_core.suites.catalogue import suite_of
from shadowft_core.suites.fetch import fetch_suite
from tests.fixtures.bare import bare_scores
from tests.fixtures.evaluation import NO_LIMITS, read_arm
from tests.test_suites_fetch import no_network

DATA = os.environ.get("SHADOWFT_EVAL_DATA", "")
ITEMS, TOKENS = 20, 96  # of each task, and of an answer at most: a longer one costs a minute of a core
SUBJECTS = ("astronomy", "college_physics", "marketing", "world_religions")
BARE = {  # suite: the names to evaluate, and of each task the file, metric and filter of the harness
    "gsm8k": (("gsm8k",), {"gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", "exact_match", "strict-match")}),
    "mmlu": (
        tuple(f"mmlu_{name}" for name in SUBJECTS),
        {f"mmlu_{name}": (f"mmlu/default/mmlu_{name}.yaml", "acc", "none") for name in SUBJECTS},
    ),
    "arc": (("arc",), {name: (f"arc/{name}.yaml", "acc", "none") for name in ("arc_easy", "arc_challenge")}),
    "truthfulqa": (
        ("truthfulqa",),
        {name: (f"truthfulqa/{name}.yaml", "acc", "none") for name in ("truthfulqa_mc1", "truthfulqa_mc2")},
    ),
}


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not DATA, reason="SHADOWFT_EVAL_DATA is not set: the folder with the public copies of benchmarks"
    ),
]


@pytest.fixture(scope="module")
def instruct() -> Path:
    try:
        return smollm2.resolve("smollm2:instruct")[0]
    except InputError as error:  # the package with the model is not installed
        pytest.skip(str(error))


@pytest.mark.parametrize("name", list(BARE))
def test_real_items_score_as_in_the_bare_harness(name: str, instruct: Path, tmp_path: Path) -> None:
    names, tasks = BARE[name]
    fetch_suite(suite_of(name), tmp_path / "tasks" / "suites", Path(DATA), no_network)
    params = Evaluate(tasks=str(tmp_path / "tasks"), domain=names, limit=ITEMS, batch_size=8, kl_answers=0)
    params = params.model_copy(update={"limits": NO_LIMITS, "generation": Generation(max_tokens=TOKENS)})
    evaluate(instruct, tmp_path, None, None, "instruct", params, tmp_path / "out")
    scores, items = read_arm(tmp_path / "out" / "instruct")
    asked = {task: about["n"] + about["counts"]["copies"] for task, about in scores["tasks"].items()}
    assert asked == dict.fromkeys(tasks, ITEMS)  # MMLU has a question of college physics twice
    for task, (file, metric, filtered) in tasks.items():
        folder = next((tmp_path / "tasks").rglob(f"{task}.yaml")).parent
        written = yaml.safe_load((folder / f"{task}.yaml").read_text())
        data = {split: str(folder / path) for split, path in written["dataset_kwargs"]["data_files"].items()}
        of_task = [item for item in items if item["task"] == task]
        ours = sorted((item["prompt"], item["score"]) for item in of_task for _ in range(item["copies"]))
        shots = {"num_fewshot": written["num_fewshot"]}
        assert ours == bare_scores(instruct, file, data, metric, ITEMS, filtered, TOKENS, **shots)


def test_real_programs_are_judged_in_the_sandbox(instruct: Path, tmp_path: Path) -> None:
    fetch_suite(suite_of("humaneval"), tmp_path / "tasks" / "suites", Path(DATA), no_network)
    params = Evaluate(
        tasks=str(tmp_path / "tasks"),
        domain=("humaneval",),
        limit=ITEMS,
        batch_size=8,
        kl_answers=0,
        limits=NO_LIMITS,
        allow_code_execution=True,
        generation=Generation(max_tokens=TOKENS),
    )
    evaluate(instruct, tmp_path, None, None, "instruct", params, tmp_path / "out")
    scores, items = read_arm(tmp_path / "out" / "instruct")
    assert scores["tasks"]["humaneval"]["n"] == len(items) == ITEMS
    assert {item["score"] for item in items} <= {0.0, 1.0}
    assert any(item["parsed"] for item in items)  # SmolLM2 writes Python, right or wrong
