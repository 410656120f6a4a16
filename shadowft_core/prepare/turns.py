"""One turn of a conversation: its role, its text, and the marks that say whether it is learned."""

import json
import re
from typing import Any

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
    "system": "system",
    "developer": "developer",
}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "loss", "train", "training")
# Fields of a turn that change what it means, and that no text model can honour.
REFUSED = ("video", "videos", "audio", "audios", "prefix", "label")
IMAGE = "\ufdd1"  # no character; it stands for an image part in text until images.py takes it out
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_INVISIBLE = re.compile(r"[\s\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u2064\ufeff]*")


class BadRow(Exception):
    """Why one row is not usable, in words that many rows can share."""


def list_of(value: Any, field: str) -> list[Any]:
    """The value, if it is a list. Raises BadRow otherwise."""
    if not isinstance(value, list):
        raise BadRow(f"field {field!r} is not a list")
    return value


def text_of(value: Any, field: str, *, empty: bool = False, images: bool = False) -> str:
    """Text with LF line ends; of a list of parts, the text parts joined. Raises BadRow for anything else.

    Text that shows nothing (blanks, invisible characters) is refused unless `empty`. With `images` an image part
    becomes the character IMAGE.
    """
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "".join(IMAGE if images and _is_image(part) else _part(part, field) for part in value)
    if not isinstance(value, str):
        raise BadRow(f"field {field!r} is not text")
    if not empty and _INVISIBLE.fullmatch(value):
        raise BadRow(f"empty {field!r}" if not value.strip() else f"invisible {field!r}")
    if "\0" in value:
        raise BadRow(f"NUL in {field!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"lone surrogate in {field!r}") from None
    return value.replace("\r\n", "\n")


def turn_of(turn: Any, field: str) -> dict[str, Any]:
    """A message of a turn that has role and content, or from and value. Raises BadRow.

    A turn with images gets `images`: its image parts, and its fields `image` and `images`; see `images.placed`.
    """
    if not isinstance(turn, dict):
        raise BadRow(f"a turn of {field!r} is not an object")
    name = turn.get("role", turn.get("from"))
    if not isinstance(name, str):
        raise BadRow(f"a turn of {field!r} has neither 'role' nor 'from'")
    role = ROLES.get(name.casefold())
    if role is None:
        raise BadRow(f"unsupported role {name!r}")
    for refused in REFUSED:
        if turn.get(refused):
            raise BadRow(f"unsupported field {refused!r} of a turn")
    content = turn.get("content", turn.get("value"))
    message: dict[str, Any] = {"role": role}
    calls = _calls(turn, name, content)
    optional = calls is not None or role in ("system", "tool")
    if calls is not None and name.casefold() == "function_call":
        content = ""
    if content is None and not optional:
        raise BadRow(f"a turn of {field!r} has no 'content'")
    message["content"] = text_of("" if content is None else content, "content", empty=optional, images=True)
    parts = [part for part in content if _is_image(part)] if isinstance(content, list) else []
    if parts or turn.get("image") or turn.get("images"):
        message["images"] = parts, {name: turn[name] for name in ("image", "images") if turn.get(name)}
    if role == "assistant":
        message |= _thought(turn, message["content"])
    if calls is not None:
        message["tool_calls"] = calls
    if isinstance(turn.get("name"), str) and turn["name"]:
        message["name"] = text_of(turn["name"], "name")
    return message | _weight(turn, role)


def check_order(messages: list[dict[str, Any]]) -> None:
    """Raises BadRow unless a reply follows each question, tools answer calls, and some reply is learned."""
    talk = [one["role"] for one in messages]
    if talk[:1] in (["system"], ["developer"]):
        talk = talk[1:]
    if "system" in talk or "developer" in talk:
        raise BadRow("a system turn that is not the first")
    if not talk:
        raise BadRow("no user turn")
    shown = "".join({"user": "u", "assistant": "a", "tool": "t"}[role] for role in talk)
    calls = "".join("c" if one.get("tool_calls") else one["role"][0] for one in messages)[-len(shown) :]
    if not re.fullmatch(r"(u(ct+)*a)*u?(ct+)*c?", calls):
        raise BadRow("user and assistant do not alternate")
    if calls[-1] not in "ac":
        raise BadRow("last turn is not the assistant's")
    if all(one.get("weight") == 0 for one in messages if one["role"] == "assistant"):
        raise BadRow("every reply has weight 0: nothing to learn")


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def _part(part: dict[str, Any], field: str) -> str:
    if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
        raise BadRow(f"unsupported part {part.get('type')!r} of {field!r}")
    return str(part["text"])


def _thought(turn: dict[str, Any], content: str) -> dict[str, Any]:
    """The thought of a reply, from a field of its own or from <think> in front of the text."""
    for name in THOUGHTS:
        if turn.get(name):
            return {"reasoning_content": text_of(turn[name], name)}
    found = _THOUGHT.match(content)
    if found is None:
        return {}
    rest = content[found.end() :]
    if not rest.strip():
        raise BadRow("a reply that is only a thought")
    thought = found[1].strip()
    return {"content": rest, "reasoning_content": thought} if thought else {"content": rest}


def _weight(turn: dict[str, Any], role: str) -> dict[str, Any]:
    for name in WEIGHTS:
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise BadRow(f"unsupported {name} {value!r:.20}: expected 0 or 1")
        if role == "assistant" and not value:
            return {"weight": 0}
    return {}


def _calls(turn: dict[str, Any], name: str, content: Any) -> str | None:
    """The calls of tools as JSON text of a list in the form of today's chat API; arguments as an object."""
    calls = turn.get("tool_calls")
    if isinstance(calls, str) and calls.strip():
        calls = _json(calls, "tool_calls")
    if not calls and turn.get("function_call"):
        calls = [{"function": turn["function_call"]}]
    if name.casefold() == "function_call":
        calls = _json(content, "function_call")
    if not calls:
        return None
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("a tool call has no name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _json(arguments or "{}", "arguments")
        found.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return json.dumps(found, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _json(text: Any, field: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise BadRow(f"{field!r} is no JSON") from None
