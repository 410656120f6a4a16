"""What is known about a training: the record of another trainer in certificates and receipts, and train.json."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, JsonValue

from shadowft_core.files import Fields, Record
from shadowft_core.limits import TEXT_CHARACTERS

Text = Annotated[str, Field(max_length=TEXT_CHARACTERS)]


class TrainerFacts(Record):
    """What another trainer's files say about a training (told.py); a fact that no file has is absent."""

    base: Text | None = None
    seed: int | None = None
    steps: int | None = None
    epochs: float | None = None
    tokens: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    mean_loss: float | None = None
    valid_loss: float | None = None
    learning_rate: float | None = None
    method: Text | None = None
    rank: int | None = None
    alpha: float | None = None
    datasets: list[Text] | None = None
    versions: dict[Text, Text] | None = None


class Trainer(Record):
    """A training by another trainer: its name, the facts, what its files do not say, and which files are damaged."""

    name: Text | None
    facts: TrainerFacts
    not_known: list[Text]
    unreadable: list[Text]


class TrainRecord(Fields):
    """The fields of train.json that a delta depends on."""

    model_digest: Text | None = None
    data_digest: Text | None = None
    seed: int | None = None
    settings: JsonValue = None
    trainer: Trainer | None = None


def sentence(trainer: Mapping[str, Any]) -> str:
    """What the files say about a training, in one line: the trainer, the starting model, how long, what is unknown."""
    facts = trainer["facts"]
    words = [f"tuned by {trainer['name'] or 'another trainer'}"]
    if base := facts.get("base"):
        words[0] += f" from {base}"
    words += [f"{name} {facts[name]:g}" for name in ("seed", "steps", "epochs") if name in facts]
    if "first_loss" in facts and "last_loss" in facts:
        words.append(f"loss {facts['first_loss']:.3f} -> {facts['last_loss']:.3f}")
    elif "mean_loss" in facts:
        words.append(f"mean loss {facts['mean_loss']:.3f}")
    ends = [f"not known: {', '.join(trainer['not_known'])}"] if trainer["not_known"] else []
    ends += [f"not readable: {', '.join(trainer['unreadable'])}"] if trainer["unreadable"] else []
    return "; ".join([", ".join(words), *ends])
