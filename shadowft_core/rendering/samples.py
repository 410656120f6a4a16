"""Turns a conversation into sequences: each reply is learned after the prompt of inference, with its end token."""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import TrainError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.rendering.conversation import RenderedConversation, Span
from shadowft_core.rendering.images import Processor
from shadowft_core.rendering.template import Message, RowError, Template, templates_of, undated

if TYPE_CHECKING:
    from shadowft_core.params import Render

__all__ = ["IGNORED", "Renderer", "RowError", "Sample"]

IGNORED = -100  # the label that PyTorch's cross entropy skips
MANY = 16  # with more replies, the number of renderings no longer grows with the replies


@dataclass(frozen=True)
class Sample:
    """One sequence to train on. `input_ids` and `labels` have equal length; a label is the id or IGNORED.

    `prompt` is the text that inference sends for the last reply, `reply` the text of that reply without the end token.
    `text` is the text of the chat template. For a conversation with images, `input_ids` are the ids of
    `Processor.expand(text, images)`; if the template writes no end token, they end with one after the last reply.
    """

    input_ids: list[int]
    labels: list[int]
    prompt: str
    reply: str
    text: str = ""
    images: tuple[Path, ...] = ()


class Renderer:
    """Renders conversations with one tokenizer, its chat template, and the settings `params.render`."""

    def __init__(
        self,
        tokenizer: Any,
        stops: set[int],
        settings: "Render",
        load_processor: Callable[[], Processor | None] = lambda: None,
    ) -> None:
        """`stops` are the ids that end a reply at inference. `load_processor` is called at the first image.

        Raises TrainError if there is no such id or no fast tokenizer, and as `Template` does.
        """
        if not stops:
            raise TrainError("expected an eos token in the tokenizer or in generation_config.json, found none; add one")
        if not tokenizer.is_fast:
            raise TrainError("expected a tokenizer.json, found none; convert the tokenizer to a fast one")
        without, with_tools = templates_of(tokenizer)
        self.tokenizer, self._settings = tokenizer, settings
        self.template = Template(tokenizer, without)
        """the template for conversations without tools"""
        self._for_tools = self.template if with_tools == without else Template(tokenizer, with_tools)
        self.stops, self._load_processor = stops, load_processor
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= set(tokenizer.all_special_tokens)
        self._special_ids = set(tokenizer.convert_tokens_to_ids(sorted(special)))
        control = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))  # the longest first
        self._control = re.compile(control) if special else None
        self._tail = re.compile(rf"(?:{control or ' '}|\s)\Z")
        self._stop_texts = tokenizer.convert_ids_to_tokens(sorted(stops))
        self._end = self._end_token()

    @cached_property
    def processor(self) -> Processor | None:
        """The processor of the model, which makes ids and tensors of images; None if the model takes no images."""
        return self._load_processor()

    @property
    def template_digest(self) -> str:
        """SHA-256 of the Instruct's chat template; of the canonical JSON {name: template} if there are several."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            return bytes_digest(canonical_json({name: undated(text) for name, text in template.items()}))
        return bytes_digest(undated(template).encode())

    def samples(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[Sample]:
        """The sequences of one conversation, in the order of their last replies. Each reply is learned in one of them.

        One sequence holds all replies, with an exception: if the template drops the thought of an earlier reply, or
        writes no token after it that stops generation, a separate sequence ends with that reply. With
        `render.thinking: last`, such a reply is not learned. A reply with `weight` 0 is not learned.
        Raises RowError if the conversation cannot be rendered as at inference, or has images and the model takes none.
        """
        if any(message.get("images") for message in messages) and self.processor is None:
            raise RowError("the model takes no images")
        template = self._for_tools if tools else self.template
        folded = self._folded(messages, template)
        template.require(folded, tools)
        self._require_plain(folded, tools)
        learned = [at for at, turn in enumerate(folded) if turn["role"] == "assistant" and turn.get("weight") != 0]
        if not learned:
            raise RowError("no reply to learn")
        *earlier, last = learned
        rendered = RenderedConversation(template, folded[: last + 1], tools)  # inference would not have later turns
        spans = rendered.many(learned) if len(learned) > MANY else None
        if spans is None:
            spans = {at: rendered.span(at) for at in earlier} | {last: rendered.last_span()}
        alone = [at for at in earlier if not (rendered.shows_thought(at) and self._ends(rendered, at, spans[at]))]
        if spans[last] is None:
            raise RowError("the chat template writes the turns before a reply differently once the reply follows")
        together = {at: span for at in learned if at not in alone and (span := spans[at]) is not None}
        for at, span in together.items():
            rendered.require_printed(at, span)
        samples = [self._sample(rendered, list(together.values()))]
        if self._settings.thinking != "last":
            shorter = [RenderedConversation(template, folded[: at + 1], tools, rendered.thinking) for at in alone]
            ends = [(part, part.last_span()) for part in shorter]
            found = [(part, span) for part, span in ends if span is not None]
            if len(found) < len(ends):
                raise RowError("the chat template writes the turns before a reply differently once the reply follows")
            for part, span in found:
                part.require_printed(len(part.messages) - 1, span)
            samples = [*(self._sample(part, [span]) for part, span in found), *samples]
        return samples

    def prompt(self, messages: Sequence[Message], *, begun: bool = False, **variables: Any) -> str:
        """The text that inference sends for messages without a reply; with `begun`, the last one begins the reply.

        The template gets the `variables`. Raises RowError if it refuses the messages.
        """
        return self.template.render(self._folded(messages, self.template), prompt=not begun, begun=begun, **variables)

    def _ends(self, rendered: RenderedConversation, at: int, span: Span | None) -> bool:
        """Whether the text between a reply and the next message has a token that stops generation."""
        after = "" if span is None else rendered.between(at, span, self._stop_texts)
        return any(token in after for token in self._stop_texts)

    def _sample(self, rendered: RenderedConversation, spans: Sequence[Span]) -> Sample:
        template_text, spans = rendered.as_inferred(spans)
        images = tuple(rendered.images)
        if images and self.processor:
            seen = self.processor.expand(template_text, images)
            text, ids, starts = seen.text, seen.input_ids, [start for start, _ in seen.offsets]
            spans = [replace(span, start=seen.place(span.start)) for span in spans]
        else:
            text = template_text
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, starts = list(encoded["input_ids"]), [offset[0] for offset in encoded["offset_mapping"]]
        labels = [IGNORED] * len(ids)
        final, stop_at = spans[-1], len(text)
        for span, following in zip(spans, [*(span.start for span in spans[1:]), None], strict=True):
            first = bisect_left(starts, span.start)
            limit = len(ids) if following is None else bisect_left(starts, following)
            stop = next((at for at in range(first, limit) if ids[at] in self.stops), None)
            if stop is not None:
                until, stop_at = stop + 1, starts[stop]
            elif span is final and span.closes:  # the template writes no token that stops generation: append one
                special = [at for at in range(first, limit) if ids[at] in self._special_ids]
                until = special[-1] + 1 if special else limit
                ids[until:], labels[until:], stop_at = [self._end], [IGNORED], len(text)
                until += 1
            else:
                raise RowError("no token stops generation between a reply and the next message")
            labels[first:until] = ids[first:until]
        if images and self.processor and not self.processor.image_ids.isdisjoint(labels):
            raise RowError("a reply holds an image token")
        said = self._said(text[final.start : stop_at], rendered.last_content)
        return Sample(ids, labels, text[: final.start], said, template_text, images)

    def _said(self, text: str, content: str) -> str:
        """The text of a reply up to its content; unchanged if anything but blanks and control tokens follows."""
        said = text
        while content and not said.endswith(content):
            shorter = self._tail.sub("", said)
            if shorter == said:
                return text
            said = shorter
        return said

    def _folded(self, messages: Sequence[Message], template: Template) -> list[Message]:
        """The messages, changed to what the template prints: roles and system turn; without thoughts if set so."""
        found: list[Message] = []
        for one in messages:
            message = dict(one)
            if message["role"] == "developer" and not template.has_developer:
                message["role"] = "system"
            if self._settings.thinking == "none":
                message.pop("reasoning_content", None)
            found.append(message)
        if found and found[0]["role"] == "system" and not template.has_system:
            if self._settings.system == "refuse":
                raise RowError("the chat template prints no system turn; set render.system to fold")
            head, *rest = found
            if not rest or rest[0]["role"] != "user":
                raise RowError("the chat template prints no system turn, and no user turn follows it")
            question = dict(rest[0]) | {"content": f"{head['content']}\n\n{rest[0]['content']}"}
            if images := question.get("images"):
                question["images"] = [(place + len(head["content"]) + 2, path) for place, path in images]
            found = [question, *rest[1:]]
        return found

    def _require_plain(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Raises RowError if a text, a call or a tool contains a control token of the tokenizer.

        It would be encoded as that token: an end token in the arguments of a call would end the learned text there.
        """
        if self._control is None:
            return
        texts = [one.get(name) for one in messages for name in ("content", "reasoning_content", "tool_calls", "name")]
        texts += [json.dumps(list(tools), ensure_ascii=False)] if tools else []
        for text in texts:
            if isinstance(text, str) and (token := self._control.search(text)):
                raise RowError(f"control token {token[0]} in the text")

    def _end_token(self) -> int:
        """The id to append if the template ends a text without one that stops generation.

        It is the id that follows a reply before the next turn, if that stops generation, else the eos token.
        """
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            short = self.template.render(turns)
            longer = self.template.render([*turns, {"role": "user", "content": "c"}])
        except RowError:
            short, longer = "", ""
        if longer.startswith(short) and short:
            follow = self.tokenizer(longer[len(short) :], add_special_tokens=False)["input_ids"]
            if follow and follow[0] in self.stops:
                return int(follow[0])
        eos = self.tokenizer.eos_token_id
        return int(eos) if eos in self.stops else min(self.stops)
