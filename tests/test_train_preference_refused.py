"""Preferences that training refuses before it loads a model, and pairs that it leaves out."""

import json
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import TrainError
from shadowft_core.params import Lora, Prepare, Render, Replay, Train
from shadowft_core.params.training import Launch
from shadowft_core.prepare import prepare
from shadowft_core.prepare.tracked import content_of
from shadowft_core.rendering import RowError, load_renderer, render_pair
from shadowft_core.train import train
from tests.fixtures.data import lines, talk
from tests.fixtures.pictures import picture
from tests.fixtures.training import SETTINGS, write_model
from tests.rendering.stock import stock_templates
from tests.rendering.test_samples import made

DPO = SETTINGS.model_copy(update={"objective": "dpo", "max_steps": 2})
MISSING = Path("no such model")  # whatever is loaded is an error


def pair(asked: str, chosen: str = "is 3", rejected: str = "is 4") -> dict[str, Any]:
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


def prepared(folder: Path, rows: list[dict[str, Any]], **params: Any) -> Path:
    (folder / "rows.jsonl").write_bytes(lines(rows))
    prepare(folder / "rows.jsonl", None, Prepare(data="-", valid=0, near=None, **params), folder / "data")
    return folder / "data"


def refused(data: Path, settings: Train, out: Path) -> str:
    with pytest.raises(TrainError) as error:
        train(MISSING, MISSING, data, settings, out / "out")
    assert not (out / "out").exists()
    return str(error.value)


def test_each_objective_refuses_the_rows_of_the_other(tmp_path: Path) -> None:
    data = prepared(tmp_path, [talk("one"), pair("two"), talk("three"), pair("four")])
    found = refused(data, SETTINGS, tmp_path)
    assert "train.parquet: train.objective is sft, but 2 of 4 rows have a rejected reply (first rows.jsonl:2)" in found
    assert "set train.objective: dpo" in found
    assert "prepare.columns: {rejected: unused}" in found
    found = refused(data, DPO, tmp_path)
    assert "train.parquet: train.objective is dpo, but 2 of 4 rows have no rejected reply (first rows.jsonl:1)" in found
    assert "set train.objective: sft" in found


def test_the_remedy_learns_the_chosen_replies_alone(tmp_path: Path) -> None:
    data = prepared(tmp_path, [pair("1 plus 2")], columns={"rejected": "unused"})
    model = write_model(tmp_path / "model", 1)
    train(model, model, data, SETTINGS.model_copy(update={"max_steps": 1}), tmp_path / "out")
    facts = json.loads((tmp_path / "out/train.json").read_text())
    assert (facts["objective"], facts["preferences"], facts["rows"]["train"]["learned_tokens"]) == ("sft", None, 3)


def test_replay_rows_without_a_rejected_reply_are_refused(tmp_path: Path) -> None:
    (tmp_path / "general.jsonl").write_bytes(lines([talk("general")]))
    replay = Replay(
        data=str(tmp_path / "general.jsonl"), digest=content_of(tmp_path / "general.jsonl").digest, share=0.1
    )
    data = prepared(tmp_path, [pair(f"ask {n}") for n in range(9)], replay=replay)
    assert "replay.parquet: train.objective is dpo, but 1 of 1 rows have no rejected" in refused(data, DPO, tmp_path)


def test_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(picture())
    data = prepared(tmp_path, [pair("one"), pair("two") | {"image": "cat.png"}])
    found = refused(data, DPO, tmp_path)
    assert "train.parquet: train.objective is dpo, but 1 of 2 rows have images (first rows.jsonl:2); remove" in found


SETTINGS_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "packing": ({"packing": True}, "train.packing: true packs single replies, and train.objective is dpo"),
    "fsdp with full": ({"method": "full", "launch": Launch(strategy="fsdp")}, "train.launch.strategy is fsdp"),
    "fsdp with modules": (
        {"lora": Lora(modules_to_save=("lm_head",)), "launch": Launch(strategy="fsdp")},
        "train.launch.strategy is fsdp",
    ),
}


@pytest.mark.parametrize(("changes", "message"), SETTINGS_REFUSED.values(), ids=SETTINGS_REFUSED)
def test_settings_that_dpo_cannot_honour_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, DPO.model_copy(update=changes), tmp_path)


def test_pairs_that_are_too_long_or_refused_are_counted(tmp_path: Path) -> None:
    rows = [pair("1 plus 2"), pair("2 plus 1", "is 3", "is 4 " * 30), pair("3 plus 1", "is 4", "<pad>")]
    rows += [pair("5 plus 1", "is  6", "is 6")]  # this tokenizer drops the second blank
    rows += [pair("2 plus 2", "is 4 " * 30, "is 5")]
    model = write_model(tmp_path / "model", 1)
    settings = DPO.model_copy(update={"max_left_out": 0.8})
    train(model, model, prepared(tmp_path, rows), settings, tmp_path / "out")
    used = json.loads((tmp_path / "out/train.json").read_text())["rows"]["train"]
    assert (used["rows"], used["sequences"], used["too_long"]) == (1, 2, 2)
    assert used["refused"] == {
        "control token <pad> in the text": {"rows": 1, "sources": ["rows.jsonl:3"]},
        "the chat template prints the chosen and the rejected reply alike": {"rows": 1, "sources": ["rows.jsonl:4"]},
    }


USER = {"role": "user", "content": "Why?"}


def reply(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def test_a_prompt_that_the_template_writes_differently_is_refused() -> None:
    """Qwen3's template writes an empty thought before a reply without one."""
    renderer = made(stock_templates()["qwen3"])
    with pytest.raises(RowError, match="writes the prompt of the rejected reply differently"):
        render_pair([USER, reply("So.", reasoning_content="Hm.")], reply("No."), None, renderer)
    same = render_pair([USER, reply("So.")], reply("No."), None, renderer)
    assert same.chosen != same.rejected


@pytest.mark.parametrize("name", sorted(stock_templates()))
def test_a_pair_is_rendered_as_single_replies_are(name: str) -> None:
    """Of a conversation of many turns, only the last reply is learned, as inference would send and stop it."""
    renderer = made(stock_templates()[name])
    before = [USER, reply("One."), USER]
    pair = render_pair([*before, reply("Two.")], reply("Three."), None, renderer)
    for last, ids in (("Two.", pair.chosen), ("Three.", pair.rejected)):
        sample = renderer.samples([USER, reply("One.", weight=0), USER, reply(last)])[-1]
        assert sample.input_ids[: len(pair.prompt) + len(ids)] == pair.prompt + ids
        assert [label for label in sample.labels if label >= 0] == ids
        assert ids[-1] in renderer.stops
        assert renderer.tokenizer.decode(pair.prompt) == sample.prompt


def test_the_renderer_of_a_folder_renders_pairs(tmp_path: Path) -> None:
    renderer = load_renderer(write_model(tmp_path / "model", 1), Render())
    found = render_pair([{"role": "user", "content": "1 plus 2"}, reply("is 3")], reply("is 4"), None, renderer)
    assert renderer.tokenizer.decode(found.prompt + found.rejected).endswith("assistant : is 4 <|im_end|>")
    assert len(found) == len(found.prompt) + 3


def test_both_replies_see_the_tools_in_their_prompt() -> None:
    renderer = made(stock_templates()["qwen3"])
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    found = render_pair([USER, reply("So.")], reply("No."), tools, renderer)
    assert "look_up" in renderer.tokenizer.decode(found.prompt)
