"""What is known of a training: by another trainer, as certificates and receipts record it, and train.json as read."""

from typing import Annotated

from pydantic import Field, JsonValue

from shadowft_core.files import Fields, Record
from shadowft_core.limits import TEXT_CHARACTERS

Text = Annotated[str, Field(max_length=TEXT_CHARACTERS)]


class TrainerFacts(Record):
    """The facts that files of another trainer tell, each only if a file has it (told.py)."""

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
    """A training by another trainer: its name, the facts, what a reader would ask for in vain, and damaged files."""

    name: Text | None
    facts: TrainerFacts
    not_known: list[Text]
    unreadable: list[Text]


class TrainRecord(Fields):
    """train.json, as far as a delta depends on it."""

    model_digest: Text | None = None
    data_digest: Text | None = None
    seed: int | None = None
    settings: JsonValue = None
    trainer: Trainer | None = None
