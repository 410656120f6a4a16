"""Preferences: the rejected reply of a row, beside the chosen one that ends its messages."""

from shadowft_core.prepare.turns import BadRow, Message


def require_chosen(messages: list[Message], chosen: list[Message], field: str) -> None:
    """Raises BadRow unless the messages of `field`, which end with a reply, end with the chosen one."""
    if chosen[-1] != messages[-1] or (len(chosen) > 1 and chosen != messages):
        raise BadRow(f"the reply in {field!r} is not that in 'chosen'")


def rejected_reply(messages: list[Message], turns: list[Message]) -> list[Message]:
    """The rejected reply, from the turns of the field `rejected`: the reply alone, or the whole conversation.

    `messages` end with the chosen reply. Raises BadRow if the conversations differ before their last turn, or if both
    replies are equal.
    """
    (*prompt, chosen), (*before, rejected) = messages, turns
    if before and before != prompt:
        raise BadRow("'chosen' and 'rejected' differ before their last turn")
    if rejected["role"] != "assistant":
        raise BadRow("'rejected' does not end with the assistant's turn")
    if chosen.get("weight") == 0 or rejected.get("weight") == 0:
        raise BadRow("weight 0 of a chosen or rejected reply", "weight")
    if "images" in rejected:
        raise BadRow("an image in a turn of the role 'assistant'")
    if _stripped(chosen) == _stripped(rejected):
        raise BadRow("'chosen' and 'rejected' are equal")
    return [rejected]


def _stripped(reply: Message) -> Message:
    return reply | {"content": reply["content"].strip()}
