"""The choices of a question, as lines of its text."""

from typing import Any

from shadowft_core.prepare.turns import BadRow, Notes, list_of, text_of


def choices_of(value: Any, notes: Notes) -> str:
    """Choices as lines `A. text`, from a list of texts or an object with the lists `text` and `label`."""
    if isinstance(value, dict):
        texts, labels = list_of(value.get("text"), "choices"), list_of(value.get("label"), "choices")
    else:
        texts = list_of(value, "choices")
        labels = [chr(65 + number) for number in range(len(texts))]
    if len(texts) != len(labels) or len(texts) > 26:
        raise BadRow("field 'choices' is no list of texts")
    named = zip((text_of(str(label), "choices", notes) for label in labels), texts, strict=True)
    return "\n".join(f"{label}. {text_of(text, 'choices', notes)}" for label, text in named)
