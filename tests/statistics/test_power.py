"""Whether `shadowft power` tells how often the gate, judging simulated arms, shows a gain and lets guards pass."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from shadowft_core.verdict import judge
from shadowft_core.verdict.claims import EACH
from shadowft_core.verdict.power import Design, Spread, Task, pass_together, spread_of
from shadowft_core.verdict.statistics import Sample
from tests.fixtures.arms import CANDIDATE, arm
from tests.statistics.worlds import (
    ABLE,
    MIDDLE,
    OPEN,
    PARAMS,
    SIGN,
    answers,
    at_least,
    at_most,
    open_scale,
    passages,
)

LEVEL = 0.8 * PARAMS.alpha


def spread(difficulty: tuple[float, float]) -> Spread:
    first, second = answers(np.random.default_rng(9), 100_000, 0.0, difficulty)
    return spread_of(second - first, range(first.size), open_scale=False)


def design(sizes: Sequence[int], of: Spread, questions: int = 1) -> Design:
    return Design([Task([(task, item // questions) for item in range(n)], of) for task, n in enumerate(sizes)])


def agrees(count: int, worlds: int, told: float, what: str) -> bool:
    """Whether the 99 % interval of what was seen includes what was told."""
    above = at_least(count, worlds, told, what)
    return at_most(count, worlds, told, what) and above


def told_and_seen(
    worlds: int, items: Sequence[int], gain: float, guards: Sequence[int], difficulty: tuple[float, float]
) -> tuple[float, int]:
    """The probability that a candidate with this gain and unharmed guards is promoted, and how often `judge` did it."""
    parts = [design([n], spread(difficulty)) for n in guards]
    together = design(guards, spread(difficulty)).above(-PARAMS.margin, 0.0, PARAMS.alpha)
    alone = [part.above(-PARAMS.margin_each, 0.0, EACH) for part in parts]
    told = pass_together(alone, together, [part.deviation() / len(parts) for part in parts])
    told *= design(items, spread(MIDDLE)).better(gain, LEVEL)
    rng = np.random.default_rng(10)
    seen = 0
    for _ in range(worlds):
        tasks = {f"domain {k}": ("domain", answers(rng, n, gain)) for k, n in enumerate(items)}
        tasks |= {f"guard {k}": ("guard", answers(rng, n, 0.0, difficulty)) for k, n in enumerate(guards)}
        arms = {
            name: arm(name, {task: (role, pair[side]) for task, (role, pair) in tasks.items()})
            for side, name in enumerate(("instruct", CANDIDATE))
        }
        seen += judge(arms, PARAMS, candidate=CANDIDATE)["decision"] == "promote"
    return told, seen


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("items", "gain", "guards", "difficulty"),
    [
        ([300], 0.1, [600, 600], ABLE),
        ([1000], 0.05, [1500] * 4, MIDDLE),
        ([1000], 0.05, [300] * 4, ABLE),
        ([600], 0.05, [1500], ABLE),
        ([200, 800], 0.07, [1000, 2000], MIDDLE),
    ],
)
def test_a_verdict_promotes_as_often_as_was_told(
    items: list[int], gain: float, guards: list[int], difficulty: tuple[float, float]
) -> None:
    told, seen = told_and_seen(400, items, gain, guards, difficulty)
    mean = difficulty[0] / sum(difficulty)
    assert agrees(seen, 400, told, f"power, domain {items} {gain:+g}, guards {guards} unharmed, mean {mean}: promoted")


def test_some_verdicts_promote_as_often_as_was_told() -> None:
    told, seen = told_and_seen(60, [300], 0.1, [600, 600], ABLE)
    assert 0.3 < told < 0.9
    assert agrees(seen, 60, told, "power")


@pytest.mark.statistics
@pytest.mark.parametrize("n", [60, 200, 600])
@pytest.mark.parametrize("gain", [0.05, 0.1, 0.2])
def test_a_gain_on_one_task_is_shown_as_often_as_was_told(n: int, gain: float) -> None:
    rng, seen = np.random.default_rng(11), 0
    for _ in range(600):
        first, second = answers(rng, n, gain)
        seen += Sample([second - first], [SIGN]).p_better(999, 0) <= LEVEL
    assert agrees(seen, 600, design([n], spread(MIDDLE)).better(gain, LEVEL), f"power, domain {n} {gain:+g}: better")


@pytest.mark.statistics
@pytest.mark.parametrize(("num", "questions", "shared"), [(60, 5, 0.6), (200, 3, 0.6), (100, 10, 0.95)])
def test_clustered_guards_pass_as_often_as_was_told(num: int, questions: int, shared: float) -> None:
    rng = np.random.default_rng(12)
    cluster = np.repeat(np.arange(20_000), questions)
    p = rng.beta(*MIDDLE, 20_000)[cluster]
    scores = []
    for _ in range(2):
        common = np.sqrt(shared) * rng.normal(size=20_000)[cluster]
        scores.append((common + np.sqrt(1 - shared) * rng.normal(size=p.size) < _quantile(p)).astype(float))
    measured = spread_of(scores[1] - scores[0], cluster.tolist(), open_scale=False)
    told = design([num * questions], measured, questions).above(-0.08, 0.0, PARAMS.alpha)
    seen = sum(passages(rng, num, questions, shared).p_above(-0.08) <= PARAMS.alpha for _ in range(600))
    assert agrees(seen, 600, told, f"power, {num} passages x {questions}, margin 0.08, unharmed: passed")


def _quantile(p: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    found: np.ndarray = ndtri(p)
    return found


@pytest.mark.statistics
@pytest.mark.parametrize("shape", ["-Exp", "-lognormal(0.5)"])
@pytest.mark.parametrize("n", [100, 400])
def test_an_open_scale_passes_about_as_often_as_was_told(shape: str, n: int) -> None:
    """From the true moments and the largest difference of n items; the t statistic of a skewed scale is not normal."""
    rng = np.random.default_rng(13)
    true = spread_of(OPEN[shape](rng, 100_000), range(100_000), open_scale=True)
    largest = float(np.mean([np.abs(OPEN[shape](rng, n)).max() for _ in range(200)]))
    bound = -3.2 * (true.square / n) ** 0.5
    told = design([n], replace(true, reach=largest)).above(bound, 0.0, PARAMS.alpha)
    seen = np.mean([open_scale(rng, shape, n).p_above(bound) <= PARAMS.alpha for _ in range(600)])
    print(f"| power, {shape}, n {n}, at {bound:.3f}: passed | told {told:.3f} | seen {seen:.3f} |")
    assert abs(told - seen) < 0.1
