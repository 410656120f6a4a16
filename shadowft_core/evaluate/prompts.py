"""How every arm is asked: the text of a prompt, thoughts before an answer, and the limits of a generated answer."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.engines import Reply
from shadowft_core.params import Generation
from shadowft_core.rendering import Renderer, RowError

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""names that task files use for the tokens of an answer, in the order in which the harness takes them"""
TOKENS = 256  # of an answer if the task names none, as in the harness
OPEN, CLOSE = "<think>", "</think>"
_OPENED = re.compile(rf"{OPEN}\s*\Z")


class Prompts:
    """The prompts of one renderer and one setting of `evaluate.generation`, the same for every engine and arm.

    Raises EvaluationError for a setting that the chat template cannot honour.
    """

    def __init__(self, renderer: Renderer, generation: Generation) -> None:
        self._renderer, self._generation = renderer, generation
        self._variables: dict[str, Any] = {}
        if generation.thinking != "template":
            self._variables["enable_thinking"] = generation.thinking == "on"
        question = [{"role": "user", "content": "a"}]
        if generation.system is not None:
            question.insert(0, {"role": "system", "content": generation.system})
        text = self._text(question)
        self._opens = _OPENED.search(text) is not None
        reads = "enable_thinking" in str(renderer.tokenizer.chat_template)
        if self._variables and not reads and not (self._opens and generation.thinking == "off"):
            raise EvaluationError(
                f"evaluate.generation.thinking is {generation.thinking}, but the chat template of the Instruct does "
                "not read enable_thinking; set it to template"
            )
        self.notes: list[str] = []
        """what the settings do that may not be wanted, one line each"""
        if generation.thinking_tokens is not None and not reads and not self._opens:
            self.notes.append(
                f"evaluate.generation.thinking_tokens is {generation.thinking_tokens}, but the chat template of the "
                "Instruct neither opens a thought nor reads enable_thinking; unless the model thinks by itself, remove "
                "it: the stop texts of the tasks do not stop the model"
            )
        unset = generation.thinking == "template" and generation.thinking_tokens is None
        if unset and self._text(question, enable_thinking=False) != text:
            self.notes.append(
                "the chat template of the Instruct thinks unless enable_thinking is false, as it is in training for "
                "rows without thoughts; set evaluate.generation.thinking to off to ask like that, or "
                "evaluate.generation.thinking_tokens to leave room for thoughts"
            )

    @property
    def system(self) -> str | None:
        """The system text before every prompt."""
        return self._generation.system

    def chat(self, name: str, output_type: str) -> Any:
        """The function that renders messages for one task, as the harness calls it.

        A prompt that opens a thought gets an empty one if the task scores given text, or thinking is off.
        """
        thinks = output_type == "generate_until" and self._generation.thinking != "off"
        if thinks and self._opens and self._generation.thinking_tokens is None:
            raise EvaluationError(
                f"task {name}: the chat template of the Instruct opens a thought in its prompt, but "
                "evaluate.generation.thinking_tokens is not set; set it, or set evaluate.generation.thinking to off"
            )

        def render(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
            text = self._text(messages, begun=not add_generation_prompt)
            if thinks or not _OPENED.search(text):
                return text
            return f"{text.rstrip()}\n\n{CLOSE}\n\n"

        return render

    def settings(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The generation settings of a request, for the engine.

        Stop texts of a task end answers, not thoughts, so an engine does not get them if thoughts are expected.
        """
        found = {key: value for key, value in kwargs.items() if key not in LIMITS}
        named = next((kwargs[key] for key in LIMITS if kwargs.get(key) is not None), TOKENS)
        found["max_gen_toks"] = int(self._generation.max_tokens or named)
        if self._thinking:
            found["max_gen_toks"] += self._generation.thinking_tokens or 0
            found["until"] = []
        return found

    def answer(self, prompt: str, reply: str, kwargs: Mapping[str, Any]) -> str:
        """The answer in a reply: without its thought, and up to the task's stop texts in `kwargs`.

        A thought that is not closed leaves no answer; the reply then counts as cut at the token limit.
        """
        opened, text = _OPENED.search(prompt) is not None, str(reply)
        if not opened and not text.lstrip().startswith(OPEN):
            return self._stopped(reply, text, kwargs) if self._thinking else reply
        _, closed, rest = text.rpartition(CLOSE)
        if not closed:
            return Reply("", "length", getattr(reply, "tokens", 0))
        return self._stopped(reply, rest.lstrip(), kwargs)

    @property
    def _thinking(self) -> bool:
        return self._generation.thinking_tokens is not None and self._generation.thinking != "off"

    def _stopped(self, reply: str, text: str, kwargs: Mapping[str, Any]) -> str:
        until = kwargs.get("until") or []
        ends = [text.find(stop) for stop in ([until] if isinstance(until, str) else until) if stop]
        if first := sorted(end for end in ends if end >= 0):
            return Reply(text[: first[0]], "stop", getattr(reply, "tokens", 0))
        if not isinstance(reply, Reply):
            return text
        return Reply(text, reply.finish, reply.tokens)

    def _text(self, messages: Sequence[Mapping[str, Any]], *, begun: bool = False, **variables: Any) -> str:
        try:
            return self._renderer.prompt(messages, begun=begun, **self._variables | variables)
        except RowError as error:
            raise EvaluationError(f"evaluate: {error}; change the prompt or evaluate.generation.system") from None
