"""Several training seeds: they inform claims about the way of tuning, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import t as student

from shadowft_core.errors import EvaluationError
from shadowft_core.params import Thresholds
from shadowft_core.verdict import decision_of, judge, verdict
from shadowft_core.verdict.comparison import Comparison, runs_of
from shadowft_core.verdict.itemfile import verdict_of_items
from shadowft_core.verdict.scores import Arm
from shadowft_core.verdict.spread import Spread
from shadowft_core.verdict.statistics import Sample
from tests.fixtures.arms import CANDIDATE, CLEAR, PARAMS, answers, arena, arm, five

RNG = np.random.default_rng(1)


def seeded(right: dict[str, list[int]], n: int = 400) -> dict[str, Arm]:
    """Arms of which the first `right[arm][k]` of `n` items are right with the k-th seed."""
    worlds = [
        arena({name: np.arange(n) < counts[k] for name, counts in right.items() if k < len(counts)}) for k in range(3)
    ]
    return {
        name: replace(
            first,
            seed=None if name == "instruct" else 7,
            further=tuple(
                replace(world[name], seed=8 + k, model_digest=f"{name} {k}")
                for k, world in enumerate(worlds[1:])
                if name in world
            ),
        )
        for name, first in worlds[0].items()
    }


LUCKY = {"instruct": [40], "direct": [200, 210, 190], "direct_scaled": [220, 225, 215], "shadow": [300, 205, 200]}
LUCKY |= {"shadow_scaled": [320, 215, 210]}  # the graft of the first seed was lucky


def of(found: dict[str, Any], **fields: Any) -> dict[str, Any]:
    [claim] = [c for c in found["claims"] if all(c[name] == value for name, value in fields.items())]
    return claim


def test_the_gate_is_that_of_the_first_seed() -> None:
    several = judge(seeded(LUCKY), PARAMS, candidate=CANDIDATE)
    alone = judge(arena(five(CLEAR)), PARAMS, candidate=CANDIDATE)
    gates = [[c for c in found["claims"] if c["gate"]] for found in (several, alone)]
    assert gates[0] == gates[1]
    assert several["decision"] == alone["decision"] == decision_of(several) == "promote"
    assert {name: arm["domain"] for name, arm in several["arms"].items()} == {
        name: arm["domain"] for name, arm in alone["arms"].items()
    }


def test_a_lucky_first_seed_proves_nothing_about_the_way_of_tuning() -> None:
    several = judge(seeded(LUCKY), PARAMS, candidate=CANDIDATE)
    claim = of(several, against="direct_scaled", gate=False)
    assert (claim["outcome"], claim["by_seed"]) == ("too few items", {"7": 0.25, "8": -0.025, "9": -0.0125})
    assert claim["difference"] == pytest.approx((0.25 - 0.025 - 0.0125) / 3)
    assert claim["items_needed"] is None
    assert claim["reason"].startswith(
        "domain, mean of 3 seeds: shadow_scaled 0.621 against direct_scaled 0.550, +0.071 ["
    )
    assert claim["reason"].endswith(": too few items (400 items and 3 seeds; more of both would tell)")
    alone = of(judge(arena(five(CLEAR)), PARAMS, candidate=CANDIDATE), against="direct_scaled", gate=False)
    assert (alone["outcome"], alone["by_seed"]) == ("better", None)
    told = (
        "domain: shadow_scaled by seed: seed 7 0.800, seed 8 0.537, seed 9 0.525; the first is judged, because it ships"
    )
    assert told in several["reasons"]
    assert [run["seed"] for run in several["arms"]["shadow"]["seeds"]] == [7, 8, 9]
    assert several["arms"]["instruct"]["seeds"] is None


def test_three_seeds_that_agree_prove_the_way_of_tuning() -> None:
    agree = LUCKY | {"shadow": [300, 290, 310], "shadow_scaled": [320, 310, 330]}
    claim = of(judge(seeded(agree), PARAMS, candidate=CANDIDATE), against="direct_scaled", gate=False)
    assert claim["outcome"] == "better"


def test_a_claim_that_is_required_gates_on_the_first_seed_and_is_pooled_beside() -> None:
    params = PARAMS.model_copy(update={"require": ("shadow_scaled > direct_scaled",)})
    several = judge(seeded(LUCKY), params, candidate=CANDIDATE)
    alone = judge(arena(five(CLEAR)), params, candidate=CANDIDATE)
    gates = [of(found, against="direct_scaled", gate=True) for found in (several, alone)]
    assert gates[0] == gates[1], "neither the claim nor its adjustment depends on further seeds"
    assert (several["decision"], gates[0]["outcome"]) == ("promote", "better")
    assert of(several, against="direct_scaled", gate=False)["outcome"] == "too few items"
    unlucky = LUCKY | {"shadow_scaled": [215, 320, 330]}
    assert judge(seeded(unlucky), params, candidate=CANDIDATE)["decision"] != "promote"


def test_one_seed_says_what_it_cannot_tell() -> None:
    found = judge(arena(five(CLEAR)), PARAMS, candidate=CANDIDATE)
    [said] = [reason for reason in found["reasons"] if "one seed" in reason]
    assert said == (
        "every arm was trained with one seed, which cannot tell how much of a difference between two ways of tuning is "
        "due to chance in training (train.seeds)"
    )
    assert not any("one seed" in reason for reason in judge(seeded(LUCKY), PARAMS, candidate=CANDIDATE)["reasons"])


def test_arms_with_other_numbers_of_seeds_are_compared_by_their_first() -> None:
    arms = seeded(LUCKY | {"direct_scaled": [220]})
    assert len(runs_of(arms["shadow"], arms["direct_scaled"])) == 1
    assert [(a.seed, b.seed) for a, b in runs_of(arms["shadow"], arms["instruct"])] == [(7, None), (8, None), (9, None)]
    found = judge(arms, PARAMS, candidate=CANDIDATE)
    assert of(found, against="direct_scaled", gate=False)["by_seed"] is None
    assert any(reason.startswith("direct_scaled was trained with one seed, which ") for reason in found["reasons"])


def test_the_pooled_interval_by_hand() -> None:
    """Three seeds, two tasks; both parts of the variance and the weighted quantile, written out."""
    d = [answers(RNG, 60, 0.6) - answers(RNG, 60, 0.4) for _ in range(6)]
    tasks = [np.mean(d[:3], axis=0), np.mean(d[3:], axis=0)]
    by_seed = [(d[k].mean() + d[3 + k].mean()) / 2 for k in range(3)]
    sample = Sample(tasks, [(-1.0, 1.0)] * 2, seeds=by_seed)
    alone = Sample(tasks, [(-1.0, 1.0)] * 2)
    m = 120
    between = np.var(by_seed, ddof=1) / 3
    of_items = sum(np.var(task, ddof=1) * 60 for task in tasks) / m**2  # of the unpadded mean
    shift = sample.mean * m / (m + 4)
    second = of_items * m * m + m * (sample.mean - shift) ** 2 + 2 * (1 - shift) ** 2 + 2 * (1 + shift) ** 2
    items = second / (m + 4) ** 2
    quantile = (items * student.ppf(0.975, m + 3) + between * student.ppf(0.975, 2)) / (items + between)
    half = quantile * np.sqrt(items + between)
    assert sample.interval(0.95) == pytest.approx((shift - half, shift + half))
    assert half > 1.2 * (alone.interval(0.95)[1] - alone.interval(0.95)[0]) / 2
    assert sample.p_above(shift - half) == pytest.approx(0.025, abs=0.003)


@pytest.mark.parametrize("parts", [[(1.0, 100.0), (1.0, 2.0)], [(1e-9, 300.0), (1.0, 1.0)], [(1.0, 5.0), (0.0, 2.0)]])
@pytest.mark.parametrize("t", [-2.0, 0.0, 0.1, 2.0, 30.0, 1e4])
def test_p_value_is_the_inverse_of_the_quantile(parts: list[tuple[float, float]], t: float) -> None:
    spread = Spread(parts)
    assert -spread.quantile(spread.p_value(t)) == pytest.approx(t, rel=1e-6)


def test_items_of_several_seeds_in_one_file(tmp_path: Path) -> None:
    rows = []
    for name, seeds in {"instruct": [(0, 40)], "direct": [(0, 200), (1, 210)], "mine": [(5, 320), (6, 190)]}.items():
        for seed, right in seeds:
            rows += [
                {"suite": "domain", "task": "t", "item_id": i, "arm": name, "seed": seed, "score": float(i < right)}
                for i in range(400)
            ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    found = verdict_of_items(tmp_path / "items.parquet", "mine", PARAMS, tmp_path / "v.json")
    assert of(found, against="direct", gate=False)["by_seed"] == {
        "5/0": pytest.approx(0.3),
        "6/1": pytest.approx(-0.05),
    }
    assert (found["decision"], of(found, gate=True)["difference"]) == ("promote", pytest.approx(0.7))
    assert "domain: mine by seed: seed 5 0.800, seed 6 0.475; the first is judged, because it ships" in found["reasons"]


def write_scores(folder: Path, one: Arm, scale: float = 1.0) -> None:
    folder.mkdir(parents=True)
    lines = [
        {"task": task, "item": item, "score": score}
        for task, items in one.scores.items()
        for item, score in items.items()
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = {
        task: {
            "role": role,
            "metric": "acc",
            "n": len(one.scores[task]),
            "mean": np.mean(list(one.scores[task].values())),
        }
        for task, role in one.roles.items()
    }
    head = {
        "format": 1,
        "arm": one.name,
        "scale": scale,
        "model_digest": one.model_digest,
        "template_digest": "template",
    }
    (folder / "scores.json").write_text(json.dumps(head | {"tasks": tasks}))


def write_run(work: Path, further: list[int]) -> None:
    """Score folders of Instruct, shadow and direct, and of further seeds."""
    for name, right in CLEAR.items():
        group = name.removesuffix("_scaled")
        one = arm(name, {"skill": ("domain", (np.arange(400) < right).astype(float))})
        write_scores(work / "scores" / group / name, one)
        if group == "instruct":
            continue
        for seed in further:
            less = replace(arm(name, {"skill": ("domain", (np.arange(400) < right - 10 * seed).astype(float))}))
            write_scores(work / "seeds" / group / str(seed) / name, replace(less, model_digest=f"{name} {seed}"))
        told = {"format": 1, "route": group, "first": 0, "further": [{"seed": seed} for seed in further]}
        (work / "seeds" / group).mkdir(parents=True, exist_ok=True)
        (work / "seeds" / group / "seeds.json").write_text(json.dumps(told))


def judged(work: Path) -> dict[str, Any]:
    return verdict(
        work / "scores", [], ["shadow", "direct"], PARAMS, work / "v.json", candidate=CANDIDATE, seeds=work / "seeds"
    )


def test_score_folders_of_further_seeds_are_read(tmp_path: Path) -> None:
    write_run(tmp_path, [1, 2])
    found = judged(tmp_path)
    assert of(found, against="direct", gate=False)["by_seed"] == {"0": 0.3, "1": 0.3, "2": 0.3}
    assert [run["domain"] for run in found["arms"]["shadow_scaled"]["seeds"]] == [0.8, 0.775, 0.75]


def test_without_further_seeds_the_verdict_is_that_of_one(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    found = judged(tmp_path)
    one = verdict(tmp_path / "scores", [], ["shadow", "direct"], PARAMS, tmp_path / "v.json", candidate=CANDIDATE)
    assert found == one


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: (w / "seeds/shadow/seeds.json").unlink(), r"seeds/shadow/seeds.json: no such file; .*run the stage"),
        (lambda w: (w / "seeds/shadow/seeds.json").write_text("{}"), r"format is missing; .*`shadowft seeds`"),
        (lambda w: (w / "seeds/direct/1/direct/items.jsonl").unlink(), r"seeds/direct/1/direct/items.jsonl: no such"),
    ],
)  # fmt: skip
def test_a_seed_that_is_missing_is_named(tmp_path: Path, damage: Any, message: str) -> None:
    write_run(tmp_path, [1])
    damage(tmp_path)
    with pytest.raises(EvaluationError, match=message):
        judged(tmp_path)


def test_a_seed_at_another_scale_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, [1])
    path = tmp_path / "seeds/shadow/1/shadow_scaled/scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scale": 0.5}))
    with pytest.raises(
        EvaluationError, match=r"scores.json: scale is 0.5, that of the first seed is 1.0; run `shadowft"
    ):
        judged(tmp_path)


@pytest.mark.parametrize("name", ["instruct", "champion", "best_champion", "direct"])
def test_only_a_model_that_was_not_trained_here_stands_beside_every_seed(name: str) -> None:
    tasks = {"skill": ("domain", np.zeros(3))}
    one, two, single = arm("shadow", tasks), arm("shadow", tasks), arm(name, tasks)
    several = replace(one, further=(two,))
    expected = [(several, single)] if name == "direct" else [(several, single), (two, single)]
    assert runs_of(several, single) == expected
    assert runs_of(single, several) == [(second, first) for first, second in expected]


def test_the_differences_of_seeds_are_in_the_unit_of_their_mean() -> None:
    both = {}
    for name, gain in (("instruct", 0.0), (CANDIDATE, 0.1)):
        first, second = (
            replace(
                arm(name, {"skill": ("domain", answers(RNG, 50, 0.5)), "text": ("domain", RNG.normal(gain, 1, 50))}),
                metrics={"skill": "acc", "text": "nats"},
                seed=seed,
            )
            for seed in (0, 1)
        )
        both[name] = replace(first, further=(second,))
    params = PARAMS.model_copy(update={"metrics": {"nats": Thresholds(margin=0.2, margin_each=0.3, worthwhile=0.5)}})
    found = Comparison(both, CANDIDATE, "instruct", ["skill", "text"], params, "worthwhile", pooled=True)
    assert found.in_units
    assert np.mean(list(found.by_seed.values())) == pytest.approx(found.difference)
