"""Finds the replies of one conversation in its rendered text, by comparing it with the prompts of inference."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from shadowft_core.rendering.template import Message, RowError, Template, calls_of

# The think tags that a generation prompt may end with. A template may leave them out of the reply it renders.
_THINK = re.compile(r"(?:<think>\s*(?:</think>)?|</think>)\s*\Z")


@dataclass(frozen=True)
class Span:
    """A reply that begins at character `start` of the text. `closes`: it is the last message of the text."""

    start: int
    closes: bool = False


class RenderedConversation:
    """The messages of one conversation, and their text `whole`. Raises RowError if the template refuses them."""

    def __init__(
        self, template: Template, messages: Sequence[Message], tools: Sequence[Any] | None, thinking: bool | None = None
    ) -> None:
        self.messages, self._template, self._tools = list(messages), template, tools
        thoughts = any(turn.get("reasoning_content") for turn in messages if turn.get("weight") != 0)
        self.thinking = thoughts if thinking is None else thinking
        """value of `enable_thinking` for the template: by default, whether a reply to learn has a thought"""
        self.whole = self._render(self.messages)

    @property
    def images(self) -> list[Path]:
        """The images of the messages, in their order."""
        return [path for message in self.messages for _, path in message.get("images", ())]

    def span(self, at: int) -> Span | None:
        """The span of a reply that other turns follow. `at` is its number among the messages.

        None if the text before the reply is not the prompt that inference sends.
        """
        start = _start(self._prompt(at), self.whole)
        return None if start is None else Span(start)

    def last_span(self) -> Span | None:
        """The span of the last message; None if the text before it is not the prompt that inference sends."""
        start = _start(self._prompt(len(self.messages) - 1), self.whole)
        return None if start is None else Span(start, closes=True)

    def many(self, replies: Sequence[int]) -> dict[int, Span | None] | None:
        """The spans of many replies by their numbers, from one more rendering, with a mark in place of each reply.

        Only the first prompt is rendered and compared. The text around the marks must be that around the replies, so
        the other prompts are built in the same way. None if a mark or a reply is not found.
        """
        marks = {at: f"Qz{at}zq" for at in replies}
        marked = [{**turn, "content": marks[at]} if at in marks else turn for at, turn in enumerate(self.messages)]
        text, first = self._render(marked), self._prompt(replies[0])
        if not replies[0]:
            return None
        *before, question = self.messages[: replies[0]]
        before.append({**question, "content": "Qzqzq", "images": ()})
        prompt = self._template.render(before, tools=self._tools, prompt=True, thinking=self.thinking)
        header = prompt.rpartition("Qzqzq")[2]  # the template's text between a question and its reply
        if not header or _start(first, self.whole) is None:
            return None
        starts: list[int] = []
        here = there = 0  # `whole` and `text` agree up to these characters
        for at in replies:
            place, content = text.find(marks[at], there), str(self.messages[at]["content"]).strip()
            frame = text[there:place]
            reply = self.whole.find(content, here + len(frame))
            same = place >= 0 and reply >= 0 and self.whole.startswith(frame, here)
            begin = max((frame.rfind(end) + len(end) for end in (header, _bare(header)) if end in frame), default=-1)
            if not same or begin < 0 or self.whole[here + len(frame) : reply].strip():
                return None
            starts.append(here + begin)
            here, there = reply + len(content), place + len(marks[at])
        last = len(self.messages) - 1
        return {at: Span(start, closes=at == last) for at, start in zip(replies, starts, strict=True)}

    def between(self, at: int, span: Span, stops: Sequence[str]) -> str:
        """The text between the contents of a reply and of the next message; empty if one of them is not found.

        If a token of `stops` follows the reply, the search for the next content begins after this token, which may
        contain the same text.
        """
        reply = str(self.messages[at].get("content") or "").strip()
        following = _first_text(self.messages[at + 1])
        end = self.whole.find(reply, span.start) + len(reply)
        after = end + max((len(stop) for stop in stops if self.whole.startswith(stop, end)), default=0)
        return self.whole[end : max(after, self.whole.find(following, after))]

    @property
    def last_content(self) -> str:
        """The content of the last message, stripped."""
        return str(self.messages[-1].get("content") or "").strip()

    def shows_thought(self, at: int) -> bool:
        """Whether the text has the thought of a reply; true for a reply without a thought."""
        return at not in self._thoughts or at in self._shown

    @cached_property
    def _thoughts(self) -> set[int]:
        """The numbers of the messages with a thought."""
        return {at for at, turn in enumerate(self.messages) if str(turn.get("reasoning_content") or "").strip()}

    @cached_property
    def _shown(self) -> set[int]:
        """The numbers of the messages whose thought the template prints.

        Renders marks in place of the thoughts, because other text may repeat a thought.
        """
        marks = {at: f"Qz{at}zq" for at in self._thoughts}
        marked = [
            {**turn, "reasoning_content": marks[at]} if at in marks else turn for at, turn in enumerate(self.messages)
        ]
        text = self._render(marked)
        return {at for at, mark in marks.items() if mark in text}

    def require_printed(self, at: int, span: Span) -> None:
        """Raises RowError unless `whole` has the content and the calls of the reply `at`.

        Some templates cut a reply at a think tag, or do not print both text and calls of a reply.
        """
        content = str(self.messages[at].get("content") or "").strip()
        if self.whole.find(content, span.start) < 0:
            raise RowError("the chat template does not print the whole text of a reply")
        if any(self.whole.find(call["function"]["name"], span.start) < 0 for call in calls_of(self.messages[at])):
            raise RowError("the chat template does not print the calls of a reply with text")

    def as_inferred(self, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """Text and spans. If the last span closes the text, its reply is put after the exact prompt of inference.

        Raises RowError for a thought that the template does not print, or that follows a prompt with `</think>`.
        """
        *others, last = spans
        if not last.closes:
            return self.whole, [*others, last]
        at = len(self.messages) - 1
        prompt, thought = self._prompt(at), str(self.messages[at].get("reasoning_content") or "").strip()
        hidden = RowError("the chat template does not print the thought of a reply")
        if self.whole.startswith(prompt):
            if not self.shows_thought(at):
                raise hidden
            return self.whole, [*others, Span(len(prompt), closes=True)]
        tags, rest = prompt[last.start :], self.whole[last.start :]
        if thought and "</think>" in tags:
            raise RowError(
                "the chat template ends the thought in its prompt, but the reply has one; set render.thinking to none"
            )
        if "<think>" in tags and "</think>" not in tags:  # the prompt opens a thought that the rendered reply lacks
            rest = f"{thought}\n</think>\n\n{rest.lstrip()}"
        elif not self.shows_thought(at):
            raise hidden
        text = prompt + rest
        return text, [*others, Span(len(prompt), closes=True)]

    @cached_property
    def _prompts(self) -> dict[int, str]:
        return {}

    def _prompt(self, at: int) -> str:
        if at not in self._prompts:
            before = self.messages[:at]
            self._prompts[at] = self._template.render(before, tools=self._tools, prompt=True, thinking=self.thinking)
        return self._prompts[at]

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render(messages, tools=self._tools, thinking=self.thinking)


def _first_text(message: Message) -> str:
    """The first text of a message: its content, or the first part between images that is not blank."""
    content, places = str(message.get("content") or ""), [place for place, _ in message.get("images", ())]
    pieces = [content[start:end].strip() for start, end in pairwise([0, *places, len(content)])]
    return next(filter(None, pieces), "")


def _start(prompt: str, whole: str) -> int | None:
    """Where the reply to `prompt` begins in `whole`; None if `whole` does not begin with the prompt.

    `whole` may leave out think tags at the end of the prompt.
    """
    if whole.startswith(prompt):
        return len(prompt)
    bare = _bare(prompt)
    return len(bare) if bare != prompt and whole.startswith(bare) else None


def _bare(prompt: str) -> str:
    """A prompt without the think tags at its end."""
    return _THINK.sub("", prompt)
