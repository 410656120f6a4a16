"""Steps, tokens, operations and disk of a training, from the lengths of the data."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from shadowft_core.errors import DataError
from shadowft_core.files.record import Fields, read_record
from shadowft_core.params import Checkpoint
from shadowft_core.plan.memory import Setting, trained_weights

# Per token, where tokens were not counted: between English (4 to 5) and code or other scripts (2 to 3).
CHARACTERS = 3.5
OF_TEMPLATE = 30  # tokens that a chat template adds to a row
FILL = 0.95  # share of a pack that best fit decreasing fills
LEVELS = (0.0, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class Lengths:
    """Rows to train on, and quantiles (min, median, p95, max) of their tokens. `counted`: by the tokenizer.

    `replayed` of the rows are replay rows, on which a route with `replay: false` does not train.
    """

    rows: int
    levels: tuple[float, float, float, float]
    counted: bool
    replayed: int = 0

    def without_replay(self) -> "Lengths":
        """The lengths without the replay rows; the quantiles are still those of all rows."""
        return replace(self, rows=self.rows - self.replayed, replayed=0)

    def within(self, most: int) -> "Lengths":
        """The lengths of the rows that `train` keeps; those above `most` are left out, which only the levels show."""
        low, median, high, top = (min(level, float(most)) for level in self.levels)
        return replace(self, levels=(low, median, high, top))

    def mean(self, of: int = 1) -> float:
        """The mean of the longest of `of` rows, with lengths between the levels spread evenly."""
        share = (np.arange(1000) + 0.5) / 1000
        return float(np.interp(share ** (1 / of), LEVELS, self.levels).mean())


_Length = Annotated[float, Field(ge=0, le=1 << 40)]


class _Levels(Fields):
    min: _Length
    median: _Length
    p95: _Length
    max: _Length

    @property
    def all(self) -> tuple[float, float, float, float]:
        return self.min, self.median, self.p95, self.max


class _Train(Fields):
    train: int = Field(ge=0, le=1 << 40)


class _Characters(Fields):
    train: dict[str, _Levels] = Field(min_length=1)


class _Tokens(Fields):
    train: _Levels | None = None


class _Replay(Fields):
    rows_used: int = Field(0, ge=0, le=1 << 40)


class _Report(Fields):
    """What a plan needs of data-report.json."""

    splits: _Train
    characters: _Characters | None = None
    tokens: _Tokens = _Tokens()
    replay: _Replay = _Replay()


def read_lengths(data: Path) -> Lengths:
    """The lengths in a folder made by `prepare`. Raises DataError if data-report.json is missing or of another form."""
    place, remedy = data / "data-report.json", "run `shadowft prepare`, in a workspace `dvc repro prepare`"
    if not place.exists():
        raise DataError(f"{place}: missing or incomplete; {remedy}")
    report = read_record(place, _Report, remedy, error=DataError)
    counted, replayed = report.tokens.train, report.replay.rows_used
    if counted:
        levels = counted.all
    elif report.characters:
        low, median, high, top = map(sum, zip(*(part.all for part in report.characters.train.values()), strict=True))
        levels = tuple(OF_TEMPLATE + letters / CHARACTERS for letters in (low, median, high, top))  # type: ignore[assignment]
    else:
        raise DataError(f"{place}: has neither tokens nor characters; {remedy}")
    return Lengths(report.splits.train + replayed, levels, bool(counted), replayed)


@dataclass(frozen=True)
class Work:
    """Optimizer steps, sequences, tokens in them, tokens with padding, and operations."""

    steps: int
    sequences: int
    tokens: float
    padded: float
    operations: float


def work(setting: Setting, lengths: Lengths) -> Work:
    """What the whole training computes."""
    train, shape = setting.train, setting.shape
    kept = lengths.within(train.max_length)
    rows: float = kept.rows
    mean, longest = kept.mean(), kept.mean(train.batch_size)
    if train.packing:
        rows = math.ceil(kept.rows * mean / (train.max_length * FILL))
        mean, longest = kept.rows * mean / max(rows, 1), float(train.max_length)
    each = train.batch_size * train.accumulation
    steps = train.max_steps or max(1, math.ceil(math.ceil(rows / each) * train.epochs))
    sequences = steps * each if train.max_steps else min(steps * each, math.ceil(rows * train.epochs))
    replies = 2 if train.objective == "dpo" else 1
    padded = sequences * longest * replies
    full = train.method in ("full", "osf")
    forward = 2 * shape.work() + 2 * shape.layers * longest * shape.queries
    times = 3.0 if full else 2.0  # a frozen weight needs no gradient of its own
    times += 1.0 if train.gradient_checkpointing else 0.0
    times += 1.0 if train.objective == "dpo" else 0.0  # the reference
    each_token = times * forward + (0 if full else 6 * trained_weights(setting))
    return Work(steps, sequences, sequences * mean * replies, padded, each_token * padded)


def disk(setting: Setting, checkpoint: Checkpoint, routes: int) -> dict[str, float]:
    """Bytes that a run writes, by what; an exact difference of a full training is counted uncompressed."""
    trained, shape = trained_weights(setting), setting.shape
    adapter = setting.train.method in ("lora", "qlora")
    tuned = (trained if adapter else shape.weights) * 4.0
    return {
        "tuned": tuned * routes,
        "delta": tuned * routes,
        "DVC cache": 2 * tuned * routes,
        "checkpoints": checkpoint.keep * trained * 12.0,
        "grafted": shape.weights * shape.stored * routes,
    }
