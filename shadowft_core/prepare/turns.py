"""Turns one turn of a row into a message: role, text, thought, calls of tools, images, and weight."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from shadowft_core.files.jsontext import decode

Message = dict[str, Any]
"""role and content; where given also reasoning_content, tool_calls (JSON text), tool_call_id, name, weight (0) and
image_places"""

CALLERS = ("function_call", "tool_call")  # roles of a turn whose text is a call of tools
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", *CALLERS), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
    "system": "system",
    "developer": "developer",
}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "loss", "train", "training", "masked")  # masked is the opposite of the others
# Fields that change what a turn means, and that training cannot use.
REFUSED = ("video", "videos", "audio", "audios", "prefix", "label", "train_detail", "training_detail")
IMAGE = "\ufdd1"  # a noncharacter that marks an image part in a text; images.py removes it
_INVISIBLE = re.compile(r"[\s\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u2064\ufeff]*")


class BadRow(Exception):
    """Why a row is not usable. Many rows share a message, since the report counts rows by it.

    `feature` is the field or value that caused it, if it is one that `prepare` does not support.
    """

    def __init__(self, reason: str, feature: str | None = None) -> None:
        super().__init__(printable(reason))
        self.feature = feature and printable(feature)


@dataclass
class Notes:
    """The changes in one row, and its fields that are not read. A field of a turn is named `messages[].name`."""

    normalised: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)


def printable(text: str, limit: int = 200) -> str:
    """The beginning of a text, with escapes for lone surrogates, so that it can be encoded as UTF-8."""
    return text[:limit].encode("utf-8", "backslashreplace").decode()


def is_empty(value: Any, *, text: bool = False) -> bool:
    """Whether a field counts as absent; one that holds `text` may say "[]" or "null"."""
    if isinstance(value, list | dict):
        return not value
    return value is None or value == "" or (not text and value in ("[]", "null"))


def list_of(value: Any, name: str) -> list[Any]:
    """Return the value if it is a list. Raises BadRow otherwise."""
    if not isinstance(value, list):
        raise BadRow(f"field {name!r} is not a list")
    return value


def text_of(value: Any, name: str, notes: Notes, *, empty: bool = False, images: bool = False) -> str:
    """A text, or the joined texts of a list of parts, with LF line ends. Raises BadRow for anything else.

    A text of only blanks and invisible characters is refused unless `empty`. With `images`, an image part becomes the
    character IMAGE.
    """
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "".join(IMAGE if images and _is_image(part) else _part(part, name, notes) for part in value)
        notes.normalised.add("text parts joined")
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} is not text")
    if not empty and _INVISIBLE.fullmatch(value):
        raise BadRow(f"empty {name!r}" if not value.strip() else f"invisible {name!r}")
    if "\0" in value:
        raise BadRow(f"NUL in {name!r}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise BadRow(f"lone surrogate in {name!r}") from None
    if "\r" in value and "\r\n" in value:  # one character is found faster than two
        notes.normalised.add("CR LF to LF")
        return value.replace("\r\n", "\n")
    return value


def turn_of(turn: Any, name: str, notes: Notes) -> dict[str, Any]:
    """The message of a turn with role and content, or from and value. `name` is the field with the turns.

    The message of a turn with images has `images`: the image parts, and the fields `image` and `images` of the turn
    (see `images.placed`). Raises BadRow.
    """
    if not isinstance(turn, dict):
        raise BadRow(f"a turn of {name!r} is not an object")
    if len(turn) == 2 and (plain := _plain(turn, notes)):
        return plain
    speaker, text = _first(turn, "role", "from"), _first(turn, "content", "value")
    given = turn.get(speaker)
    if not isinstance(given, str):
        raise BadRow(f"a turn of {name!r} has neither 'role' nor 'from'; map `{name}[].FIELD` with prepare.columns")
    role = ROLES.get(given) or ROLES.get(given.casefold())
    if role is None:
        raise BadRow(f"unsupported role {given!r:.60}", f"role {given!r:.60}")
    if role != given:
        notes.normalised.add(f"role {given!r:.60} to {role!r}")
    content = turn.get(text)
    for refused in REFUSED:
        value = turn.get(refused)
        if value or (refused == "label" and not is_empty(value)):  # false marks a reply as undesired
            raise BadRow(f"unsupported field {refused!r} of a turn", f"{name}[].{refused}")
    used = {speaker, text}
    is_call = given.casefold() in CALLERS
    message: dict[str, Any] = {"role": role}
    calls = _calls(turn, name, notes, used, content if is_call else None)
    optional = calls is not None or role in ("system", "tool")
    if is_call and calls is not None:
        content = ""
    if content is None and not optional:
        raise BadRow(f"a turn of {name!r} has no 'content'; map `{name}[].FIELD` with prepare.columns")
    message["content"] = text_of("" if content is None else content, "content", notes, empty=optional, images=True)
    message |= _images(turn, content, used)
    if role == "assistant":
        message |= _thought(turn, message["content"], notes, used, alone=calls is not None)
    if calls is not None:
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id") if role == "tool" else ("name",):
        message |= _named(turn, key, notes, used)
    message |= _weight(turn, role, notes, used)
    _name_unread(turn, used, f"{name}[]", notes)
    return message


def _plain(turn: dict[str, Any], notes: Notes) -> dict[str, Any] | None:
    """The message of a turn with only a role and a text, as most turns; None for any other turn."""
    given, text = turn.get("role"), turn.get("content")
    if given is None and text is None:
        given, text = turn.get("from"), turn.get("value")
    if not isinstance(given, str) or not isinstance(text, str) or given not in ROLES or given in CALLERS:
        return None
    role = ROLES[given]
    if role != given:
        notes.normalised.add(f"role {given!r:.60} to {role!r}")
    text = text_of(text, "content", notes, empty=role in ("system", "tool"))
    if role == "assistant":
        return {"role": role, "content": text} | _thought_in(text, notes)
    return {"role": role, "content": text}


def json_of(text: Any, name: str) -> Any:
    """The value of JSON text. Raises BadRow for anything else."""
    try:
        return decode(text.encode("utf-8"))
    except (AttributeError, ValueError, RecursionError):
        raise BadRow(f"{name!r} is no JSON") from None


def json_text(value: Any, name: str) -> str:
    """Compact JSON with sorted keys. Raises BadRow for what JSON in UTF-8 cannot hold, such as NaN or a date."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError):
        raise BadRow(f"{name!r} is no JSON") from None
    return text


def _first(turn: dict[str, Any], one: str, other: str) -> str:
    return other if turn.get(one) is None and turn.get(other) is not None else one


def _name_unread(given: dict[str, Any], used: Collection[str], name: str, notes: Notes) -> None:
    notes.ignored.update(f"{name}.{key}" for key, value in given.items() if key not in used and not is_empty(value))


def _named(turn: dict[str, Any], key: str, notes: Notes, used: set[str]) -> dict[str, str]:
    if not isinstance(turn.get(key), str) or not turn[key]:
        return {}
    used.add(key)
    return {key: text_of(turn[key], key, notes)}


def _images(turn: dict[str, Any], content: Any, used: set[str]) -> dict[str, Any]:
    used |= {"image", "images"}
    parts = [part for part in content if _is_image(part)] if isinstance(content, list) else []
    named = {key: turn[key] for key in ("image", "images") if turn.get(key)}
    return {"images": (parts, named)} if parts or named else {}


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def _part(part: dict[str, Any], name: str, notes: Notes) -> str:
    kind = part.get("type", "text")
    if kind != "text" or not isinstance(part.get("text"), str):
        raise BadRow(f"unsupported part {kind!r:.60} of {name!r}", f"part {kind!r:.60}")
    _name_unread(part, ("type", "text"), f"{name}[]", notes)
    return str(part["text"])


def _thought(turn: dict[str, Any], content: str, notes: Notes, used: set[str], *, alone: bool) -> dict[str, Any]:
    """The thought of a reply, from a field of the turn or from the text, and the text without it."""
    inside = _thought_in(content, notes, alone=alone)
    for name in THOUGHTS:
        if turn.get(name):
            used.add(name)
            if name != THOUGHTS[0]:
                notes.normalised.add(f"field {name!r} of a turn to {THOUGHTS[0]!r}")
            thought = text_of(turn[name], name, notes)
            if inside.get("reasoning_content", thought.strip()) != thought.strip():
                raise BadRow(f"two thoughts of a reply: one in {name!r}, another in its text")
            return inside | {"reasoning_content": thought}
    return inside


def _thought_in(content: str, notes: Notes, *, alone: bool = False) -> dict[str, Any]:
    """The thought before a text, marked by think tags, and the text without it, which may be empty if `alone`.

    Models whose prompt opens the thought write only the end tag. It counts at the beginning or end of a line. Tags
    within a text are text.
    """
    if "think>" not in content:
        return {}
    head, closed, rest = content.partition("</think>")
    before, opened, thought = head.partition("<think>")
    if opened and before.strip():
        return {}
    if not closed:
        if opened:
            raise BadRow("a thought that does not end")
        return {}
    if not opened and not (head.endswith("\n") or rest.startswith("\n")):
        return {}
    if not rest.strip() and not alone:
        raise BadRow("a reply that is only a thought")
    notes.normalised.add("<think> split off" if opened else "thought before </think> split off")
    thought = (thought if opened else head).strip()
    return {"content": rest.lstrip()} | ({"reasoning_content": thought} if thought else {})


def _weight(turn: dict[str, Any], role: str, notes: Notes, used: set[str]) -> dict[str, Any]:
    for name in WEIGHTS:
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise BadRow(f"unsupported {name} {value!r:.20}: expected 0 or 1", name)
        used.add(name)
        if role == "assistant" and bool(value) == (name == "masked"):
            if name != WEIGHTS[0]:
                notes.normalised.add(f"field {name!r} of a turn to {WEIGHTS[0]!r}")
            return {"weight": 0}
        return {}
    return {}


def _calls(turn: dict[str, Any], name: str, notes: Notes, used: set[str], content: Any) -> str | None:
    """The calls of tools as JSON text: a list of {type, function: {name, arguments}}, with arguments as an object.

    `content` is the text of a turn whose role is one of CALLERS, else None.
    """
    calls = turn.get("tool_calls")
    used.add("tool_calls")
    if isinstance(calls, str) and calls.strip():
        calls = json_of(calls, "tool_calls")
        notes.normalised.add("'tool_calls' from JSON text")
    if not calls and turn.get("function_call"):
        used.add("function_call")
        calls = [{"function": turn["function_call"]}]
        notes.normalised.add("'function_call' to 'tool_calls'")
    if content is not None:
        calls = json_of(content, "function_call")
        notes.normalised.add("turn with a call to 'tool_calls'")
    if not calls:
        return None
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("a tool call has no name")
        named: set[str] = set()
        key = {} if call is function else _named(call, "id", notes, named)
        if call is not function:
            _name_unread(call, ("type", "index", "function", *named), f"{name}[].tool_calls[]", notes)
        _name_unread(function, ("type", "name", "arguments"), f"{name}[].tool_calls[].function", notes)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = json_of(arguments or "{}", "arguments")
            notes.normalised.add("'arguments' from JSON text")
        found.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}, **key})
    return json_text(found, "tool_calls")
