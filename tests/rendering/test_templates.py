"""Tokenizers with several templates, and templates whose turns do not show where a reply ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import TrainError
from shadowft_core.params import Render
from shadowft_core.rendering import Renderer, RowError, load_renderer
from shadowft_core.rendering.conversation import RenderedConversation
from tests.fixtures.training import word_tokenizer
from tests.rendering.stock import stock_templates, tokenizer_for
from tests.rendering.table import REPLY, USER, pieces

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_SYSTEM = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
FOR_TOOLS = "{% if tools %}TOOLS {{ tools[0].function.name }}\n{% endif %}" + PLAIN
RAG = "DOCUMENTS " + PLAIN
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}]


def with_templates(**templates: str) -> Renderer:
    tokenizer, stops = tokenizer_for(PLAIN)
    tokenizer.chat_template = templates
    return Renderer(tokenizer, stops, Render())


@pytest.mark.parametrize(
    ("templates", "tools", "begins"),
    [
        ({"default": PLAIN, "tool_use": FOR_TOOLS, "rag": RAG}, None, "<|im_start|>user"),
        ({"default": PLAIN, "tool_use": FOR_TOOLS, "rag": RAG}, TOOLS, "TOOLS add\n<|im_start|>user"),
        ({"default": FOR_TOOLS, "rag": RAG}, TOOLS, "TOOLS add\n<|im_start|>user"),
        ({"default": WITHOUT_SYSTEM, "tool_use": FOR_TOOLS}, None, None),
        ({"default": WITHOUT_SYSTEM, "tool_use": FOR_TOOLS}, TOOLS, "TOOLS add\n<|im_start|>system\ns<|im_end|>"),
    ],
)
def test_the_template_is_the_one_that_transformers_chooses(
    templates: dict[str, str], tools: list[Any] | None, begins: str | None
) -> None:
    renderer = with_templates(**templates)
    system = [{"role": "system", "content": "s"}] if templates["default"] == WITHOUT_SYSTEM else []
    turns = [*system, USER[0], REPLY[0]]
    if begins is None:
        with pytest.raises(RowError, match="no system turn"):
            renderer.samples(turns, tools)
        return
    [sample] = renderer.samples(turns, tools)
    assert sample.prompt.startswith(begins)
    chosen = renderer.tokenizer.apply_chat_template(turns[:-1], tools=tools, tokenize=False, add_generation_prompt=True)
    assert sample.prompt == chosen
    assert renderer.tokenizer.decode(pieces(sample)[0]) == "a1<|im_end|>"


def test_several_templates_without_a_default_are_refused() -> None:
    with pytest.raises(TrainError, match=r"expected a chat template named default, found rag, tool_use; rename"):
        with_templates(rag=RAG, tool_use=FOR_TOOLS)


def test_a_reply_that_no_token_ends_is_learned_alone() -> None:
    """Together, the next question would be learned too."""
    template = PLAIN.replace("<|im_end|>", "")
    tokenizer, _ = tokenizer_for(PLAIN)
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer, {tokenizer.eos_token_id}, Render())
    both = renderer.samples([USER[0], REPLY[0], USER[1], REPLY[1]])
    texts = [[tokenizer.decode(piece) for piece in pieces(sample)] for sample in both]
    assert [[text.strip("\n") for text in found] for found in texts] == [["a1\n</s>"], ["a2\n</s>"]]


def test_a_reply_is_never_learned_past_the_next_one() -> None:
    """If the template ends only the last reply, the end of the last is not the end of the first."""
    tokenizer, stops = tokenizer_for(PLAIN)
    tokenizer.chat_template = PLAIN.replace(
        "<|im_end|>", "{{ '<|im_end|>' if loop.last and m.role == 'assistant' else '' }}"
    )
    renderer = Renderer(tokenizer, stops, Render())
    rendered = RenderedConversation(renderer.template, [USER[0], REPLY[0], USER[1], REPLY[1]], None)
    first, last = rendered.span(1), rendered.last_span()
    assert first is not None
    assert last is not None
    with pytest.raises(RowError, match="no token stops generation between a reply and the next"):
        renderer._sample(rendered, [first, last])


def test_an_earlier_reply_that_is_written_differently_gets_a_sequence_of_its_own() -> None:
    earlier = "{{ '' if m.role == 'user' or loop.last else ' (earlier)' }}"
    template = PLAIN.replace("{{ m.role }}\n", "{{ m.role }}" + earlier + "\n")
    tokenizer, stops = tokenizer_for(PLAIN)
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer, stops, Render())
    samples = renderer.samples([USER[0], REPLY[0], USER[1], REPLY[1]])
    texts = [[tokenizer.decode(piece) for piece in pieces(sample)] for sample in samples]
    assert texts == [["a1<|im_end|>"], ["a2<|im_end|>"]]
    assert "(earlier)" not in tokenizer.decode(samples[0].input_ids)


def test_turns_that_change_once_the_reply_follows_are_refused() -> None:
    template = "{{ messages | length }}" + PLAIN
    tokenizer, stops = tokenizer_for(PLAIN)
    tokenizer.chat_template = template
    with pytest.raises(RowError, match="writes the turns before a reply differently once the reply follows"):
        Renderer(tokenizer, stops, Render()).samples([USER[0], REPLY[0]])


@pytest.mark.parametrize(
    ("name", "content", "reply"),
    [
        ("cohere2", "E", "E"),  # also in <|END_RESPONSE|>, which follows it
        ("gptoss", "a", "<|channel|>final<|message|>a"),  # also in <|channel|>
        ("qwen3", "a1", "a1"),
    ],
)
def test_the_reply_is_what_the_model_should_say_before_it_stops(name: str, content: str, reply: str) -> None:
    [sample] = Renderer(*tokenizer_for(stock_templates()[name]), Render()).samples(
        [USER[0], {"role": "assistant", "content": content}]
    )
    assert sample.reply == reply


def test_the_ends_of_generation_config_are_ends_of_replies(tmp_path: Path) -> None:
    word_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 12]}))
    assert load_renderer(tmp_path, Render()).stops == {3, 12}
