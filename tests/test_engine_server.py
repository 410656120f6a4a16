"""The engine `server` against a real small server: the same prompts, scores and digests as `hf`."""

from pathlib import Path
from typing import Any

import pytest

from shadowft_core.evaluate import open_bench, open_engine
from shadowft_core.evaluate.items import TaskScore
from shadowft_core.graft import ONTO_BASE, Options
from shadowft_core.params import Evaluate
from tests.fixtures.evaluation import World
from tests.fixtures.serving import served

OPTIONS = Options("all", waivers=(ONTO_BASE,))
CLOSE = 1e-5  # nats per byte: float32 sums in another order


def same_scores(one: dict[str, TaskScore], other: dict[str, TaskScore]) -> None:
    """Item by item: equal answers and right/wrong scores; log-likelihoods within CLOSE."""
    assert one.keys() == other.keys()
    for name, score in one.items():
        for a, b in zip(score.items, other[name].items, strict=True):
            assert (a.item, a.prompt, a.output[:20]) == (b.item, b.prompt, b.output[:20])
            assert a.score == pytest.approx(b.score, abs=CLOSE if name == "heldout" else 0)


def scores(world: World, params: Evaluate, deltas: Any = ()) -> tuple[str, dict[str, TaskScore]]:
    with (
        open_bench(world.instruct, world.data, params, params.domain, params.guards) as bench,
        open_engine(world.instruct, bench.tokenizer, params) as engine,
    ):
        engine.check(deltas, OPTIONS, bench.likelihood)
        with engine.arm(deltas, OPTIONS) as arm:
            return arm.digest, bench.score(arm, "test")


@pytest.mark.parametrize("token_ids", [True, False])
@pytest.mark.parametrize("scale", [0, 0.5, 1.5])
def test_the_server_scores_as_hf_does(world: World, low_rank: Path, scale: float, token_ids: bool) -> None:
    with served(world, token_ids=token_ids) as (state, params):
        digest, found = scores(world, params, [(low_rank, scale)] if scale else [])
        hf = params.model_copy(update={"engine": Evaluate.model_fields["engine"].default})
        expected_digest, expected = scores(world, hf, [(low_rank, scale)] if scale else [])
        assert state.model.adapters == set()
    assert digest == expected_digest
    same_scores(found, expected)
    if scale:
        _, untouched = scores(world, hf)
        assert [item.score for item in expected["heldout"].items] != [item.score for item in untouched["heldout"].items]
