"""Rows in training: those of replay, those as long as the limit, and the prompts of the probe."""

import json
from pathlib import Path

import pytest

from shadowft_core.errors import TrainError
from shadowft_core.params import Prepare, Replay
from shadowft_core.prepare import prepare
from shadowft_core.train import train
from shadowft_core.train.encode import encode_file
from tests.fixtures.data import lines, pinned, talk
from tests.fixtures.training import SETTINGS, tree, word_tokenizer, write_model

ONCE = SETTINGS.model_copy(update={"epochs": 1})


def add_replay(place: Path, folder: Path, asked: str = "be") -> Path:
    """The data of `place`, prepared again with replay rows."""
    general = folder / "general.jsonl"
    general.write_bytes(lines([talk(f"{asked} {a} {b}", f"kind {a}") for a in range(9) for b in range(9)]))
    params = pinned(Prepare(data="-", valid=0.1, replay=Replay(data=str(general), share=0.25)))
    prepare(place / "rows.jsonl", None, params, folder / "data")
    return folder / "data"


def test_replay_rows_are_trained_on_unless_the_route_leaves_them_out(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = add_replay(place, tmp_path)
    facts = {}
    for name, replay in (("with", True), ("without", False)):
        train(place / "base", place / "instruct", data, ONCE, tmp_path / name, replay=replay)
        facts[name] = json.loads((tmp_path / name / "train.json").read_text())
    report = json.loads((data / "data-report.json").read_text())
    assert facts["with"]["rows"]["replay"]["rows"] == report["replay"]["rows_used"] > 0
    assert f"{report['replay']['rows_used']} replay rows" in capsys.readouterr().err
    assert "replay" not in facts["without"]["rows"]
    assert facts["with"]["rows"]["train"] == facts["without"]["rows"]["train"]
    assert facts["with"]["steps"] > facts["without"]["steps"]
    assert facts["with"]["data_digest"] == facts["without"]["data_digest"]

    (data / "replay.parquet").unlink()
    train(place / "base", place / "instruct", data, ONCE, tmp_path / "plain")
    assert tree(tmp_path / "plain") == tree(tmp_path / "without")


def test_replay_rows_that_are_too_long_are_refused(place: Path, tmp_path: Path) -> None:
    data = add_replay(place, tmp_path, "be " * ONCE.max_length)
    with pytest.raises(TrainError, match=r"replay\.parquet: 20 of 20 rows are left out \(20 longer than"):
        train(place / "base", place / "instruct", data, ONCE, tmp_path / "out")


def test_the_probe_counts_each_prompt_as_if_it_were_alone(tmp_path: Path) -> None:
    """Whatever the lengths of the others and the model's own way to generate; both and its mode stay as they were."""
    import numpy as np

    from shadowft_core.train.models import load_model
    from shadowft_core.train.probe import StopProbe

    network = load_model(write_model(tmp_path / "model", 1), word_tokenizer())
    network.train()
    own = network.generation_config
    own.do_sample = True
    prompts = [np.arange(4, 4 + length, dtype=np.int32) for length in (2, 5, 9, 16)]
    counts = []
    for stop in range(4, 20):
        alone = [StopProbe([prompt], 3).stopped(network, {stop}, 1, False) for prompt in prompts]
        assert StopProbe(prompts, 3).stopped(network, {stop}, 1, False) == sum(alone)
        counts.append(sum(alone))
    assert len(set(counts)) > 1, "some tokens end some replies"
    assert (network.generation_config is own, network.training) == (True, True)


@pytest.mark.parametrize(("below", "used"), [(0, 2), (1, 1)])
def test_a_row_may_have_as_many_tokens_as_the_limit(tmp_path: Path, below: int, used: int) -> None:
    from shadowft_core.params import Render
    from shadowft_core.rendering import load_renderer
    from shadowft_core.rendering.lengths import token_lengths
    from shadowft_core.rendering.rows import Row

    renderer = load_renderer(write_model(tmp_path / "model", 1), Render())
    rows = [Row(talk(asked, "is 3")["messages"], None, "rows.jsonl:1") for asked in ("1", "1 2")]
    lengths = [len(renderer.samples(row.messages)[0].input_ids) for row in rows]
    limit = max(lengths) - below
    found = token_lengths(rows, renderer, limit)
    assert (found["min"], found["max"], found["too_long"]) == (min(lengths), max(lengths), 2 - used)
    (tmp_path / "rows.jsonl").write_bytes(lines([talk(asked, "is 3") for asked in ("1", "1 2")]))
    prepare(tmp_path / "rows.jsonl", None, Prepare(data="-", valid=0), tmp_path / "data")
    encoded = encode_file(tmp_path / "data/train.parquet", renderer, limit)
    assert (encoded.used, encoded.too_long) == (used, 2 - used)
