"""Rows of every usual shape to conversations. What a row says is used, refused, or named as ignored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shadowft_core.prepare.images import FIELDS, Source, placed
from shadowft_core.prepare.turns import BadRow, check_order, list_of, text_of, turn_of

Message = dict[str, Any]
"""role and content; where given also reasoning_content, tool_calls (JSON text), name, weight (0), image_places"""

TALKS = ("messages", "conversations", "conversation", "turns")
QUESTIONS = ("instruction", "question", "prompt", "query", "problem")
ANSWERS = ("output", "answer", "response", "completion", "solution", "reply", "chosen")
SYSTEMS = ("system", "system_prompt")
CONTEXTS = ("input", "context")
NAMES = {
    "instruction": "alpaca",
    "question": "question/answer",
    "prompt": "prompt/response",
    "query": "query/response",
    "problem": "problem/solution",
}
# Fields of a row that change what it means, and that no text model can honour.
REFUSED = ("video", "videos", "audio", "audios", "chat_template_kwargs", "functions")
# Fields that describe a row and do not belong to what is said.
KEYS = ("conversation_id", "conv_id", "dialog_id", "thread_id")


@dataclass(frozen=True)
class Talk:
    """One usable row: shape, messages in order, the tools offered, the id of its conversation, ignored fields.

    `sources` says where its images are, `images` has the names under which they are kept; both in reading order.
    """

    shape: str
    messages: list[Message]
    tools: str | None = None
    conversation: str | None = None
    ignored: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


def talk_of(row: Any, columns: Mapping[str, str]) -> Talk:
    """The conversation of a row: an optional system turn, then user and assistant in turn, tools between them.

    `columns` maps a field of the row to the name it is read by, as in `prepare.columns`. Line ends become LF.
    Raises BadRow.
    """
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, found {_kind(row)}")
    fields = {columns.get(name, name): value for name, value in row.items() if not _empty(value)}
    for name in REFUSED:
        if name in fields:
            raise BadRow(f"unsupported field {name!r}")
    if fields.get("label") is False or fields.get("label") == 0:
        raise BadRow("marked as undesired: 'label' is false")
    used = {"label"} if fields.get("label") in (True, 1) else set[str]()
    key = next((name for name in TALKS if name in fields), None)
    if key is not None:
        used.add(key)
        shape, messages = _conversation(key, fields[key])
    else:
        shape, messages = _pair(fields, used)
    if system := next((name for name in SYSTEMS if name in fields), None):
        used.add(system)
        if messages and messages[0]["role"] == "system":
            raise BadRow(f"two system turns: one in {system!r}")
        messages.insert(0, {"role": "system", "content": text_of(fields[system], system)})
    tools = _tools(fields.get("tools"))
    conversation = next((str(fields[name]) for name in KEYS if name in fields), None)
    ignored = sorted(fields.keys() - used - {"tools", *FIELDS} - set(KEYS))
    pictured = "images" in fields or "image" in fields or any("images" in one for one in messages)
    sources = placed(messages, fields) if pictured else []
    check_order(messages)
    return Talk(shape, messages, tools, conversation, ignored, sources)


def _empty(value: Any) -> bool:
    return value is None or value in ("", [], {}, "[]", "null")


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _conversation(key: str, value: Any) -> tuple[str, list[Message]]:
    if isinstance(value, str):  # some files hold the list as JSON text
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRow(f"field {key!r} is text, not a list of turns") from None
    turns = list_of(value, key)
    speakers = {"from" for turn in turns if isinstance(turn, dict) and "from" in turn}
    found = [turn_of(turn, key) for turn in turns]
    messages = [turn for turn in found if turn["role"] != "system" or turn["content"]]
    return "sharegpt" if speakers else "messages", messages


def _pair(fields: dict[str, Any], used: set[str]) -> tuple[str, list[Message]]:
    asked = [name for name in QUESTIONS if name in fields]
    if not asked:
        if "text" in fields:
            raise BadRow("text only: no prompt and no reply")
        names = ", ".join(sorted(fields)[:6])
        raise BadRow(f"no known fields among {names}; map them with prepare.columns")
    question = asked[0]
    answer = next((name for name in ANSWERS if name in fields), None)
    if answer is None:
        raise BadRow(f"no reply beside {question!r}: expected one of {', '.join(ANSWERS)}")
    used |= {question, answer}
    if "rejected" in fields:  # preference data: the chosen reply is learned
        used.add("rejected")
    shape = NAMES[question]
    if isinstance(fields[question], list):  # TRL's conversational form: lists of messages
        before, after = (list_of(fields[name], name) for name in (question, answer))
        return shape, [turn_of(turn, question) for turn in before] + [turn_of(turn, answer) for turn in after]
    text = text_of(fields[question], question)
    for name in CONTEXTS:
        if name in fields:
            used.add(name)
            context = fields[name]
            if isinstance(context, list):
                context = "\n".join(text_of(part, name) for part in context)
            text += "\n" + text_of(context, name)
    if "choices" in fields:
        used.add("choices")
        text += "\n" + _choices(fields["choices"])
    reply = _reply(fields[answer], answer)
    messages = _history(fields.get("history"), used)
    return shape, [*messages, {"role": "user", "content": text}, reply]


def _reply(value: Any, name: str) -> Message:
    if isinstance(value, dict | list):
        turns = list_of(value if isinstance(value, list) else [value], name)
        if len(turns) != 1:
            raise BadRow(f"field {name!r} holds {len(turns)} replies")
        if isinstance(turns[0], dict):
            return turn_of(turns[0], name)
        value = turns[0]
    return turn_of({"role": "assistant", "content": text_of(value, name)}, name)


def _choices(value: Any) -> str:
    """The lines `A. text`; a list of texts, or the lists `text` and `label` of some sets."""
    if isinstance(value, dict):
        texts, labels = list_of(value.get("text"), "choices"), list_of(value.get("label"), "choices")
    else:
        texts = list_of(value, "choices")
        labels = [chr(65 + number) for number in range(len(texts))]
    if len(texts) != len(labels) or len(texts) > 26:
        raise BadRow("field 'choices' is no list of texts")
    return "\n".join(f"{label}. {text_of(text, 'choices')}" for label, text in zip(labels, texts, strict=True))


def _history(value: Any, used: set[str]) -> list[Message]:
    if value is None:
        return []
    used.add("history")
    messages: list[Message] = []
    for pair in list_of(value, "history"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow("field 'history' is no list of pairs")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": text_of(text, "history")})
    return messages


def _tools(value: Any) -> str | None:
    """The tools offered, as canonical JSON text of a list."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRow("field 'tools' is no JSON") from None
    tools = list_of(value, "tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("field 'tools' is no list of objects")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return json.dumps(wrapped, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
