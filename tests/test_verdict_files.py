"""The verdict stage on folders: the bytes it writes, and the damaged scores it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.verdict import judge, numbers, verdict
from shadowft_core.verdict.scores import Arm, read_arms
from shadowft_core.verdict.verdictfile import read_verdict
from tests.fixtures.arms import ARMS, CLEAR, PARAMS, arena, arm, five

RECIPE = "sha256:" + "c" * 64


def write_arm(folder: Path, a: Arm, digest: str) -> None:
    folder.mkdir(parents=True)
    items = [
        {"task": task, "item": item, "score": score, "output": "caf\u00e9 \u2028 line"}
        for task, scores in a.scores.items()
        for item, score in scores.items()
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items), "utf-8")
    tasks = {
        task: {"role": a.roles[task], "metric": "acc", "n": len(s), "mean": float(np.mean(list(s.values())))}
        for task, s in a.scores.items()
    }
    head = {"format": 1, "arm": a.name, "scale": a.scale, "model_digest": digest, "label": "", "tasks": tasks}
    (folder / "scores.json").write_text(json.dumps(head | {"template_digest": a.template_digest}))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name, a in arena(five(CLEAR, 100)).items():
        write_arm(tmp_path / "scores" / name.split("_")[0] / name, a, RECIPE if name == "shadow_scaled" else name)
    (tmp_path / "recipe.json").write_text(json.dumps({"format": 1, "digest": RECIPE}))
    return tmp_path


def run(work: Path, routes: tuple[str, ...] = ("shadow", "direct")) -> Path:
    out = work / "verdict.json"
    verdict(work / "scores", [work / "recipe.json"], list(routes), PARAMS, out)
    return out


def test_the_same_scores_give_the_same_bytes(work: Path) -> None:
    first = run(work).read_bytes()
    assert run(work, ("direct", "shadow")).read_bytes() == first
    found = json.loads(first)
    assert found["recipe_digest"] == RECIPE
    assert found["candidate"] == "shadow_scaled"
    assert set(found["arms"]) == set(ARMS)


def test_a_route_that_was_switched_off_is_not_read(work: Path) -> None:
    (work / "scores/direct/direct/scores.json").write_text("{")
    assert json.loads(run(work, ("shadow",)).read_bytes())["direct_control"] is False


def test_scores_of_another_model_are_refused(work: Path) -> None:
    (work / "recipe.json").write_text(json.dumps({"digest": "sha256:" + "d" * 64}))
    with pytest.raises(EvaluationError, match=f"sha256:{'d' * 64}.*sha256:{'c' * 64}"):
        run(work)
    assert not (work / "verdict.json").exists()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_arms_measured_differently_are_refused(work: Path) -> None:
    edit(work / "scores/direct/direct/scores.json", template_digest="another")
    with pytest.raises(EvaluationError, match=r"'direct' and arm 'instruct'.*template_digest is another and template"):
        run(work)


def test_a_missing_item_is_refused_by_name(work: Path) -> None:
    path = work / "scores/shadow/shadow/items.jsonl"
    path.write_text(path.read_text("utf-8").replace('"000007"', '"ffffff"', 1), "utf-8")
    with pytest.raises(EvaluationError, match=r"'shadow'.*'skill': 2 differ, such as 000007, ffffff"):
        run(work)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json\n", r"items.jsonl:501: .*Invalid JSON"),
        ('{"task": "skill", "item": "x", "score": NaN}\n', r"items.jsonl:501: .*score"),
        ('{"task": "other", "item": "x", "score": 1}\n', r"items.jsonl:501: task 'other' is not in scores.json"),
        ('{"task": "skill", "item": "x", "score": 1}\n', r"'skill' has 101 items .* scores.json has 100"),
    ],
)
def test_damaged_items_are_refused(work: Path, line: str, message: str) -> None:
    with (work / "scores/instruct/instruct/items.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(EvaluationError, match=message) as error:
        run(work)
    assert "\n" not in str(error.value)


def test_a_missing_arm_is_refused(work: Path) -> None:
    (work / "scores/direct/direct_scaled/scores.json").unlink()
    with pytest.raises(EvaluationError, match=r"direct_scaled/scores.json: no such file; "):
        run(work)


def test_an_item_that_is_twice_in_a_task_counts_once(work: Path) -> None:
    for path in (work / "scores").glob("*/*/items.jsonl"):
        first = path.read_text("utf-8").split("\n", 1)[0]
        with path.open("a", encoding="utf-8") as file:
            file.write(first + "\n")
        head = json.loads(path.with_name("scores.json").read_text())
        skill = head["tasks"]["skill"]
        skill["mean"] = (skill["mean"] * skill["n"] + json.loads(first)["score"]) / (skill["n"] + 1)
        skill["n"] += 1
        edit(path.with_name("scores.json"), tasks=head["tasks"])
    assert len(read_arms(work / "scores", ["shadow", "direct"])["instruct"].scores["skill"]) == 100


def test_score_folders_with_exchanged_names_are_refused(work: Path) -> None:
    one, other = work / "scores/shadow/shadow", work / "scores/shadow/shadow_scaled"
    one.rename(work / "aside")
    other.rename(one)
    (work / "aside").rename(other)
    with pytest.raises(EvaluationError, match=r"arm is 'shadow_scaled', expected 'shadow'"):
        run(work)


def test_missing_items_are_refused_even_with_the_same_mean(work: Path) -> None:
    path = work / "scores/instruct/instruct/items.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    general = [row for row in rows if row["task"] == "general"]
    assert len({row["score"] for row in general}) == 1
    kept = [row for row in rows if row is not general[-1]]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    with pytest.raises(EvaluationError, match=r"'general' has 399 items .*scores.json has 400 "):
        run(work)


@pytest.mark.parametrize(("field", "value"), [("role", "guard"), ("metric", "exact_match")])
def test_a_task_has_one_role_and_one_metric(work: Path, field: str, value: str) -> None:
    path = work / "scores/direct/direct/scores.json"
    tasks = json.loads(path.read_text())["tasks"]
    tasks["skill"][field] = value
    edit(path, tasks=tasks)
    with pytest.raises(EvaluationError, match=f"were measured differently: {field}s is "):
        run(work)


CLAIM = {
    **{"claim": "superiority", "arm": "a", "against": "b", "role": "domain", "tasks": ["t"], "n": 1, "reason": "r"},
    **{"difference": 0.1, "interval": [0.0, 0.1], "p": 0.1, "p_adjusted": 0.1, "outcome": "better"},
    **{"items_needed": None, "by_task": {"t": 0.1}},
}
NO_ARM = {"scale": None, "domain": None, "guards": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 3}, "format: Input should be 1 or 2"),
        ({"decision": "ship"}, "decision: Input should be 'promote'"),
        ({"claims": [CLAIM] * 10_001}, "claims: .*at most 10000 items"),
        ({"claims": [CLAIM | {"difference": 1e308}]}, r"claims\.0\.difference: .*found 1e\+308"),
        ({"claims": [CLAIM | {"interval": [0, -1e308]}]}, r"claims\.0\.interval\.1: .*found -1e\+308"),
        ({"claims": [CLAIM | {"by_task": {"t": 1e308}}]}, r"claims\.0\.by_task\.t: .*found 1e\+308"),
        ({"claims": [CLAIM | {"n": -1}]}, r"claims\.0\.n: .*found -1"),
        ({"claims": [CLAIM | {"n": True}]}, r"claims\.0\.n: .*found True"),
        ({"arms": {str(n): NO_ARM for n in range(1001)}}, "arms: .*at most 1000 items"),
        ({"arms": {"a": NO_ARM | {"domain": {"mean": 0, "interval": [0], "n": 1}}}}, r"field .*interval\.1 is missing"),
        ({"candidate": "x" * 301}, "candidate: .*at most 300"),
    ],
)
def test_a_verdict_that_was_edited_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    whole = {"format": 2, "candidate": None, "decision": "hold", "reasons": [], "direct_control": False}
    whole |= {"claims": [CLAIM], "arms": {"a": NO_ARM}}
    (tmp_path / "verdict.json").write_text(json.dumps(whole))
    assert read_verdict(tmp_path / "verdict.json") == whole
    (tmp_path / "verdict.json").write_text(json.dumps(whole | change))
    with pytest.raises(EvaluationError, match=rf"verdict\.json: {said}"):
        read_verdict(tmp_path / "verdict.json")


def test_the_metrics_are_the_numbers_of_the_verdict(work: Path) -> None:
    out, metrics = work / "verdict.json", work / "metrics.json"
    verdict(work / "scores", [work / "recipe.json"], ["shadow", "direct"], PARAMS, out, metrics)
    written, judged = json.loads(metrics.read_bytes()), json.loads(out.read_bytes())
    assert written == {
        "scale": judged["arms"]["shadow_scaled"]["scale"],
        "worst_guard": 0.0,
        **{f"{group}.{arm}": judged["arms"][arm][group]["mean"] for arm in ARMS for group in ("domain", "guards")},
    }


def test_the_metrics_leave_out_what_was_not_measured() -> None:
    items = {"skill": ("domain", np.arange(40) % 2.0)}
    bare = judge({name: arm(name, items) for name in ("instruct", "shadow_scaled")}, PARAMS, candidate="shadow_scaled")
    assert set(numbers(bare)) == {"scale", "domain.instruct", "domain.shadow_scaled"}
