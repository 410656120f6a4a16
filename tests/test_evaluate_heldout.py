"""What `heldout` scores of a conversation: the reply that training learns, after the prompt that inference sends."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shadowft_core.evaluate.heldout import render_heldout
from shadowft_core.params import Render
from shadowft_core.rendering import load_renderer
from tests.fixtures.evaluation import TEMPLATE, World, score_instruct

TOOLS = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
LETTER = [{"type": "function", "function": {"name": "letter", "parameters": {"type": "object", "properties": {}}}}]


def turns(*texts: str, weights: tuple[int | None, ...] = ()) -> list[dict[str, Any]]:
    """A conversation that begins with the user; `weights` of its replies."""
    found = [{"role": ("user", "assistant")[at % 2], "content": text, "weight": None} for at, text in enumerate(texts)]
    for turn, weight in zip(found[1::2], weights, strict=False):
        turn["weight"] = weight
    return found


@pytest.mark.parametrize(
    ("row", "prompt", "reply"),
    [
        ({"messages": turns("say a", "b", "say c", "d")}, "<user> say a <end> <bot> ", "b"),
        (
            {"messages": turns("say a", "b", "say c", "d", weights=(0, None))},
            "<user> say a <end> <bot> b <end> <user> say c <end> <bot> ",
            "d",
        ),
        (
            {"messages": turns("say a", "b", "say c", "d"), "rejected": turns("", "e")[1:]},
            "<user> say a <end> <bot> b <end> <user> say c <end> <bot> ",
            "d",
        ),
        ({"messages": turns("say a", "b"), "tools": json.dumps(LETTER)}, "letter <user> say a <end> <bot> ", "b"),
    ],
    ids=["first", "weights", "preference", "tools"],
)
def test_prompt_and_reply_of_a_row(world: World, tmp_path: Path, row: dict[str, Any], prompt: str, reply: str) -> None:
    folder = Path(shutil.copytree(world.instruct, tmp_path / "instruct"))
    (folder / "chat_template.jinja").write_text(TOOLS + TEMPLATE)
    pq.write_table(pa.Table.from_pylist([row | {"source": "rows.jsonl:1"}]), tmp_path / "test.parquet")
    left_out = render_heldout(load_renderer(folder, Render()), tmp_path, tmp_path / "out")
    [found] = pq.read_table(tmp_path / "out/test.parquet").to_pylist()
    assert (found["prompt"], found["reply"].strip(), left_out) == (prompt, reply, {"test": {}})
    assert found["shadowft_source"] == "rows.jsonl:1"


def test_the_chosen_reply_is_scored_also_if_an_earlier_one_is_learned_alone(world: World, tmp_path: Path) -> None:
    """The template drops the thought of an earlier reply, which is then a sequence of its own."""
    folder = Path(shutil.copytree(world.instruct, tmp_path / "instruct"))
    thought = "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("{{ m.content }}", thought + "{{ m.content }}"))
    messages = turns("say a", "b", "say c", "d")
    messages[1]["reasoning_content"], messages[3]["reasoning_content"] = "e", "f"
    row = {"messages": messages, "rejected": turns("", "e")[1:], "source": "rows.jsonl:1"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test.parquet")
    renderer = load_renderer(folder, Render())
    assert len(renderer.samples(messages)) == 2
    render_heldout(renderer, tmp_path, tmp_path / "out")
    [found] = pq.read_table(tmp_path / "out/test.parquet").to_pylist()
    assert found["prompt"] == "<user> say a <end> <bot> b <end> <user> say c <end> <bot> "
    assert found["reply"].strip() == "<think>f</think>d"


def test_a_tokenizer_that_adds_a_token_changes_no_score(world: World, tmp_path: Path) -> None:
    """In training, too, the ids are those of the rendered text."""
    folder = Path(shutil.copytree(world.instruct, tmp_path / "instruct"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {"SpecialToken": {"id": "<bot>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bot>": {"id": "<bot>", "ids": [2], "tokens": ["<bot>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    tasks = {"domain": ("heldout", "next"), "guards": ("say", "choice"), "kl_answers": 3}
    expected = score_instruct(world, tmp_path / "one", **tasks)
    found = score_instruct(replace(world, instruct=folder), tmp_path / "two", **tasks)
    assert found[1] == expected[1]
    assert found[0]["kl"] == expected[0]["kl"]
