"""Which orders of turns are a conversation."""

import re
from functools import lru_cache
from typing import Any

from shadowft_core.prepare.turns import BadRow


def check_order(messages: list[dict[str, Any]]) -> None:
    """Raises BadRow unless a reply follows each question, tools answer calls, and some reply is learned."""
    if problem := _disorder("".join([one["role"][0] if len(one) == 2 else _mark(one) for one in messages])):
        raise BadRow(problem)


def _mark(message: dict[str, Any]) -> str:
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
        "user and assistant do not alternate": not re.fullmatch(r"(u(ct+)*a)*(u(ct+)*c?)?", rest.lower()),
        "last turn is not the assistant's": rest[-1:] not in "acAC",
        "every reply has weight 0: nothing to learn": "a" not in rest and "c" not in rest,
    }
    return next((problem for problem, found in problems.items() if found), None)
