"""`shadowft power`: what the items of a run can decide, and the warnings of `prepare` and `plan`."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from shadowft_core.errors import EvaluationError, InputError
from shadowft_core.params import Params, Store, Verdict, load_params
from shadowft_core.power import power
from shadowft_core.power.spreads import Spreads
from shadowft_core.promotion.looks import ItemSet, Looks
from shadowft_core.report.power import figure, plot
from shadowft_core.suites import Rows, rows_of
from shadowft_core.verdict.claims import EACH
from shadowft_core.verdict.power import Design, Spread, Task, assumed_spread, pass_together, spread_of, too_few
from shadowft_core.verdict.statistics import Sample
from shadowft_core.weights import open_checkpoint
from tests.fixtures.arms import CLEAR, arena, five
from tests.fixtures.cli import Shadowft
from tests.fixtures.evaluation import World, write_task
from tests.fixtures.marks import panels
from tests.test_verdict_files import write_arm

ROOT = Path(__file__).parent.parent
SIGN = (-1.0, 1.0)


def design(n: int, spread: Spread | None = None, copies: int = 1, **task: Any) -> Design:
    return Design([Task([item // copies for item in range(n)], spread or Spread(0.25), **task)])


def settings(world: World, tmp_path: Path, **verdict: Any) -> Params:
    sections = {
        "routes": {"shadow": {"model": "base"}},
        "fetch": {"base": "x", "instruct": "y"},
        "prepare": {"data": "-"},
        "train": {},
        "graft": {},
        "sweep": {"domain": ["next_dev"], "guards": ["say_dev"]},
        "evaluate": world.params().model_dump(),
        "verdict": verdict,
        "store": {"uri": str(tmp_path / "store")},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(sections))))
    return Params.model_validate(sections)


def test_more_items_and_larger_gains_are_shown_more_often() -> None:
    for kind in (None, Spread(0.25, "share"), assumed_spread(worthwhile=0.05)):
        by_items = [design(n, kind).better(0.05, 0.04) for n in (50, 200, 800, 3200)]
        by_gain = [design(400, kind).better(gain, 0.04) for gain in (0.0, 0.02, 0.05, 0.1)]
        assert by_items == sorted(by_items)
        assert by_gain == sorted(by_gain)
        assert by_gain[0] <= 0.04
        assert by_items[-1] > 0.99


def test_what_is_needed_and_the_smallest_gain_are_the_power_turned_round() -> None:
    for kind in (None, Spread(0.2, "share"), assumed_spread(worthwhile=0.05)):
        own = design(500, kind)
        least = own.smallest_gain(0.04)
        assert least is not None
        assert own.better(least, 0.04) == pytest.approx(0.8, abs=0.01)
        needed = own.needed_to_show(least, 0.04)
        assert needed is not None
        assert 470 <= needed <= 530
    assert design(500).needed_to_show(0.05, 0.04) == pytest.approx(design(50).needed_to_show(0.05, 0.04), rel=0.01)
    assert design(500, Spread(0.01, room=0.02)).needed_to_show(0.05, 0.04) is None
    assert design(10, Spread(0.3, room=0.2)).smallest_gain(0.04) is None


@pytest.mark.parametrize("spread", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("effect", [0.03, 0.05, 0.1])
def test_the_items_needed_agree_with_those_of_the_verdict(spread: float, effect: float) -> None:
    """Of differences that are 1, -1 and 0 as the spread says, `items_to_detect` of the gate asks for about as many."""
    n, half = 2000, round(1000 * spread)
    differences = np.array([1.0] * half + [-1.0] * half + [0.0] * (n - 2 * half))
    told = Sample([differences], [SIGN]).items_to_detect(effect, EACH)
    planned = design(n, Spread(spread)).needed_to_pass(effect, EACH, 0.8)
    assert planned == pytest.approx(told, rel=0.05)


def test_items_of_one_subject_count_for_less() -> None:
    apart, copies = design(600), design(600, Spread(0.25, together=1.0), copies=6)
    assert copies.clusters == 100
    assert copies.deviation() == pytest.approx(design(100).deviation())
    assert design(600, Spread(0.25, together=0.0), copies=6).deviation() == pytest.approx(apart.deviation())
    assert copies.better(0.05, 0.04) < design(600, copies=6).better(0.05, 0.04) < apart.better(0.05, 0.04)


def test_the_spread_of_scores_is_that_without_their_gain() -> None:
    rng = np.random.default_rng(0)
    wins, losses = np.ones(300), -np.ones(100)
    differences = rng.permutation(np.concatenate([wins, losses, np.zeros(600)]))
    found = spread_of(differences, range(1000), open_scale=False)
    assert found.square == pytest.approx(2 * math.sqrt(0.3 * 0.1))
    assert (found.kind, found.reach, found.together) == ("right or wrong", 1.0, 0.0)
    assert found.discordant(0.2) == pytest.approx(0.4)
    assert found.variance(0.2) == pytest.approx(float(differences.var()))
    copies = spread_of(np.repeat(differences, 3), np.repeat(np.arange(1000), 3).tolist(), open_scale=False)
    assert copies.together == pytest.approx(1.0)
    assert spread_of(np.array([*SIGN, -1.0, 1.0]), list("abab"), open_scale=False).together == pytest.approx(1.0)
    assert spread_of(np.array([*SIGN, -1.0, 1.0]), list("aabb"), open_scale=False).together == 0.0, "never negative"
    open_one = spread_of(-rng.exponential(2.0, 5000), range(5000), open_scale=True)
    assert open_one.kind == "open"
    assert open_one.square == pytest.approx(4.0, rel=0.1)
    assert open_one.third < -8
    lopsided = design(200, open_one).above(-0.5, 0.0, 0.05)
    assert lopsided < design(200, Spread(open_one.square, "open", open_one.reach)).above(-0.5, 0.0, 0.05)


def test_at_a_late_look_the_permutation_test_needs_more_than_the_interval() -> None:
    two = Design([Task([(task, item) for item in range(50)]) for task in "ab"])
    assert two.better(0.3, 1e-4) < two.above(0.0, 0.3, 1e-4) - 0.005


def test_an_arm_is_ahead_by_more_than_one_item() -> None:
    assert design(100).ahead(0.05) == pytest.approx(design(100).seen_above(0.01, 0.05))
    assert design(100).ahead(0.05, 2) == pytest.approx(design(200).seen_above(0.005, 0.05))


def test_the_power_of_a_claim_is_that_of_simulated_ones() -> None:
    rng = np.random.default_rng(0)
    worlds = rng.choice([-1.0, 0.0, 1.0], (600, 30), p=[0.125, 0.75, 0.125])
    passed = np.mean([Sample([world], [SIGN]).p_above(-0.3) <= 0.05 for world in worlds])
    assert design(30).above(-0.3, 0.0, 0.05) == pytest.approx(passed, abs=0.025)


def test_guards_that_all_pass_pass_together() -> None:
    assert pass_together([0.9, 0.8], 1.0 - 1e-12, [0.01, 0.01]) == pytest.approx(0.72, abs=0.01)
    assert pass_together([1.0 - 1e-12] * 2, 0.7, [0.01, 0.01]) == pytest.approx(0.7, abs=0.01)
    alone = pass_together([0.9], 0.9, [0.01])
    assert alone == pytest.approx(0.9, abs=0.01), "of one guard both claims are about the same mean"


def test_the_verb_counts_items_and_looks(world: World, tmp_path: Path) -> None:
    params = settings(world, tmp_path, worthwhile=0.1)
    found = power(world.instruct, world.data, params)
    assert (found["look"], found["alpha"]) == (1, pytest.approx(0.04))
    assert (found["domain"]["n"], found["domain"]["clusters"]) == (13, 13)
    assert found["domain"]["tasks"] == {"next": {"n": 13, "clusters": 13, "metric": "exact_match"}}
    assert list(found["guards"]["each"]) == ["say"]
    assert found["guards"]["each"]["say"]["passes"] < 0.1, "13 items let nothing pass"
    assert found["domain"]["smallest_promoted"] is None
    assert found["lines"][0].startswith("No gain is promoted with a probability of 0.8 (13 items, look 1")
    assert found["dev"]["n"] == 13
    own = design(13)
    assert found["domain"]["shown"] == pytest.approx(own.better(0.1, 0.04))
    assert [one["needed"] for one in found["domain"]["gains"]] == [
        own.needed_to_show(gain, 0.04) for gain in (0.01, 0.02, 0.03, 0.05, 0.1)
    ]
    assert power(world.instruct, world.data, params, look=3)["alpha"] == pytest.approx(0.2 * 0.05 / 6)
    more = power(world.instruct, world.data, params, differ=0.5, look=1)["domain"]
    assert more["gains"][3]["needed"] > 1.5 * found["domain"]["gains"][3]["needed"]


def test_earlier_looks_at_these_items_leave_less(world: World, tmp_path: Path) -> None:
    params = settings(world, tmp_path)
    before = power(world.instruct, world.data, params)
    looks = Looks(Store(uri=str(tmp_path / "store")), open_checkpoint(world.instruct).digest())
    facts: dict[str, Any] = {"model_name": "m", "means": {}, "commit": None, "dirty": None, "costs": []}
    others = ItemSet.of("t", None, {"next": ("m", ["sha256:" + "0" * 64], [])})
    looks.take(others, "sha256:" + "1" * 64, **facts)
    assert power(world.instruct, world.data, params)["look"] == before["look"] == 1
    from shadowft_core.evaluate import open_bench

    with open_bench(world.instruct, world.data, params.evaluate, ("next",), (), params.render) as bench:
        asked = bench.asked["next"]
    mine = ItemSet.of("another template", None, {"next": ("m", asked.items[:1], asked.about[:1])})
    looks.take(mine, "sha256:" + "2" * 64, **facts)
    assert power(world.instruct, world.data, params)["look"] == 2


def test_scores_of_an_earlier_run_tell_how_arms_differ(world: World, half: Path, tmp_path: Path) -> None:
    from shadowft_core.evaluate import evaluate

    params = settings(world, tmp_path)
    scores = tmp_path / "scores"
    evaluate(world.instruct, world.data, None, None, "shadow", params.evaluate, scores / "instruct")
    level = power(world.instruct, world.data, params, scores, look=1)
    assert "or fewer if the Instruct is mostly right" in level["assumed"][0]
    flat = power(world.instruct, world.data, params, look=1)
    of_level, of_flat = (found["guards"]["each"]["say"]["needed"] for found in (level, flat))
    assert of_level < 0.8 * of_flat, "the Instruct is nearly always right there, so equal arms differ less"
    evaluate(world.instruct, world.data, world.delta, half, "shadow", params.evaluate, scores / "shadow")
    found = power(world.instruct, world.data, params, scores, look=1)
    assert found["assumed"][0] == "next: the differences vary as those of shadow_scaled did"
    assert found["domain"]["smallest_shown"] != level["domain"]["smallest_shown"]


def test_scores_of_0_and_100_are_no_shares(tmp_path: Path) -> None:
    """As shares they would leave no room for a gain, and no gain would ever be promoted."""
    for name, one in arena(five(CLEAR, 100)).items():
        scores = {task: {item: 100 * score for item, score in items.items()} for task, items in one.scores.items()}
        write_arm(tmp_path / name.split("_")[0] / name, replace(one, scores=scores), name)
    message = r"instruct: task skill: its scores \(acc\) are from 0 to 100, expected 0 to 1"
    with pytest.raises(EvaluationError, match=message):
        Spreads(load_params(ROOT / "params.yaml"), tmp_path, 0.25)


def test_the_verb_prints_tables_json_and_figures(
    world: World, tmp_path: Path, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(world, tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["power", "--instruct", world.instruct, "--data", world.data]
    done = shadowft(*words, "--plot", "power.html")
    assert done.code == 0, done.err
    for text in (
        "items to show it with 0.8",
        "all together",
        "all of these claims",
        "assumed: next",
        "dev items an arm",
    ):
        assert text in done.out
    assert "--scores" not in done.out.rpartition("assumed")[2]
    (world.instruct.parent.parent / "scores" / "instruct").mkdir(parents=True)
    assert f"`--scores {world.instruct.parent.parent / 'scores'}` measures" in shadowft(*words).out
    found = json.loads(shadowft(*words, "--json", "--plot", "power.svg").out)
    assert found["kind"] == "power"
    assert shadowft(*words, "--plot", "power.png").code == 0
    assert Path("power.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "<svg" in Path("power.svg").read_text()
    shadowft(*words, "--plot", "power.pdf").refused(3, "power.pdf", ".html, .svg, .png")
    assert not Path("power.pdf").exists()
    above, below = panels(Path("power.html").read_text("utf-8"), "power")
    curve = found["domain"]["curve"]
    for name in ("shown", "promoted"):
        drawn = above.marks(name)
        assert drawn[-1] == pytest.approx((curve[-1]["gain"], curve[-1][name]), abs=0.01)
        assert drawn[0] == pytest.approx((curve[0]["gain"], curve[0][name]), abs=0.01)
    assert above.marks("worthwhile")[0][0] == pytest.approx(0.05, abs=1e-3)
    assert {name for name in below.names() if name.startswith("gain")} == {
        f"gain-{g}" for g in (0.01, 0.02, 0.03, 0.05, 0.1)
    }
    assert not [text for axes in (above, below) for text in axes.texts() if "$" in text]
    assert figure(found) == figure(found)
    with pytest.raises(InputError):
        plot(found, Path("power"))


def test_rows_are_counted_without_the_harness(tmp_path: Path, world: World) -> None:
    assert rows_of(world.tasks, world.data, ["next", "heldout"]) == {"heldout": Rows(5, True), "next": Rows(13, False)}
    assert rows_of(world.tasks, world.data, ["next"], limit=4) == {"next": Rows(4, False)}
    assert rows_of(world.tasks, world.data, ["nowhere"]) is None
    write_task(tmp_path, "made", [("q", "a")])
    config = yaml.safe_load((tmp_path / "made.yaml").read_text())
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(config | {"dataset_path": "far/away", "dataset_kwargs": None}))
    assert rows_of(tmp_path, world.data, ["made"]) is None


def test_too_few_items_are_named_with_how_many_would_do() -> None:
    params = Verdict()
    line = too_few("test", {"skill": 100}, set(), params)
    assert line.startswith("100 test items of skill show a gain of 0.05 with a probability of only 0.1")
    needed = design(100).needed_to_show(0.05, 0.04)
    assert f"about {needed} would do so with 0.8; `shadowft power`" in line
    assert needed is not None
    assert too_few("test", {"skill": needed + 5}, set(), params) == ""
    assert "put an arm that gains 0.05 ahead" in too_few("dev", {"skill": 50}, set(), params)
    assert too_few("dev", {"skill": 120}, set(), params) == ""
    assert too_few("test", {"heldout": 200}, {"heldout"}, params) == ""
    assert "20 test items of heldout" in too_few("test", {"heldout": 20}, {"heldout"}, params)
    assert too_few("test", {"heldout": 5, "skill": 5}, {"heldout"}, params) == ""


def test_prepare_and_plan_warn(
    tmp_path: Path, world: World, shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(world, tmp_path)
    monkeypatch.chdir(tmp_path)
    talk = '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "so"}]}\n'
    Path("rows.jsonl").write_text("".join(talk % i for i in range(40)))
    done = shadowft("prepare", "--data", "rows.jsonl", "--out", "data")
    assert done.code == 0, done.err
    told = [line for line in done.err.splitlines() if "shadowft power" in line]
    assert [line.split(" with a probability")[0] for line in told] == [
        "prepare: 13 dev items of next_dev put an arm that gains 0.05 ahead",
        "prepare: 13 test items of next show a gain of 0.05",
    ]
    settings(world, tmp_path, worthwhile=0.9)
    done = shadowft("prepare", "--data", "rows.jsonl", "--out", "data")
    assert "shadowft power" not in done.err
