"""KL to the Instruct on its own answers: exactly 0 for itself, against sums over a vocabulary by hand, as a bound."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate, kl, load_folder, load_grafted, open_bench, open_engine
from shadowft_core.evaluate.engines.following import next_logprobs
from shadowft_core.evaluate.kl import Own, Reference, divergence, lower_bound, refer
from shadowft_core.grafting import ONTO_BASE, Options, graft
from shadowft_core.params import Evaluate
from tests.fixtures.evaluation import World, read_arm, score_instruct, write_task
from tests.fixtures.serving import served

ALL = {"kl_answers": 64}
ONTO = Options(waivers=(ONTO_BASE,))


def measured(world: World, params: Evaluate, scales: list[float], delta: Path | None = None) -> list[dict[str, Any]]:
    """The entry `kl` of the Instruct with the delta at each scale; None stands for the Instruct itself."""
    with (
        open_bench(world.instruct, world.data, params, params.domain, params.guards) as bench,
        open_engine(world.instruct, bench.tokenizer, params) as engine,
    ):
        with engine.arm([], Options()) as arm:
            reference = refer(bench, arm, params.kl_answers)
            found = [reference.against(arm.lm)]
        for scale in scales:
            with engine.arm([(delta or world.delta, scale)], ONTO) as arm:
                found.append(reference.against(arm.lm))
    return found


def by_hand(world: World, items: list[dict[str, Any]], scale: float) -> dict[str, list[float]]:
    """KL at every token of the Instruct's answers and after them, by task: token by token, in torch."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.instruct)
    before, (after, _) = load_folder(world.instruct), load_grafted(world.instruct, [(world.delta, scale)], ONTO)

    def last(model: Any, ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)

    found: dict[str, list[float]] = {}
    for item in items:
        prompt = tokenizer.encode(item["prompt"], add_special_tokens=False)
        answer: list[int] = []
        while len(answer) < 3 and (token := int(last(before, prompt + answer).argmax())) != tokenizer.eos_token_id:
            answer.append(token)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        answer = tokenizer.encode(text, add_special_tokens=False)
        for end in range(len(answer) + 1):
            p, q = (last(model, prompt + answer[:end]) for model in (before, after))
            found.setdefault(item["task"], []).append(float((p.exp() * (p - q)).sum()))
    return found


def test_the_value_is_that_of_a_sum_by_hand(world: World, half: Path, tmp_path: Path) -> None:
    _, items = score_instruct(world, tmp_path / "instruct")
    evaluate(world.instruct, world.data, world.delta, half, "shadow", world.params(kl_answers=10), tmp_path / "out")
    chosen = sorted(items, key=lambda item: item["item"])[:10]
    for arm, scale in {"shadow": 1.0, "shadow_scaled": 0.5}.items():
        found = read_arm(tmp_path / "out" / arm)[0]["kl"]
        expected = by_hand(world, chosen, scale)
        values = [value for of_task in expected.values() for value in of_task]
        assert (found["answers"], found["tokens"], found["of_tokens"]) == (10, len(values), len(values))
        assert found["mean"] == pytest.approx(sum(values) / len(values), rel=1e-4)
        assert found["max"] == pytest.approx(max(values), rel=1e-4)
        assert found["prompts"] == "generate"
        for task, of_task in expected.items():
            assert found["tasks"][task]["mean"] == pytest.approx(sum(of_task) / len(of_task), rel=1e-4)
            assert found["tasks"][task]["tokens"] == len(of_task)
        assert sum(part["answers"] for part in found["tasks"].values()) == 10
        assert found["mean"] > 0.01


def test_the_instruct_has_exactly_0(world: World, tmp_path: Path) -> None:
    scores, items = score_instruct(world, tmp_path / "out", **ALL)
    assert (scores["kl"]["mean"], scores["kl"]["max"]) == (0, 0)
    assert scores["kl"]["answers"] == len(items) == 26


def test_scale_0_has_exactly_0_and_a_larger_scale_more(world: World, tmp_path: Path) -> None:
    means = [found["mean"] for found in measured(world, world.params(**ALL), [0, 0.25, 0.5, 1])]
    assert means[:2] == [0, 0]
    assert means[1:] == sorted(set(means[1:]))
    graft(world.instruct, [(world.delta, 0.0)], tmp_path / "zero", ONTO)
    evaluate(
        world.instruct,
        world.data,
        world.delta,
        tmp_path / "zero",
        "shadow",
        world.params(**ALL),
        tmp_path / "out",
    )
    assert read_arm(tmp_path / "out/shadow_scaled")[0]["kl"]["max"] == 0
    assert read_arm(tmp_path / "out/shadow")[0]["kl"]["mean"] == means[-1]


def test_the_same_arm_twice_gives_the_same_number(world: World) -> None:
    params = world.params(kl_answers=5)
    assert measured(world, params, [0.5]) == measured(world, params, [0.5])


def test_two_processes_give_the_same_numbers(world: World) -> None:
    params = world.params(kl_answers=12)
    two = params.model_copy(update={"engine": params.engine.model_copy(update={"devices": 2})})
    assert measured(world, two, [0, 0.5]) == measured(world, params, [0, 0.5])


def test_0_answers_switch_it_off(world: World, tmp_path: Path) -> None:
    assert score_instruct(world, tmp_path / "out", kl_answers=0)[0]["kl"] is None


def test_without_a_task_that_generates_the_prompts_are_answered(world: World) -> None:
    """Of a context of 32 tokens, half are for the answer."""
    params = world.params(domain=("heldout",), guards=("choice",), **ALL)
    untouched, found = measured(world, params, [1])
    assert (untouched["mean"], found["prompts"], set(found["tasks"])) == (0, "likelihood", {"heldout", "choice"})
    assert found["answers"] == 5 + 13
    assert found["tokens"] > found["answers"]  # every answer has a token, and an end
    assert found["mean"] > 0


def test_prompts_without_room_for_an_answer_are_said_to_be_not_measured(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    write_task(tasks, "long", [("say " + "a " * 20, "a")])
    task = (tasks / "long.yaml").read_text().partition("generation_kwargs")[0]
    (tasks / "long.yaml").write_text(task.replace("generate_until", "loglikelihood"))
    scores, _ = score_instruct(world, tmp_path / "out", tasks=str(tasks), domain=("long",), guards=(), **ALL)
    assert "leaves room" in scores["kl"]["not_measured"]
    assert "KL to the Instruct is not measured" in capfd.readouterr().err


def test_memory_is_bounded_by_tokens_at_equal_distances(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    [full, _] = measured(world, world.params(**ALL), [1])
    monkeypatch.setattr(kl, "BYTES", 20 * 33 * 4)  # 20 rows of a vocabulary of 33
    [_, found] = measured(world, world.params(**ALL), [1])
    assert (found["tokens"], found["of_tokens"]) == (20, full["tokens"])
    assert found["mean"] > 0


class Spy:
    """A stand-in for a model with two tokens: records where it is asked."""

    def __init__(self, value: float = 0) -> None:
        self.value, self.asked = value, list[Any]()

    def next_logprobs(self, asked: Any) -> Any:
        self.asked.append([at for _, at in asked])
        return [(number, np.full((len(at), 2), self.value, dtype=np.float32)) for number, (_, at) in enumerate(asked)]


def test_the_tokens_compared_are_spread_over_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl, "BYTES", 5 * 8)
    spy = Spy()
    answers = [Own("t", tuple(range(40)), tuple(range(start, start + 10))) for start in (3, 20)]
    found = Reference(spy, answers, "generate").against(spy)
    assert spy.asked[1:] == [[(5, 9), (20, 24, 28)]] * 2  # every fourth of 20, from the third
    assert (found["tokens"], found["of_tokens"], found["mean"]) == (5, 20, 0)


def test_rows_of_a_model_are_its_log_softmax(world: World) -> None:
    import torch

    model = load_folder(world.instruct)
    ids = [1, 5, 7, 3, 2]
    rows = next_logprobs(model, ids, [1, 4])
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    assert np.allclose(rows, expected[[1, 4]].numpy(), atol=1e-5, rtol=0)  # a product of fewer rows rounds differently
    assert rows.dtype == np.float32


def test_divergence_by_hand() -> None:
    with np.errstate(divide="ignore"):
        p = np.log(np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]))
    q = np.log(np.array([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]))
    found = divergence(p.astype(np.float32), q.astype(np.float32))
    assert found == pytest.approx([math.log(2), 0], abs=1e-6)
    assert found[1] == 0


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_an_arm_that_rules_out_a_token_is_an_error(value: float) -> None:
    reference = Reference(Spy(), [Own("t", (1, 2), (0, 1))], "generate")
    with pytest.raises(EvaluationError, match=r"KL to the Instruct is (inf|nan) at a token.*kl_answers: 0"):
        reference.against(Spy(value))


@pytest.mark.parametrize("seed", range(5))
def test_a_bound_from_the_likeliest_tokens_is_a_lower_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = np.log(rng.dirichlet(np.full(50, 0.3), size=2) + 1e-12)
    exact = float(divergence(p[None].astype(np.float32), q[None].astype(np.float32))[0])
    bounds = []
    for k in (1, 5, 20, 50):
        tops = [{int(at): float(row[at]) for at in np.argsort(-row)[:k]} for row in (p, q)]
        bounds.append(lower_bound(*tops))
        assert lower_bound(tops[0], tops[0]) == 0
    assert all(0 <= bound <= exact + 1e-6 for bound in bounds)
    assert bounds[-1] == pytest.approx(exact, abs=1e-5)  # with all tokens it is the divergence
    assert bounds[2] > 0


def test_a_server_gives_a_lower_bound(world: World, low_rank: Path) -> None:
    with served(world) as (_, params):
        untouched, found = measured(world, params.model_copy(update=ALL), [1.5], low_rank)
    here = params.model_copy(update=ALL | {"engine": world.params().engine})
    exact = measured(world, here, [1.5], low_rank)[1]
    assert (untouched["mean_lower_bound"], "mean" in found) == (0, False)
    assert (found["answers"], found["tokens"]) == (exact["answers"], exact["tokens"])
    assert 0 < found["mean_lower_bound"] <= exact["mean"] + 1e-5
    assert found["mean_lower_bound"] > 0.5 * exact["mean"]  # 20 of 33 tokens are known
    assert found["tasks"]["next"]["mean_lower_bound"] <= exact["tasks"]["next"]["mean"] + 1e-5


def test_a_server_without_token_ids_is_said_to_be_not_measured(world: World, tmp_path: Path) -> None:
    with served(world, token_ids=False) as (_, params):
        evaluate(
            world.instruct,
            world.data,
            None,
            None,
            "shadow",
            params.model_copy(update=ALL),
            tmp_path / "out",
        )
    scores = json.loads((tmp_path / "out/instruct/scores.json").read_bytes())
    assert "expected token_id:NUMBER" in scores["kl"]["not_measured"]
