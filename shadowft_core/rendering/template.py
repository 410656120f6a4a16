"""A chat template: tests which messages it prints, and renders messages as text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shadowft_core.errors import TrainError
from shadowft_core.loading import limit_chat_templates

Message = Mapping[str, Any]
"""role, content (text); optional: reasoning_content (text), tool_calls (JSON text of a list), tool_call_id, name,
weight, images

`images` is a list of (place, path): an image stands before character `place` of the content.
"""

# Some templates write today's date. A fixed date makes runs on two days equal; Llama's templates default to this one.
FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
_USER, _REPLY, _SYSTEM, _THOUGHT = "Uqz7user", "Rqz7reply", "Sqz7system", "Tqz7thought"  # no template writes these
_CALL, _VALUE, _RESULT = "Cqz7call", "Vqz7value", "Oqz7result"
_ID = "Iqz7abcde"  # Mistral's templates require nine letters and digits


def dated(template: str) -> str:
    """The template with the date fixed, if it writes one."""
    return FIXED_DAY + template if "strftime_now" in template else template


def undated(template: str) -> str:
    """The template as it was before `dated`."""
    return template.removeprefix(FIXED_DAY)


def templates_of(tokenizer: Any) -> tuple[str, str]:
    """The templates for conversations without and with tools, as transformers chooses them.

    Of a tokenizer with several named templates, these are `default` and `tool_use`. Raises TrainError if there is no
    `default`.
    """
    found = tokenizer.chat_template
    require_texts(found)
    if not isinstance(found, dict):
        return str(found), str(found)
    if "default" not in found:
        raise TrainError(
            f"expected a chat template named default, found {', '.join(sorted(found))}; rename the one to train with "
            "in the tokenizer of fetch.instruct"
        )
    default = str(found["default"])
    return default, str(found.get("tool_use", default))


def require_texts(template: Any) -> None:
    """Raises TrainError unless a tokenizer's template is a text, or texts by name."""
    for one in template.values() if isinstance(template, dict) else [template]:
        if not isinstance(one, str):
            raise TrainError(
                f"expected a chat template that is text, found {type(one).__name__} {one!r:.60}; correct chat_template "
                "in tokenizer_config.json of fetch.instruct"
            )


def calls_of(message: Message) -> list[Any]:
    """The calls of tools in a message, each {"type", "function": {"name", "arguments"}}, with "id" if it has one."""
    calls: list[Any] = json.loads(message.get("tool_calls") or "[]")
    return calls


def _function(more: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "id": _ID, "function": {"name": _CALL, "description": "", **more}}


class RowError(Exception):
    """Why a conversation cannot be rendered. Many rows share a message, since rows are counted by it."""


class Template:
    """A chat template of a tokenizer.

    `has_system`, `has_developer`, `has_thoughts` and `has_calls` are true if it prints system turns,
    developer turns, `reasoning_content`, and calls of tools with their results. `parts` is true if
    it prints contents only as lists of parts, as templates of vision models do.

    Raises TrainError if the template does not print user turns and replies.
    """

    def __init__(self, tokenizer: Any, text: str) -> None:
        limit_chat_templates()
        self._tokenizer, self._text = tokenizer, text
        self.parts, self.has_thoughts = False, True
        user, reply = {"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}
        if not self._prints([user, reply], _USER, _REPLY):
            self.parts = True  # templates of vision models print only lists of parts
            if not self._prints([user, reply], _USER, _REPLY):
                raise TrainError(
                    "the chat template does not print a user turn and its reply; check the template of fetch.instruct"
                )
        self.has_system = self._prints([{"role": "system", "content": _SYSTEM}, user, reply], _SYSTEM)
        self.has_developer = self._prints([{"role": "developer", "content": _SYSTEM}, user, reply], _SYSTEM)
        self.has_thoughts = self._prints([user, reply | {"reasoning_content": _THOUGHT}], _THOUGHT)
        offered = [_function({"parameters": {"type": "object"}})]
        system = {"role": "system", "content": _SYSTEM}
        self._has_tools = {  # some print tools only behind a system text
            head: self._prints([*([system] if head else []), user, reply], _CALL, tools=offered)
            for head in (False, True)
        }
        called = {
            "role": "assistant",
            "content": "",
            "tool_calls": json.dumps([_function({"arguments": {"x": _VALUE}})]),
        }
        result = {"role": "tool", "name": _CALL, "content": _RESULT, "tool_call_id": _ID}
        for self._arguments_as_text in (False, True):  # DeepSeek's templates require arguments as JSON text
            if self._prints([user, called, result, reply], _CALL, _VALUE, _RESULT):
                self.has_calls, self._has_ids = True, self._prints([user, called, result, reply], _ID)
                break
        else:
            self.has_calls = self._has_ids = False

    def require(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Raises RowError if the template does not print the tools offered, or calls of tools in the messages."""
        if tools and not self._has_tools[messages[0]["role"] != "user"]:
            raise RowError("the chat template does not print the tools offered")
        if not self.has_calls and any(one["role"] == "tool" or one.get("tool_calls") for one in messages):
            raise RowError("the chat template does not print calls of tools and their results")
        if self._has_ids and not all("id" in call for one in messages for call in calls_of(one)):
            raise RowError("the chat template prints the ids of calls, but a call has no id")

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        prompt: bool = False,
        begun: bool = False,
        thinking: bool = True,
        **variables: Any,
    ) -> str:
        """The text of the messages. With `prompt`, it ends where the model begins its reply.

        With `begun`, the last message is the beginning of that reply, and the text ends with it. The template gets the
        `variables`; without `thinking` also `enable_thinking=False`, which many templates read.
        Raises RowError if the template refuses the messages, TrainError if it exceeds a limit (limits.TEMPLATE_...).
        """
        from jinja2 import TemplateError

        from shadowft_core.files.templatecosts import TemplateLimit

        options = variables if thinking else variables | {"enable_thinking": False}
        try:
            text = self._tokenizer.apply_chat_template(
                [self._shaped(message) for message in messages],
                tools=list(tools) if tools else None,
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=prompt,
                continue_final_message=begun,
                **options,
            )
        except TemplateLimit as error:
            folder = getattr(self._tokenizer, "name_or_path", "") or "fetch.instruct"
            raise TrainError(
                f"{folder}: its chat template exceeds a limit: {error}; correct the template, or leave out long rows"
            ) from None
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise RowError(f"the chat template refuses the conversation: {' '.join(str(error).split()):.200}") from None
        return str(text)

    def _shaped(self, message: Message) -> dict[str, Any]:
        found = {key: value for key, value in message.items() if value is not None and key not in ("weight", "images")}
        if calls := calls_of(message):
            for call in calls if self._arguments_as_text else ():
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            found["tool_calls"] = calls
        if thought := found.get("reasoning_content"):
            found["thinking"] = thought  # gpt-oss reads this name
            if not self.has_thoughts:
                found["content"] = f"<think>\n{thought}\n</think>\n\n{found.get('content') or ''}"
        if images := message.get("images"):
            found["content"] = _parts(str(found.get("content") or ""), [place for place, _ in images])
        elif self.parts:
            found["content"] = [{"type": "text", "text": found.get("content") or ""}]
        return found

    def _prints(self, messages: Sequence[Message], *words: str, tools: Sequence[Any] | None = None) -> bool:
        try:
            text = self.render(messages, tools=tools)
        except RowError:
            return False
        return all(word in text for word in words)


def _parts(text: str, places: Sequence[int]) -> list[dict[str, Any]]:
    """The parts of a message: an image at each place, and the texts between."""
    found: list[dict[str, Any]] = []
    last = 0
    for place in places:
        found += [{"type": "text", "text": text[last:place]}] if place > last else []
        found.append({"type": "image"})
        last = place
    return [*found, {"type": "text", "text": text[last:]}] if len(text) > last else found
