"""Training on a tiny model of random weights with a word-level tokenizer: real TRL, real PEFT, seconds on one core."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.params import Render
from shadowft_core.rendering import IGNORED, load_renderer
from shadowft_core.train import train
from shadowft_core.train.encode import Encoded, encode_file
from tests.fixtures.training import SETTINGS, run, tree, word_tokenizer


def test_lora_learns_and_repeats_bit_for_bit(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    facts = run(place, tmp_path / "one")
    assert facts["last_loss"] < 0.8 * facts["first_loss"]
    assert facts["valid_loss"] < facts["first_loss"]
    lines = [json.loads(line) for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, facts["steps"] + 1))
    err = capfd.readouterr().err
    assert f"step {facts['steps']}/{facts['steps']} loss {facts['last_loss']:.3f} eta 0s" in err

    train(place / "base", place / "instruct", place / "data", SETTINGS, tmp_path / "elsewhere" / "two")
    one, two = tree(tmp_path / "one"), tree(tmp_path / "elsewhere" / "two")
    assert set(one) == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "metrics.jsonl",
        "samples.jsonl",
        "train.json",
    }
    assert one == two
    assert not any(str(tmp_path).encode() in content or str(place).encode() in content for content in one.values())

    other = run(place, tmp_path / "three", SETTINGS.model_copy(update={"seed": 1}))
    assert other["seed"] == 1
    assert tree(tmp_path / "three")["adapter/adapter_model.safetensors"] != one["adapter/adapter_model.safetensors"]


def test_both_routes_start_from_the_same_adapter_and_see_the_same_rows(place: Path, tmp_path: Path) -> None:
    """With a learning rate near zero A stays as drawn, and the token counts show the order of the batches."""
    from safetensors.numpy import load_file

    still = SETTINGS.model_copy(update={"learning_rate": 1e-30, "epochs": 1})
    seen = {}
    for model in ("base", "instruct"):
        facts = run(place, tmp_path / model, still, model)
        adapter = load_file(tmp_path / model / "adapter/adapter_model.safetensors")
        lines = [json.loads(line) for line in (tmp_path / model / "metrics.jsonl").read_text().splitlines()]
        seen[model] = ([line["tokens"] for line in lines], {n: t for n, t in adapter.items() if "lora_A" in n})
        assert facts["model_digest"] != facts["data_digest"]
        assert facts["steps"] == math.ceil(facts["rows"]["train"]["rows"] / still.batch_size)
    assert seen["base"][0] == seen["instruct"][0]
    assert len(seen["base"][1]) == 14  # 7 linear layers in each of 2 blocks; neither embedding nor head
    assert {str(a.dtype) for a in seen["base"][1].values()} == {"float32"}
    assert all((seen["instruct"][1][name] == a).all() for name, a in seen["base"][1].items())


def test_full_training_writes_a_float32_checkpoint(place: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    full = SETTINGS.model_copy(update={"method": "full", "learning_rate": 0.003, "max_steps": 12})
    facts = run(place, tmp_path / "out", full)
    assert (facts["method"], facts["steps"]) == ("full", 12)
    assert facts["last_loss"] < 0.8 * facts["first_loss"]
    before, after = load_file(place / "base/model.safetensors"), load_file(tmp_path / "out/model/model.safetensors")
    assert before.keys() == after.keys()
    assert {str(t.dtype) for t in after.values()} == {"float32"}
    assert all((before[name] != after[name]).any() for name in before)
    names = {p.name for p in (tmp_path / "out/model").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    run(place, tmp_path / "again", full)
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_the_trainer_uses_exactly_the_intended_labels(place: Path, tmp_path: Path) -> None:
    """The labels in the batches: the reply and its end token, nothing of the prompt, nothing after."""
    from shadowft_core.train.models import load_model
    from shadowft_core.train.trainer import make_trainer

    renderer = load_renderer(place / "instruct", Render())
    tokenizer = renderer.tokenizer
    rows = encode_file(place / "data/train.parquet", renderer, 40)
    trainer = make_trainer(load_model(place / "base", tokenizer), tokenizer, rows, SETTINGS, tmp_path)
    replies = []
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
            replies.append(tokenizer.decode([label for label in labels if label != IGNORED]))
            a, b = (int(tokenizer.decode([ids[at]])) for at in (3, 5))
            assert replies[-1] == f"is {a + b} <|im_end|>"
            first = next(at for at, label in enumerate(labels) if label != IGNORED)
            assert (
                tokenizer.decode(ids[:first])
                == f"<|im_start|> user : {a} plus {b} <|im_end|> . <|im_start|> assistant :"
            )
    assert len(replies) == len(rows.input_ids) > 40


@pytest.mark.parametrize(
    ("listed", "stops"),
    [
        (None, {3}),
        ({}, {3}),
        ({"eos_token_id": None}, {3}),
        ({"eos_token_id": 7}, {3, 7}),
        ({"eos_token_id": [7, 9]}, {3, 7, 9}),
    ],
)
def test_the_stop_ids_are_all_end_tokens(tmp_path: Path, listed: dict[str, Any] | None, stops: set[int]) -> None:
    from shadowft_core.rendering import stop_ids

    if listed is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(listed))
    assert stop_ids(word_tokenizer(), tmp_path) == stops


def test_replies_that_end_are_counted_before_and_after(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    learned = SETTINGS.model_copy(update={"epochs": 20})
    facts = run(place, tmp_path / "out", learned)
    stops = facts["stops"]
    assert stops == {"prompts": facts["rows"]["valid"]["rows"], "max_new_tokens": 6} | {
        name: stops[name] for name in ("stopped_before", "stopped_after")
    }
    assert stops["stopped_before"] < stops["stopped_after"] == stops["prompts"]
    line = f", {stops['stopped_before']} ended within 6 tokens before training, {stops['stopped_after']} after it"
    assert line in capfd.readouterr().err
    shutil.copytree(place / "data", tmp_path / "data")
    empty(tmp_path / "data/valid.parquet")
    train(
        place / "base",
        place / "instruct",
        tmp_path / "data",
        SETTINGS.model_copy(update={"max_steps": 1}),
        tmp_path / "o",
    )
    assert json.loads((tmp_path / "o/train.json").read_text())["stops"] is None


def empty(file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(file).slice(0, 0), file)


def test_the_probe_asks_the_first_questions_with_short_replies() -> None:
    """Two replies in a sequence: the prompt ends before the last. No more tokens than the model has positions."""
    import numpy as np

    from shadowft_core.train.probe import LONGEST, PROMPTS, stop_probe

    def sequence(prompt: int, reply: int) -> tuple[np.ndarray, np.ndarray]:
        labels = [IGNORED, 1, IGNORED, *[IGNORED] * (prompt - 3), *range(reply)]
        return np.arange(len(labels), dtype=np.int32), np.array(labels, np.int32)

    rows = [sequence(5, 4), sequence(4, LONGEST + 1), sequence(90, 6), *[sequence(6, 3)] * PROMPTS]
    valid = Encoded([ids for ids, _ in rows], [labels for _, labels in rows])
    probe = stop_probe(valid, None)
    assert probe is not None
    assert ([len(prompt) for prompt in probe.prompts], probe.max_new_tokens) == ([5, 90, *[6] * 18], 12)
    probe = stop_probe(valid, 100)
    assert probe is not None
    assert ([len(prompt) for prompt in probe.prompts], probe.max_new_tokens) == ([5, *[6] * 19], 8)
    assert stop_probe(Encoded(), None) is None


def test_samples_show_what_is_learned(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "out", SETTINGS.model_copy(update={"max_steps": 1}))
    samples = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 10
    renderer = load_renderer(place / "instruct", Render())
    rows = encode_file(place / "data/train.parquet", renderer, 40)
    for sample, ids in zip(samples, rows.input_ids, strict=False):
        context, learned, after = sample["pieces"]
        assert (context["learned"], learned["learned"], after["learned"]) == (False, True, False)
        assert learned["text"].startswith("is ")
        assert learned["text"].endswith(" <|im_end|>")
        assert " ".join(piece["text"] for piece in sample["pieces"]) == renderer.tokenizer.decode(ids)
        assert sample["left_out"] == 0
