"""What is learned of a conversation: each reply behind the prompt of inference, up to the token that ends it."""

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
MANY = 16  # replies from which on a conversation is rendered a fixed number of times


@dataclass(frozen=True)
class Sample:
    """One sequence to train on. `input_ids` and `labels` have equal length; a label is the id or IGNORED.

    `prompt` is what inference sends for the last reply, `reply` what the model should answer, without the end token.
    `text` is the whole as the chat template renders it. Of a conversation with images, the ids are those that
    `Processor.expand` gives for `text` and `images`, up to the last learned one where the template writes no end token.
    """

    input_ids: list[int]
    labels: list[int]
    prompt: str
    reply: str
    text: str = ""
    images: tuple[Path, ...] = ()


class Renderer:
    """One tokenizer, its chat template and the policy of `params.render`."""

    def __init__(
        self,
        tokenizer: Any,
        stops: set[int],
        settings: "Render",
        load_processor: Callable[[], Processor | None] = lambda: None,
    ) -> None:
        """`stops` are the ids that end a reply at inference; `load_processor` is called for the first image.

        Raises TrainError without any stop, or as `Template` does.
        """
        if not stops:
            raise TrainError("the tokenizer has no eos token and generation_config.json names none; add one")
        if not tokenizer.is_fast:
            raise TrainError("the tokenizer has no tokenizer.json, so tokens cannot be placed in the text; convert it")
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
        """What makes ids and tensors of images; None when the model takes none."""
        return self._load_processor()

    @property
    def template_digest(self) -> str:
        """SHA-256 of the chat template as the Instruct has it; of the canonical JSON of several."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            return bytes_digest(canonical_json({name: undated(text) for name, text in template.items()}))
        return bytes_digest(undated(template).encode())

    def samples(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[Sample]:
        """The sequences of one conversation, in the order of their last replies; each learned reply is in one of them.

        One sequence holds all replies, unless the template drops the thought of an earlier reply, or writes no token
        behind it that stops generation. Such a reply gets a sequence of its own, which ends with it; with
        `render.thinking: last` it is not learned. A reply with `weight` 0 is context only.
        Raises RowError for a conversation that cannot be rendered as inference would see it, or that shows images to a
        model that takes none.
        """
        if any(message.get("images") for message in messages) and self.processor is None:
            raise RowError("the model takes no images")
        template = self._for_tools if tools else self.template
        folded = self._folded(messages, template)
        template.require(folded, tools)
        self._require_plain(folded, tools)
        learned = [at for at, one in enumerate(folded) if one["role"] == "assistant" and one.get("weight") != 0]
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

    def _ends(self, rendered: RenderedConversation, at: int, span: Span | None) -> bool:
        """Whether a token that stops generation follows a reply, before the next message."""
        behind = "" if span is None else rendered.between(at, span, self._stop_texts)
        return any(token in behind for token in self._stop_texts)

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
            elif span is final and span.closes:  # no token of the template stops generation: what does is learned
                special = [at for at in range(first, limit) if ids[at] in self._special_ids]
                until = special[-1] + 1 if special else limit
                ids[until:], labels[until:], stop_at = [self._end], [IGNORED], len(text)
                until += 1
            else:
                raise RowError("no token ends a reply that other messages follow")
            labels[first:until] = ids[first:until]
        if images and self.processor and not self.processor.image_ids.isdisjoint(labels):
            raise RowError("a reply holds an image token")
        said = self._said(text[final.start : stop_at], rendered.last_content)
        return Sample(ids, labels, text[: final.start], said, template_text, images)

    def _said(self, text: str, content: str) -> str:
        """A reply's text without the blanks and control tokens behind its content, if it ends with them alone."""
        said = text
        while content and not said.endswith(content):
            shorter = self._tail.sub("", said)
            if shorter == said:
                return text
            said = shorter
        return said

    def _folded(self, messages: Sequence[Message], template: Template) -> list[Message]:
        """The messages in roles that the template prints; thoughts as `render.thinking` has them."""
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
                raise RowError(
                    "the chat template prints no system turn: render.system fold puts it before the question"
                )
            head, *rest = found
            if not rest or rest[0]["role"] != "user":
                raise RowError("the chat template prints no system turn, and no user turn follows it")
            asked = dict(rest[0]) | {"content": f"{head['content']}\n\n{rest[0]['content']}"}
            if images := asked.get("images"):
                asked["images"] = [(place + len(head["content"]) + 2, path) for place, path in images]
            found = [asked, *rest[1:]]
        return found

    def _require_plain(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Raises RowError when a text, a call or a tool spells a control token of the tokenizer.

        It would be read as one: an end token in the arguments of a call would end what is learned there.
        """
        if self._control is None:
            return
        texts = [one.get(name) for one in messages for name in ("content", "reasoning_content", "tool_calls", "name")]
        texts += [json.dumps(list(tools), ensure_ascii=False)] if tools else []
        for text in texts:
            if isinstance(text, str) and (token := self._control.search(text)):
                raise RowError(f"control token {token[0]} in the text")

    def _end_token(self) -> int:
        """The id that ends a reply where the template writes none: what follows a reply, if it stops generation."""
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
