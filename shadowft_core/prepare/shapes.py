"""Turns rows of every usual shape into conversations. Each field is used, refused or reported as ignored."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from shadowft_core.files.jsontext import decode
from shadowft_core.prepare.choices import choices_of
from shadowft_core.prepare.documents import row_of
from shadowft_core.prepare.images import FIELDS, Source, placed
from shadowft_core.prepare.order import ordered
from shadowft_core.prepare.preferences import rejected_reply, require_chosen
from shadowft_core.prepare.turns import (
    BadRow,
    Message,
    Notes,
    is_empty,
    json_text,
    list_of,
    printable,
    text_of,
    turn_of,
)

TURN_FIELDS = ("messages", "conversations", "conversation", "turns")
QUESTIONS = ("instruction", "question", "prompt", "query", "problem")
ANSWERS = ("output", "answer", "response", "completion", "solution", "reply", "chosen")
SAID = {*QUESTIONS, *ANSWERS, "rejected"}
SYSTEMS = ("system", "system_prompt")
CONTEXTS = ("input", "context")
NAMES = {
    "instruction": "alpaca",
    "question": "question/answer",
    "prompt": "prompt/response",
    "query": "query/response",
    "problem": "problem/solution",
}
# Fields that change what a row means, and that training cannot use.
REFUSED = ("video", "videos", "audio", "audios", "media", "chat_template_kwargs", "functions", "loss_mask")
LABELS = ("label", "kto_tag")  # true: a good reply, false: a bad one
CONVERSATION_IDS = ("conversation_id", "conv_id", "dialog_id", "thread_id")
_KNOWN = frozenset((*CONVERSATION_IDS, *FIELDS))
_MARKS = frozenset((*REFUSED, *LABELS))


class Conversation(NamedTuple):
    """The conversation of one usable row.

    `shape` is its name in the report. `tools` are the tools offered, as JSON text. `ignored` has the fields that are
    not read, `normalised` the changes. `sources` are the images as the row has them, `images` the names of their
    copies, both in the order in which the messages show them. `rejected` is the rejected reply, if there is one; the
    messages then end with the chosen one.
    """

    shape: str
    messages: list[Message]
    tools: str | None = None
    conversation_id: str | None = None
    ignored: Collection[str] = ()
    normalised: Collection[str] = ()
    sources: Sequence[Source] = ()
    images: Sequence[str] = ()
    rejected: Sequence[Message] = ()


def conversation_of(row: Any, columns: Mapping[str, str]) -> Conversation:
    """The conversation of a row: an optional system turn, then alternating user and assistant turns, with tool turns.

    `columns` is `prepare.columns`: it maps a field of the row, or `messages[].FIELD` of a turn, to the name under which
    it is read. Line ends become LF. Raises BadRow.
    """
    row = row_of(row)
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, found {_kind(row)}")
    found = _Row(row, columns)
    found.require_supported()
    shape, messages = found.conversation()
    rejected = found.rejected(messages)
    if system := found.first(SYSTEMS):
        if messages and messages[0]["role"] == "system":
            raise BadRow(f"two system turns: one in {system!r}")
        messages.insert(0, {"role": "system", "content": text_of(found.read(system), system, found.notes)})
        found.notes.normalised.add(f"field {system!r} to a system turn")
    tools = found.tools()
    key = found.first(CONVERSATION_IDS)
    conversation = None if key is None else str(found.read(key))
    pictured = found.first(FIELDS) or any("images" in one for one in messages)
    sources = placed(messages, found.fields) if pictured else ()
    messages = ordered(messages, found.notes)
    ignored = found.notes.ignored
    ignored.update([name for name in found.fields if name not in found.used and name not in _KNOWN])
    if conversation is not None:
        conversation = printable(conversation, len(conversation))
    return Conversation(shape, messages, tools, conversation, ignored, found.notes.normalised, sources, (), rejected)


class _Row:
    """The non-empty fields of a row, under their names after `columns`. `used` has the fields read so far."""

    def __init__(self, row: dict[str, Any], columns: Mapping[str, str]) -> None:
        self.notes, self._columns, self._row = Notes(), columns, row
        self.used: set[str] = set()
        if not columns:
            self.fields = {name: value for name, value in row.items() if not is_empty(value, text=name in SAID)}
            return
        self.fields = {}
        for name, value in row.items():
            read_as = columns.get(name, name)
            if is_empty(value, text=read_as in SAID):
                continue
            if read_as in self.fields:
                raise BadRow(f"two fields get the name {read_as!r}, one of them {name!r}; correct prepare.columns")
            if read_as != name:
                self.notes.normalised.add(f"field {name!r} to {read_as!r}")
            self.fields[read_as] = value

    def first(self, names: Iterable[str]) -> str | None:
        """The first of these names that is a field of the row, or None."""
        for name in names:
            if name in self.fields:
                return name
        return None

    def read(self, name: str) -> Any:
        """The value of a field, which is then counted as used."""
        self.used.add(name)
        return self.fields[name]

    def require_supported(self) -> None:
        """Raises BadRow for a field that training cannot use, and for a row labelled as bad."""
        if _MARKS.isdisjoint(self.fields):
            return
        if name := self.first(REFUSED):
            raise BadRow(f"unsupported field {name!r}", name)
        for name in LABELS:
            label = self.fields.get(name)
            if label is False or label == 0:
                raise BadRow(f"marked as undesired: {name!r} is false", name)
            if label is True or label == 1:
                self.used.add(name)

    def conversation(self) -> tuple[str, list[Message]]:
        """The shape, and the messages of the field with turns or of the fields with question and reply."""
        key = self.first(TURN_FIELDS)
        if key is not None:
            shape, messages = self._messages(key)
            if messages and "chosen" in self.fields:
                if messages[-1]["role"] != "assistant":
                    messages += self._replies("chosen")
                elif "rejected" in self.fields:
                    require_chosen(messages, self._replies("chosen"), key)
            return shape, messages
        question = self.first(QUESTIONS)
        if question is None:
            if isinstance(self.fields.get("chosen"), list):  # whole conversations that share their beginning
                return "preference", self._turns("chosen")
            if "text" in self.fields:
                raise BadRow("text only: no prompt and no reply", "text")
            self._require_none_empty((*TURN_FIELDS, *QUESTIONS))
            if answer := self.first(ANSWERS):
                if "\n\nAssistant:" in str(self.fields[answer]):
                    raise BadRow(f"headings Human: and Assistant: in {answer!r}: split the text into turns", "headings")
                raise BadRow(
                    f"no question beside {answer!r}: expected one of {', '.join(QUESTIONS)}; see prepare.columns"
                )
            raise BadRow(f"no known fields among {', '.join(sorted(self.fields)[:6])}; map them with prepare.columns")
        answer = self.first(ANSWERS)
        if answer is None:
            self._require_none_empty(ANSWERS)
            raise BadRow(f"no reply beside {question!r}: expected one of {', '.join(ANSWERS)}; see prepare.columns")
        return NAMES[question], self._pair(question, answer)

    def _require_none_empty(self, names: tuple[str, ...]) -> None:
        """Raises BadRow if the row has one of these fields, none of which has a value."""
        given = {self._columns.get(name, name) for name in self._row}
        if empty := next((name for name in names if name in given), None):
            raise BadRow(f"empty {empty!r}")

    def tools(self) -> str | None:
        """The tools offered, as JSON text of a list."""
        if "tools" not in self.fields:
            return None
        value = self.read("tools")
        if isinstance(value, str):
            value = self._from_json("tools", "field 'tools' is no JSON")
        tools = list_of(value, "tools")
        if not all(isinstance(tool, dict) for tool in tools):
            raise BadRow("field 'tools' is no list of objects")
        if not all("function" in tool for tool in tools):
            self.notes.normalised.add("functions of 'tools' wrapped")
        wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        return json_text(wrapped, "tools")

    def rejected(self, messages: list[Message]) -> list[Message]:
        """The rejected reply beside the one that ends the messages; empty if the row has none."""
        if "rejected" in self.fields:
            turns = [one for one in self._replies("rejected") if one["role"] != "system" or one["content"]]
            return rejected_reply(messages, turns) if messages and turns else []
        names = [name for name, to in self._columns.items() if to == "rejected"] + ["rejected"]
        if any(self._row.get(name) is not None for name in names if self._columns.get(name, name) == "rejected"):
            raise BadRow("empty 'rejected'")
        return []

    def _from_json(self, name: str, problem: str) -> Any:
        try:
            value = decode(self.fields[name].encode("utf-8"))
        except (ValueError, RecursionError):
            raise BadRow(problem) from None
        self.notes.normalised.add(f"field {name!r} from JSON text")
        return value

    def _turns(self, name: str) -> list[Message]:
        return [turn_of(turn, name, self.notes) for turn in self._given(name)]

    def _given(self, name: str) -> list[Any]:
        """The turns in a field of the row, with their fields renamed."""
        turns = self.read(name)
        if isinstance(turns, str):  # some files hold the list as JSON text
            turns = self._from_json(name, f"field {name!r} is text, not a list of turns")
        turns = list_of(turns, name)
        if not self._columns:
            return turns
        start = f"{name}[]."
        if renamed := {key.removeprefix(start): to for key, to in self._columns.items() if key.startswith(start)}:
            return [_renamed(turn, renamed, start, self.notes) for turn in turns]
        return turns

    def _messages(self, key: str) -> tuple[str, list[Message]]:
        turns = self._given(key)
        found = [turn_of(turn, key, self.notes) for turn in turns]
        messages = [turn for turn in found if turn["role"] != "system" or turn["content"]]
        if len(messages) < len(found):
            self.notes.normalised.add("empty system turn left out")
        return "sharegpt" if any("from" in turn for turn in turns) else "messages", messages

    def _replies(self, name: str) -> list[Message]:
        """The reply in a field: text, a turn, or a list of either."""
        value = self.read(name)
        if isinstance(value, dict) and value.keys() & {"role", "from"}:
            return [turn_of(value, name, self.notes)]
        if isinstance(value, list):
            if all(isinstance(turn, dict) for turn in value):
                return self._turns(name)
            if len(value) != 1:
                raise BadRow(f"field {name!r} holds {len(value)} replies")
            self.notes.normalised.add(f"reply in the list {name!r}")
            value = value[0]
        reply = {"role": "assistant", "content": text_of(value, name, self.notes)}
        return [turn_of(reply, name, self.notes)]

    def _pair(self, question: str, answer: str) -> list[Message]:
        if isinstance(self.fields[question], list):  # TRL's conversational form: lists of messages
            return self._turns(question) + self._replies(answer)
        text = text_of(self.read(question), question, self.notes)
        replies = self._replies(answer)
        if len(replies) > 1:  # the whole conversation, with its prompt again
            if text not in [one["content"] for one in replies if one["role"] == "user"]:
                raise BadRow(f"field {answer!r} is a conversation without the text of {question!r}")
            return replies
        for name in filter(self.fields.__contains__, CONTEXTS):
            context = self.read(name)
            if isinstance(context, list):
                context = "\n".join(text_of(part, name, self.notes) for part in context)
            text += "\n" + text_of(context, name, self.notes)
            self.notes.normalised.add(f"field {name!r} appended to the question")
        if "choices" in self.fields:
            text += "\n" + choices_of(self.read("choices"), self.notes)
            self.notes.normalised.add("field 'choices' appended to the question")
        return [*self._history(), {"role": "user", "content": text}, *replies]

    def _history(self) -> list[Message]:
        if "history" not in self.fields:
            return []
        messages: list[Message] = []
        for pair in list_of(self.read("history"), "history"):
            if not isinstance(pair, list) or len(pair) != 2:
                raise BadRow("field 'history' is no list of pairs")
            for role, text in zip(("user", "assistant"), pair, strict=True):
                messages.append({"role": role, "content": text_of(text, "history", self.notes)})
        self.notes.normalised.add("field 'history' to turns")
        return messages


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def _renamed(turn: Any, names: Mapping[str, str], start: str, notes: Notes) -> Any:
    """A turn with its fields renamed."""
    if not isinstance(turn, dict):
        return turn
    given = {name: value for name, value in turn.items() if not is_empty(value, text=True)}
    found = {names.get(name, name): value for name, value in given.items()}
    if len(found) < len(given):
        raise BadRow(f"two fields of a turn get one name: {', '.join(sorted(given))}; correct prepare.columns")
    notes.normalised.update(f"field '{start}{name}' to {names[name]!r}" for name in given if name in names)
    return found
