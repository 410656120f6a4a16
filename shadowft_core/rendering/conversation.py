"""Where the replies of one conversation lie in its rendered text, held against the prompts that inference sends."""

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
    """A reply that begins at character `start` of the text; `closes` when the text ends with it."""

    start: int
    closes: bool = False


class RenderedConversation:
    """The messages of one conversation and their text, `whole`. Raises RowError when the template refuses them."""

    def __init__(
        self, template: Template, messages: Sequence[Message], tools: Sequence[Any] | None, thinking: bool | None = None
    ) -> None:
        self.messages, self._template, self._tools = list(messages), template, tools
        thoughts = any(one.get("reasoning_content") for one in messages if one.get("weight") != 0)
        self.thinking = thoughts if thinking is None else thinking
        """whether the template is asked for thoughts, as inference would be"""
        self.whole = self._render(self.messages)

    @property
    def images(self) -> list[Path]:
        """The images of the messages, in their order."""
        return [path for message in self.messages for _, path in message.get("images", ())]

    def span(self, at: int) -> Span | None:
        """The reply that is message `at`, more turns following; None where the text is not what inference sees."""
        start = _start(self._prompt(at), self.whole)
        return None if start is None else Span(start)

    def last_span(self) -> Span | None:
        """The reply that is the last message; None where the template writes the turns before it differently."""
        start = _start(self._prompt(len(self.messages) - 1), self.whole)
        return None if start is None else Span(start, closes=True)

    def many(self, replies: Sequence[int]) -> dict[int, Span | None] | None:
        """The spans of many replies, from one more rendering in which marks stand for them; None if they do not show.

        The first prompt is compared; the others are taken to be built alike, as the text around the marks is.
        """
        marks = {at: f"Qz{at}zq" for at in replies}
        marked = [{**one, "content": marks[at]} if at in marks else one for at, one in enumerate(self.messages)]
        text, first = self._render(marked), self._prompt(replies[0])
        if not replies[0]:
            return None
        *before, question = self.messages[: replies[0]]
        before.append({**question, "content": "Qzqzq", "images": ()})
        asked = self._template.render(before, tools=self._tools, prompt=True, thinking=self.thinking)
        header = asked.rpartition("Qzqzq")[2]  # what the template writes between a question and its reply
        if not header or _start(first, self.whole) is None:
            return None
        starts: list[int] = []
        here = there = 0  # characters of `whole` and of `text` that agree
        for at in replies:
            place, content = text.find(marks[at], there), str(self.messages[at]["content"]).strip()
            frame = text[there:place]
            reply = self.whole.find(content, here + len(frame))
            same = place >= 0 and reply >= 0 and self.whole.startswith(frame, here)
            begin = max((frame.rfind(one) + len(one) for one in (header, _bare(header)) if one in frame), default=-1)
            if not same or begin < 0 or self.whole[here + len(frame) : reply].strip():
                return None
            starts.append(here + begin)
            here, there = reply + len(content), place + len(marks[at])
        last = len(self.messages) - 1
        return {at: Span(start, closes=at == last) for at, start in zip(replies, starts, strict=True)}

    def between(self, at: int, span: Span, stops: Sequence[str]) -> str:
        """The text between the content of a reply and that of the message after it; empty if they do not show.

        The next message is not searched in a token of `stops` that follows the reply: its text may be a part of it.
        """
        reply = str(self.messages[at].get("content") or "").strip()
        following = _first_text(self.messages[at + 1])
        end = self.whole.find(reply, span.start) + len(reply)
        behind = end + max((len(stop) for stop in stops if self.whole.startswith(stop, end)), default=0)
        return self.whole[end : max(behind, self.whole.find(following, behind))]

    @property
    def last_content(self) -> str:
        """What the last message says."""
        return str(self.messages[-1].get("content") or "").strip()

    def shows_thought(self, at: int) -> bool:
        """Whether the thought of a reply, if it has one, is in the text."""
        return at not in self._thoughts or at in self._shown

    @cached_property
    def _thoughts(self) -> set[int]:
        """The messages with a thought."""
        return {at for at, one in enumerate(self.messages) if str(one.get("reasoning_content") or "").strip()}

    @cached_property
    def _shown(self) -> set[int]:
        """Those whose thought the template prints. A mark stands for each, since other text may repeat a thought."""
        marks = {at: f"Qz{at}zq" for at in self._thoughts}
        marked = [
            {**one, "reasoning_content": marks[at]} if at in marks else one for at, one in enumerate(self.messages)
        ]
        text = self._render(marked)
        return {at for at, mark in marks.items() if mark in text}

    def require_printed(self, at: int, span: Span) -> None:
        """Raises RowError unless the text has what the reply that is message `at` says and calls.

        Some templates cut a reply at a think tag, or print only the calls of a reply that has text, too.
        """
        said = str(self.messages[at].get("content") or "").strip()
        if self.whole.find(said, span.start) < 0:
            raise RowError("the chat template does not print the text of a reply as it is")
        if any(self.whole.find(call["function"]["name"], span.start) < 0 for call in calls_of(self.messages[at])):
            raise RowError("the chat template does not print the calls of a reply that has text, too")

    def as_inferred(self, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """Text and spans, the last reply behind the very prompt of inference if it ends the text.

        Raises RowError for a thought where the prompt closes the thoughts before the reply begins, or that the template
        does not print.
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
            raise RowError("the chat template ends the thought in its prompt, the reply has one: render.thinking none")
        if "<think>" in tags and "</think>" not in tags:  # the prompt opens a thought, the rendered reply lacks it
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
    """The content of a message, or the first text between its images."""
    content, places = str(message.get("content") or ""), [place for place, _ in message.get("images", ())]
    pieces = [content[start:end].strip() for start, end in pairwise([0, *places, len(content)])]
    return next(filter(None, pieces), "")


def _start(prompt: str, whole: str) -> int | None:
    """Where the reply behind `prompt` begins in `whole`, which may leave out the think tags that end the prompt."""
    if whole.startswith(prompt):
        return len(prompt)
    bare = _bare(prompt)
    return len(bare) if bare != prompt and whole.startswith(bare) else None


def _bare(prompt: str) -> str:
    """A prompt without the think tags that end it."""
    return _THINK.sub("", prompt)
