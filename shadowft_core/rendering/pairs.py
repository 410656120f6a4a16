"""A preference as token ids: one prompt, the chosen and the rejected reply to it, rendered as a single reply is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shadowft_core.rendering.samples import IGNORED, Renderer, RowError
from shadowft_core.rendering.template import Message


@dataclass(frozen=True)
class Pair:
    """Ids of the prompt that inference sends, and of both replies to it, each with the token that ends it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def __len__(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def render_pair(
    messages: Sequence[Message], rejected: Message, tools: Sequence[Any] | None, renderer: Renderer
) -> Pair:
    """Render a conversation that ends with the chosen reply, and the same one with the rejected reply.

    Replies before the last one are a part of the prompt. Raises RowError as `Renderer.samples` does, if the prompts
    differ, or if the replies do not.
    """
    before = [{**message, "weight": 0} for message in messages[:-1]]
    (prompt, chosen), (other, rest) = (_split(renderer, [*before, reply], tools) for reply in (messages[-1], rejected))
    if prompt != other:  # for example an empty thought, which some templates write only before a reply without one
        raise RowError("the chat template writes the prompt of the rejected reply differently")
    if chosen == rest:
        raise RowError("the chat template prints the chosen and the rejected reply alike")
    return Pair(prompt, chosen, rest)


def _split(renderer: Renderer, messages: Sequence[Message], tools: Sequence[Any] | None) -> tuple[list[int], list[int]]:
    """The ids before the last reply, and those of the reply up to the token that ends it."""
    sample = renderer.samples(messages, tools)[-1]
    learned = [at for at, label in enumerate(sample.labels) if label != IGNORED]
    first, last = learned[0], learned[-1]
    return sample.input_ids[:first], sample.input_ids[first : last + 1]
