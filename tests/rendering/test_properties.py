"""Random conversations under every stock template: each reply is learned unchanged, and nothing else is."""

import functools
import re
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowft_core.params import Render
from shadowft_core.rendering import IGNORED, Renderer, RowError
from tests.rendering.stock import CONTROL, stock_templates, tokenizer_for
from tests.rendering.table import pieces

TEMPLATES = stock_templates()
FRAME = re.compile(  # what templates write around thoughts and replies
    rf"<\|channel\|>(?:final|analysis)|<\|channel>thought|<channel\|>|<\|start\|>assistant|to=(?:user|self)|</?think>|</s>|{CONTROL.pattern}"
)
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="<>")
TEXTS = st.one_of(
    st.text(LETTERS, max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "\n",
            " a",
            "a ",
            "\n\na\n",
            "a\tb",
            "a\r\nb",
            "é",
            "e\u0301",
            "日本",
            "👩‍👩‍👧",
            "\u00a0a",
            "user",
            "assistant",
            "0",
        ]
    ),
)
WORDS = TEXTS.filter(str.strip)  # templates leave out an empty thought, or say that there is none


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One to four questions with replies; a system turn, thoughts and weights for some."""
    turns: list[dict[str, Any]] = []
    if draw(st.booleans()):
        turns.append({"role": "system", "content": draw(WORDS)})
    thoughts = draw(st.booleans())
    for _ in range(draw(st.integers(1, 4))):
        turns.append({"role": "user", "content": draw(TEXTS)})
        reply: dict[str, Any] = {"role": "assistant", "content": draw(TEXTS)}
        if thoughts and draw(st.booleans()):
            reply["reasoning_content"] = draw(WORDS)
        if (weight := draw(st.sampled_from([None, None, 0, 1]))) is not None:
            reply["weight"] = weight
        turns.append(reply)
    return turns


@functools.cache
def renderer_of(name: str) -> Renderer:
    return Renderer(*tokenizer_for(TEMPLATES[name]), Render(system="fold"))


def says(text: str, reply: dict[str, Any]) -> bool:
    """Whether a learned text has the thought and the content of this reply, in that order, and only frames besides."""
    parts = [reply.get("reasoning_content", ""), reply["content"]]
    expected = r"\s*".join(["", *(re.escape(part.strip()) for part in parts), ""])
    return re.fullmatch(expected, FRAME.sub("", text)) is not None


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=12, derandomize=True, deadline=None, database=None)
@given(turns=conversations(), many=st.sampled_from([2, 16]))
def test_each_reply_is_learned_as_it_is_and_nothing_else(name: str, turns: list[dict[str, Any]], many: int) -> None:
    renderer = renderer_of(name)
    with mock.patch("shadowft_core.rendering.samples.MANY", many), suppress(RowError):  # nothing else may escape
        check(renderer, turns)


def check(renderer: Renderer, turns: list[dict[str, Any]]) -> None:
    tokenizer, samples = renderer.tokenizer, renderer.samples(turns)
    found: list[list[int]] = []
    for sample in samples:
        assert all(label in (IGNORED, number) for label, number in zip(sample.labels, sample.input_ids, strict=True))
        whole = tokenizer.decode(sample.input_ids)
        assert tokenizer(whole, add_special_tokens=False)["input_ids"] == sample.input_ids
        assert whole.startswith(sample.prompt + sample.reply)
        found += pieces(sample)
    replies = [turn for turn in turns if turn["role"] == "assistant" and turn.get("weight") != 0]
    assert len(found) == len(replies)
    for piece in found:  # a reply may have a sequence of its own, before one with earlier replies
        assert renderer.stops & set(piece)
        text = tokenizer.decode(piece)
        said = next((reply for reply in replies if says(text, reply)), None)
        assert said is not None, (text, replies)
        replies.remove(said)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    turns=conversations().filter(
        lambda turns: any("weight" not in turn for turn in turns if turn["role"] == "assistant")
    )
)
def test_no_conversation_with_a_reply_to_learn_is_refused_by_qwen3(turns: list[dict[str, Any]]) -> None:
    """The property above would hold if everything were refused."""
    check(renderer_of("qwen3"), turns)
