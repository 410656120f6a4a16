"""Which orders of turns are a conversation."""

import json
import re
from functools import lru_cache

from shadowft_core.prepare.turns import BadRow, Message, Notes


def ordered(messages: list[Message], notes: Notes) -> list[Message]:
    """The messages, results of tools in the order of their calls where both have ids.

    Most chat templates print no ids, so a model tells the results of one turn apart by their order alone.
    Raises BadRow unless a reply follows each question, tools answer calls, and some reply is learned.
    """
    marks = "".join([one["role"][0] if len(one) == 2 else _mark(one) for one in messages])
    if problem := _disorder(marks):
        raise BadRow(problem)
    found = messages
    for turn in re.finditer("ct+", marks.lower()):
        first, end = turn.start() + 1, turn.end()
        asked = [str(call.get("id", "")) for call in json.loads(messages[first - 1]["tool_calls"])]
        given = [str(one.get("tool_call_id", "")) for one in messages[first:end]]
        if all(asked) and all(given) and asked != given:
            if sorted(asked) != sorted(given):
                raise BadRow("results of tools that do not belong to the calls before them")
            places = sorted((asked.index(key), at) for at, key in enumerate(given))
            results = [messages[first + at] for _, at in places]
            found = [*found[:first], *results, *found[end:]]
            notes.normalised.add("results of tools put in the order of their calls")
    return found


def _mark(message: Message) -> str:
    """The first letter of a role; c for a call, x for one of another role than the assistant; capital for weight 0."""
    mark: str = message["role"][0]
    if "tool_calls" in message:
        mark = "c" if mark == "a" else "x"
    return mark.upper() if message.get("weight") == 0 else mark


@lru_cache(1024)  # few orders occur
def _disorder(marks: str) -> str | None:
    """What is wrong with the order of the turns with these marks."""
    rest = marks[1:] if marks[:1] in ("s", "d") else marks
    problems = {
        "a tool call that is not the assistant's": "x" in marks,
        "a system turn that is not the first": "s" in rest or "d" in rest,
        "no user turn": "u" not in rest,
        "the first turn is not the user's": rest[:1] != "u",
        "a result of a tool without a call before it": re.search("[ua]t", rest.lower()),
        "user and assistant do not alternate": not re.fullmatch(r"(u(ct+)*a)*(u(ct+)*c?)?", rest.lower()),
        "last turn is not the assistant's": rest[-1:] not in "acAC",
        "every reply has weight 0: nothing to learn": "a" not in rest and "c" not in rest,
    }
    return next((problem for problem, found in problems.items() if found), None)
