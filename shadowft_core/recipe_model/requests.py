"""Parses requests to a chat model, in every form that MLflow passes on, into conversations and settings."""

from dataclasses import dataclass
from typing import Any

from shadowft_core.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
COLDEST, HOTTEST = 0.001, 100  # outside these temperatures logits overflow or lose their differences
_SETTINGS = ("max_new_tokens", "temperature", "stop")

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Settings:
    """Settings of generation."""

    max_new_tokens: int
    """maximum number of tokens in a reply"""
    temperature: float = 0.0
    """0 is greedy; above 0, tokens are sampled with the model's generation_config"""
    stop: tuple[str, ...] = ()
    """strings that end a reply; it is cut before the first of them"""


def settings(params: Any, default: int) -> Settings:
    """The parameters of a request; `default` is the default of max_new_tokens.

    Raises InputError with the parameter, the value sent and the expected values.
    """
    params = {} if params is None else params
    if not isinstance(params, dict):
        raise InputError(f"params: expected an object, found {_shown(params)}")
    if unknown := sorted(set(map(str, params)) - set(_SETTINGS)):
        raise InputError(f"params: {unknown[0]} is not known; expected {', '.join(_SETTINGS)}")
    tokens = _value(params, "max_new_tokens", default)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise InputError(f"max_new_tokens: expected a whole number of at least 1, found {_shown(tokens)}")
    temperature = _value(params, "temperature", 0.0)
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not (temperature == 0 or COLDEST <= temperature <= HOTTEST):
        raise InputError(
            f"temperature: expected 0 or a number from {COLDEST} to {HOTTEST}, found {_shown(temperature)}"
        )
    stop = _value(params, "stop", [])
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"stop: expected a string or a list of strings, none empty, found {_shown(stop)}")
    return Settings(tokens, float(temperature), tuple(texts))


def conversations(sent: Any) -> list[Conversation]:
    """The conversations of a request, each a list of `{"role", "content"}` with content as text.

    A request is `{"messages": M}`, a list of such objects, or a data frame with the column `messages`, where M is one
    conversation or a list of them; or a list of conversations; or one conversation. The content of a message is text,
    or a list of parts `{"type": "text", "text": ...}`, which are joined by newlines.

    Raises InputError naming the message and what was expected. Nothing in a request is silently ignored, except fields
    that are null.
    """
    sent = _plain(sent)
    rows = sent if isinstance(sent, list) else [sent]
    if rows and all(isinstance(row, dict) and "role" in row and "messages" not in row for row in rows):
        rows = [rows]  # one conversation
    found: list[Conversation] = []
    for row in rows:
        found += _row(row)
    if not found:
        raise InputError('no conversation; send {"messages": [{"role": "user", "content": "..."}]}')
    return found


def _row(row: Any) -> list[Conversation]:
    """The conversations of `{"messages": ...}`, or of a list of messages or of such lists."""
    if isinstance(row, dict):
        if "messages" not in row:
            raise InputError(f"messages: missing; found {', '.join(map(str, row)) or 'an empty object'}")
        if strange := sorted(str(name) for name, value in row.items() if name != "messages" and value is not None):
            raise InputError(f"{strange[0]}: unknown field next to messages; the parameters are {', '.join(_SETTINGS)}")
        row = row["messages"]
    if not isinstance(row, list):
        raise InputError(f"expected a list of messages, found {_shown(row)}")
    many = row if row and all(isinstance(inner, list) for inner in row) else [row]
    return [_conversation(messages) for messages in many]


def _conversation(messages: list[Any]) -> Conversation:
    if not messages:
        raise InputError("a conversation has no message; send at least one user message")
    return [_message(number, message) for number, message in enumerate(messages, 1)]


def _message(number: int, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InputError(f"message {number}: expected an object with role and content, found {_shown(message)}")
    given = {name: value for name, value in message.items() if value is not None}
    if strange := sorted(map(str, set(given) - {"role", "content"})):
        raise InputError(f"message {number}: {strange[0]} is not supported; send role and content only")
    role = given.get("role")
    if role not in ROLES:
        raise InputError(f"message {number}: role is {_shown(role)}; expected one of {', '.join(ROLES)}")
    content = given.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(number, part) for part in content) if content else None
    if not isinstance(content, str):
        raise InputError(f"message {number}: content is {_shown(content)}; expected text or a list of text parts")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"message {number}: content has a lone surrogate; send valid Unicode") from None
    return {"role": str(role), "content": content}


def _part(number: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise InputError(
            f'message {number}: a part of its content is {_shown(part)}; expected {{"type": "text", "text": "..."}}'
        )
    return str(part["text"])


def _plain(value: Any) -> Any:
    """Convert data frames, series, arrays and numpy scalars to plain Python values."""
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # a data frame
        return [_plain(row) for row in value.to_dict(orient="records")]
    if hasattr(value, "tolist") and not isinstance(value, str):  # an array, a series, a numpy scalar
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _value(params: dict[str, Any], name: str, default: Any) -> Any:
    value = _plain(params.get(name))
    return default if value is None else value


def _shown(value: Any) -> str:
    return f"{value!r:.80}" if value is not None else "none"
